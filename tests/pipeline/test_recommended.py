"""The recipe `recommended`: what is merged, a search that trains nothing, and a final run that may keep its start."""

import json
from dataclasses import replace

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.point import MergePoint
from grasp_lora.baselines import METHODS
from grasp_lora.config import build_config, load_config
from grasp_lora.errors import ConfigError
from grasp_lora.pipeline.adapters import train_adapter
from grasp_lora.pipeline.finalize import finalize
from grasp_lora.pipeline.members import members
from grasp_lora.pipeline.opening import working
from grasp_lora.pipeline.plan import make_plan
from grasp_lora.pipeline.search import search
from grasp_lora.pipeline.stages import all_adapters
from grasp_lora.pipeline.story import run_pipeline
from grasp_lora.report import write_report
from grasp_lora.report.provenance import system_passes
from grasp_lora.report.records import read_run
from grasp_lora.training.state import BEFORE

STATIC = {"search": {"epochs": 0}, "merge": {"rule": "sum_deltas", "weights": [0.5, 0.5]}}


def test_a_recipe_lies_under_what_is_set():
    config = build_config({"recipe": "recommended", "merge": {"rule": "sum_factors"}, "search": {"lr": 0.5}})
    assert (config.merge.rule, config.merge.weights) == ("sum_factors", (0.5, 0.5))
    assert (config.search.epochs, config.search.lr, config.finalize.keep_start) == (0, 0.5, True)
    assert config.adapters.continue_source
    assert config.controller.policy == "ratio"
    assert build_config({}) == build_config({"recipe": "paper"})


def test_a_recipe_follows_the_number_of_adapters():
    config = build_config({"recipe": "recommended", "adapters": {"others": ["a", "b"]}})
    assert config.merge.weights == (0.25,) * 4


@pytest.mark.parametrize("tree", [{"recipe": "best"}, {"recipe": "recommended", "adapters": 3}])
def test_a_bad_recipe_is_one_message(tree):
    with pytest.raises(ConfigError, match=r"recipe|adapters"):
        build_config(tree)


def test_the_saved_configuration_reads_back_the_same(tmp_path, world):
    config = world.config(recipe="recommended")
    run_pipeline(config)
    assert load_config(world.root / "run" / "config.yaml") == config


def probed(seed=1, **config):
    model = pico_model("llama", torch.float64)
    work = pico_setup(model, {"seed": seed, **STATIC, **config})
    adapters = [pico_adapter(model, "en"), pico_adapter(model, "ar")]
    io = Recorder("search")
    return search(work, adapters, io), io, work, adapters


@pytest.mark.parametrize("preset", ["default", "released"])
@pytest.mark.parametrize("stop", [True, False])
def test_a_search_without_epochs_trains_nothing(preset, stop):
    controller = {"preset": preset, "rounds": 4, "early_stop": stop}
    found, io, _, _ = probed(controller=controller)
    assert (found.outcome.steps, found.outcome.trained_tokens) == (0, 0)
    assert found.rounds == 4 or stop
    assert found.stop_reason is not None
    assert {row["step"] for row in io.rows} == {0}
    rounds = [row["round"] for row in io.rows]
    assert rounds == sorted(set(rounds))
    assert rounds[0] == (0 if preset == "default" else 1)


def test_where_nothing_is_trained_the_same_point_is_not_measured_twice():
    found, io, work, adapters = probed(controller={"rounds": 5, "early_stop": False})
    moved = sum(row["committed"] for row in io.rows[:-1])
    assert found.evaluations == sum(len(row["samples"]) for row in io.rows) + 1 + moved
    bank = work.bank(adapters)
    for before, row in zip(io.rows, io.rows[1:], strict=False):
        same = row["baseline"] == before["baseline"]
        assert same or before["committed"]
    assert bank.merge.rule == "sum_deltas"


def test_the_same_seed_finds_the_same_point_without_training():
    first, second = probed()[0], probed()[0]
    assert first.best == second.best
    assert first.estimate.to_dict() == second.estimate.to_dict()


def test_a_search_without_epochs_that_keeps_its_adapter_leaves_the_merge_at_its_point():
    found, _, work, adapters = probed(finalize={"adapter": "reuse"}, controller={"rounds": 3})
    assert found.final is not None
    bank = work.bank(adapters)
    bank.stand_at(found.best)
    assert found.final.point == found.best
    assert found.final.bank.weights == bank.weights
    kept = found.final.bank.kept
    assert torch.equal(found.final.bank.values[kept], bank.values[kept])


def final(lr, size=1.0, **more):
    model = pico_model("llama", torch.float64)
    settings = {"epochs": 3, "lr": lr, "batch_size": 4, "accumulation": 1, "keep_start": True} | more
    work = pico_setup(model, {"finalize": settings, "merge": STATIC["merge"]})
    adapters = [pico_adapter(model, "en", size=size), pico_adapter(model, "ar", size=size)]
    io = Recorder("finalize")
    return finalize(work, adapters, MergePoint(0.4), io), work.bank(adapters)


