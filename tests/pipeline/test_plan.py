"""What `--dry-run` promises is what the run does."""

import json

import pytest
import torch
from transformers import AutoConfig
from world import World, write_model

from grasp_lora.adapters import kernels
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.peft_load import load_adapter
from grasp_lora.config import Config, TrainingConfig
from grasp_lora.data import Encoded, load_examples
from grasp_lora.pipeline import footprint
from grasp_lora.pipeline.models import load_base
from grasp_lora.pipeline.plan import make_plan
from grasp_lora.pipeline.story import run_pipeline
from grasp_lora.training.setup import Setup
from grasp_lora.training.step import TrainingPass

SETTINGS = {
    "all": {
        "evaluate__rivals": ["sequential", "merged"],
        "train_target__patience": None,
        "finalize__patience": None,
        "search__patience": 9,
    },
    "rounds": {"controller__rounds": 2, "search__epochs": 4, "prune__importance": "sensitivity"},
    "rounds at the end of an epoch": {"controller__rounds": 3, "search__epochs": 4, "search__patience": 9},
    "activation": {
        "prune__importance": "activation",
        "controller__preset": "released",
        "finalize__mask": "dynamic",
        "merge__rule": "sum_deltas",
        "search__accumulation": 2,
        "controller__interval": 1,
        "adapters__source": "en",
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_plan_is_what_the_run_does(name, world):
    changes = dict(SETTINGS[name])
    if "adapters__source" in changes:
        changes["adapters__source"] = world.adapter("en", r=3, target_modules=["q_proj"])
    config = world.config(**changes)
    plan = {stage.name: stage for stage in make_plan(config).stages}
    results = run_pipeline(config).results
    cost = results["cost"]
    assert set(plan) - {"evaluate"} == set(cost)
    for stage, row in cost.items():
        assert (stage, plan[stage].steps) == (stage, row["optimizer_steps"])
        assert (stage, plan[stage].token_passes) == (stage, row["token_passes"])
    micro, dev = 3, len(results["search"]["outcome"]["dev_losses"]) * 3
    assert plan["search"].forward == results["search"]["evaluations"] * micro + dev
    systems = len(results["systems"])
    assert plan["evaluate"].forward == 2 * 3 * systems


def test_the_plan_reads_no_weights_and_leaves_nothing(world, cli, no_weights):
    said = cli("run", "--config", world.file(), "--dry-run", "--json")
    plan = json.loads(said.out)
    assert said.code == 0
    assert [stage["name"] for stage in plan["stages"]] == [
        "source_adapter", "target_adapter", "search", "finalize", "keep", "evaluate",
    ]  # fmt: skip
    # r 2 on q (32, 32) and v (16, 32), two layers, two adapters
    assert plan["trainable"] == 2 * 2 * 2 * ((32 + 32) + (16 + 32))
    assert plan["memory"] > 4 * plan["parameters"]
    assert not (world.root / "run").exists()
    shown = cli("run", "--config", world.file(), "--dry-run")
    assert "optimizer steps" in shown.out
    assert "estimated peak memory" in shown.out


def test_trainable_counts_given_and_fresh_adapters(world):
    given = world.adapter("en", r=3, target_modules=["q_proj"])
    plan = make_plan(world.config(adapters__source=given, merge__rule="sum_deltas"))
    assert plan.trainable == 2 * 3 * (32 + 32) + 2 * 2 * ((32 + 32) + (16 + 32))


def test_leakage_that_is_allowed_is_told_in_the_plan(tmp_path, pico_folder):
    world = World(tmp_path, pico_folder)
    (world.data / "dev.jsonl").write_bytes((world.data / "train.jsonl").read_bytes())
    plan = make_plan(world.config(data__allow_leakage=True))
    assert len(plan.warnings) == 1
    assert "target.train and target.dev share 6" in plan.warnings[0]


# One example is judged at a time and rounds are small, so that training passes are the larger ones.
JUDGED_ALONE = {
    **{f"{stage}__eval_batch_size": 1 for stage in ("train_source", "train_target", "search", "finalize")},
    "evaluate__batch_size": 1,
    "controller__preset": "released",
    "controller__candidates": 2,
}


def test_the_memory_follows_the_tokens_of_a_pass(world):
    def memory(**changes):
        return make_plan(world.config(finalize__accumulation=6, **JUDGED_ALONE, **changes)).memory

    whole, low = memory(speed__tokens_per_pass=10_000), memory(speed__tokens_per_pass=1)
    assert whole > memory() >= memory(speed__pack_accumulation=False) > low


def test_the_memory_follows_a_round_where_that_is_larger(world):
    def memory(**changes):
        changes = {"controller__preset": "released", "evaluate__batch_size": 1, "speed__tokens_per_pass": 1, **changes}
        changes |= {"train_target__batch_size": 1, "train_source__batch_size": 1}
        return make_plan(world.config(finalize__batch_size=1, search__batch_size=1, **changes)).memory

    assert memory(controller__candidates=7) > memory(controller__candidates=3)
    assert memory(controller__candidates=7) > memory(controller__candidates=7, search__eval_batch_size=1)


def test_the_memory_is_that_of_stages_that_run(world):
    def memory(**changes):
        given = {f"adapters__{name}": world.adapter(name, r=2, target_modules=["q_proj"]) for name in ("en", "ar")}
        given = {"adapters__source": given["adapters__en"], "adapters__target": given["adapters__ar"]}
        return make_plan(world.config(**{**JUDGED_ALONE, "evaluate__rivals": ["target"], **given, **changes})).memory

    assert memory(train_target__batch_size=64, train_source__batch_size=64) == memory()
    assert memory(finalize__batch_size=64) > memory()
    kept = {"finalize__adapter": "reuse", "controller__preset": "default", "search__epochs": 2}
    assert memory(finalize__batch_size=64, **kept) == memory(**kept)


def test_the_memory_follows_the_batches_of_the_evaluation(tmp_path, pico_folder):
    world = World(tmp_path, pico_folder, test=16)

    def memory(**changes):
        changes = {**JUDGED_ALONE, **changes}
        changes |= {f"{stage}__batch_size": 1 for stage in ("finalize", "train_target", "train_source", "search")}
        return make_plan(world.config(**changes)).memory

    assert memory(evaluate__batch_size=16) > memory()
    assert memory(evaluate__batch_size=16, task__max_new_tokens=64) > memory(evaluate__batch_size=16)


def test_places_inside_attention_count_where_rows_are_joined(on_a_gpu):
    items = [Encoded(str(i), (5,) * n, n - 1) for i, n in enumerate((2048, *[512] * 12))]
    training = TrainingConfig(batch_size=1, accumulation=13)
    joined, padded = (
        footprint.training_pass(Config(), footprint.Trained(training, items, padded=flag)) for flag in (False, True)
    )
    assert (padded.tokens, padded.places) == (4096, 0)
    assert (joined.tokens, joined.places) == (4096, 4 * 2048)  # with three short ones beside it
    config, described = Config.model_validate({"model": {"dtype": "bfloat16"}}), AutoConfig.for_model("llama")

    def estimated(size):
        return footprint.peak_bytes(
            config, described, parameters=1, trainable=1, training=size, forward=footprint.Pass()
        )

    more = estimated(joined) - estimated(padded)
    assert more == 2 * 4096 * 2 * described.hidden_size * described.num_hidden_layers * 2


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Estimate as on a GPU that runs kernels."""
    monkeypatch.setattr(footprint, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(footprint, "kernels_fit", lambda _: True)


@pytest.mark.parametrize("larger", [{"finalize__accumulation": 6}, {"search__eval_batch_size": 6}])
def test_the_dry_run_says_that_passes_shrink_to_the_memory_of_a_gpu(world, cli, on_a_gpu, larger):
    changes = dict.fromkeys((f"{stage}__batch_size" for stage in ("finalize", "train_target", "train_source")), 1)
    config = {**JUDGED_ALONE, **changes, "search__batch_size": 1, "search__accumulation": 1, **larger}
    plan = make_plan(world.config(**config))
    assert plan.memory > plan.least_memory > 2 * plan.parameters
    shown = " ".join(cli("run", "--config", world.file(**config), "--dry-run").out.split())
    assert "GiB; passes shrink to what the GPU has free, down to " in shown


def test_a_plan_compiles_no_kernel(world, monkeypatch):
    def refused(_):
        raise AssertionError("a plan compiles a kernel")

    monkeypatch.setattr(footprint, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(kernels, "find_spec", lambda _: object())
    monkeypatch.setattr(kernels, "_trial", refused)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    kernels._why_not.cache_clear()
    config = world.config(model__dtype="bfloat16", finalize__accumulation=6, **JUDGED_ALONE)
    new = make_plan(config).memory
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert new < make_plan(config).memory


def test_passes_on_a_cpu_are_as_large_as_planned(world, cli):
    plan = make_plan(world.config(finalize__accumulation=6))
    assert plan.memory == plan.least_memory
    assert "passes shrink" not in cli("run", "--config", world.file(), "--dry-run").out


@pytest.mark.parametrize(
    ("model", "changes", "padded"),
    [
        ({}, {}, False),
        ({"attention_dropout": 0.1}, {}, True),
        ({}, {"speed__join_rows": False}, True),
        ({}, {"finalize__dropout": 0.1}, True),
        ({}, {"model__gradient_checkpointing": True}, True),
        ({}, {"model__attn_implementation": "eager"}, True),
    ],
)
def test_the_plan_pads_what_the_training_pads(model, changes, padded, tmp_path):
    world = World(tmp_path, write_model(tmp_path / "model", **model))
    config = world.config(finalize__accumulation=6, finalize__batch_size=1, speed__tokens_per_pass=100, **changes)
    planned = next(stage for stage in make_plan(config).stages if stage.name == "finalize").loads[0]
    setup = Setup(config, load_base(config.model), {"train": load_examples(config.data.target.train, "qa")})
    items = setup.items("train")
    bank = setup.bank([load_adapter(world.adapter("en"), setup.base.shapes, name="en")])
    with Injection(setup.base.model, bank.modules) as injection:
        passes = TrainingPass(setup.attach(injection, bank), items, config.finalize, None)
        cuts = passes.cut(items)
    lengths = [[len(item.input_ids) for item in cut] for cut in cuts]
    assert passes.padded is padded
    held = sum(len(cut) * max(cut) if padded else sum(cut) for cut in lengths)
    assert (planned.passes, planned.tokens) == (2 * len(cuts), 2 * held)


FAMILIES = {"llama": True, "qwen3": True, "gemma": False, "gemma2": False, "gpt2": False, "gpt_neox": False}


@pytest.mark.parametrize(
    ("family", "dtype", "saves"),
    [*((name, "bfloat16", saves) for name, saves in FAMILIES.items()), ("llama", "float64", False)],
)
def test_kernels_lower_the_estimate_only_where_they_run(family, dtype, saves, on_a_gpu):
    def estimated(fused):
        config = Config.model_validate({"model": {"dtype": dtype}, "speed": {"fused_kernels": fused}})
        size = footprint.Pass(4096, 64)
        return footprint.peak_bytes(
            config, AutoConfig.for_model(family), parameters=1, trainable=1, training=size, forward=size
        )

    assert (estimated(True) < estimated(False)) is saves