def test_a_final_run_that_only_harms_keeps_its_start():
    result, start = final(lr=1e4, size=0.01, patience=2)
    outcome = result.outcome
    assert outcome.start_dev_loss is not None
    assert min(outcome.dev_losses) > outcome.start_dev_loss
    assert outcome.best_epoch == BEFORE
    assert (outcome.epochs, outcome.stopped_early) == (2, True)
    kept = result.bank.kept
    assert torch.equal(result.bank.values[kept], start.values[kept])
    plain = result.plain_dev_loss <= outcome.start_dev_loss
    assert result.point == MergePoint(0.0 if plain else 0.4)
    assert result.density == pytest.approx(1.0 if plain else 0.6, abs=0.05)


@pytest.mark.parametrize("ratio", [0.1, 0.9])
def test_dev_chooses_between_the_merge_as_it_came_and_the_pruned_one(ratio):
    """Adapters that were trained lose by pruning nine of ten entries; the plain merge is given back to the bit."""
    model = pico_model("llama", torch.float64)
    work = pico_setup(model, {"train_target": {"epochs": 8, "lr": 0.02}, "merge": STATIC["merge"],
                              "finalize": {"lr": 1e4, "epochs": 1, "keep_start": True}})  # fmt: skip
    adapters = [train_adapter(work, "target", work.config.train_target, Recorder(name)).factors for name in ("a", "b")]
    adapters = [replace(adapter, name=name) for adapter, name in zip(adapters, ("source", "target"), strict=True)]
    result, start = finalize(work, adapters, MergePoint(ratio), Recorder("finalize")), work.bank(adapters)
    better = result.plain_dev_loss <= result.outcome.start_dev_loss
    assert better or ratio < 0.5
    assert result.point == MergePoint(0.0 if better else ratio)
    if better:
        assert torch.equal(result.bank.values, start.values)
        assert bool(result.bank.kept.all())
        assert result.bank.weights == start.weights
    sizes = sum(len(item.input_ids) for item in work.items("dev"))
    assert result.probe_tokens == sizes
    assert result.outcome.dev_tokens == 2 * sizes


def test_a_final_run_that_helps_does_not():
    result, _ = final(lr=0.02)
    assert result.outcome.best_epoch is not None
    assert result.outcome.best_epoch >= 0
    assert min(result.outcome.dev_losses) < result.outcome.start_dev_loss


def test_without_the_setting_the_start_is_not_judged():
    result, _ = final(lr=1e4, size=0.01, keep_start=False)
    assert result.outcome.start_dev_loss is None
    assert result.outcome.best_epoch is not None
    assert result.outcome.best_epoch >= 0


def test_the_continued_source_adapter_takes_the_place_of_the_source(world):
    world.adapter("en")
    config = world.config(recipe="recommended", adapters__source=world.root / "en", data__source=None)
    result = run_pipeline(config)
    with working(config, resume=True) as run:
        given = all_adapters(run)
        merged = members(run, given)
    assert [adapter.name for adapter in merged] == ["source", "target"]
    assert merged[0].sha256 != given[0].sha256
    assert merged[1].sha256 == given[1].sha256
    made = json.loads((world.root / "run" / "stages" / "search" / "made_from.json").read_text())
    assert made["source"] == merged[0].sha256
    record = read_run(world.root / "run")
    spent = sum(result.results["cost"][name]["token_passes"] for name in
                ("target_adapter", "rival_sequential", "search", "finalize"))  # fmt: skip
    assert system_passes(record, "grasp") == spent
    assert "sequential" in result.results["kept"]["dev_losses"]
    assert "GRASP" in write_report([world.root / "run"], zoom=False).markdown.read_text()


def test_the_plan_of_the_recipe_bounds_the_run(world):
    config = world.config(recipe="recommended", evaluate__rivals=["sequential"], train_target__patience=None)
    plan = {stage.name: stage for stage in make_plan(config).stages}
    cost = run_pipeline(config).results["cost"]
    assert set(plan) - {"evaluate"} == set(cost)
    for stage, row in cost.items():
        assert plan[stage].steps >= row["optimizer_steps"]
        assert plan[stage].token_passes >= row["token_passes"]
    exact = ("source_adapter", "target_adapter", "rival_sequential", "keep")
    assert all(plan[name].token_passes == cost[name]["token_passes"] for name in exact)


def test_the_recommended_method_and_the_average_are_listed():
    assert METHODS["grasp_recommended"].splits(build_config({})) == ("train", "dev", "micro_dev")
    assert METHODS["average"].splits(build_config({})) == ("train", "dev")
