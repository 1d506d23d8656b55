"""`run` end to end on a pico model: results, records, export."""

import json
import re

import pytest
import safetensors.torch
import torch
from world import RIVALS, World, lines, load_plain, tree_bytes, with_peft

from grasp_lora import api
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.sparse import load_sparse
from grasp_lora.errors import AdapterError, RunError
from grasp_lora.pipeline.models import load_base
from grasp_lora.pipeline.opening import saved_config, working
from grasp_lora.pipeline.plan import make_plan
from grasp_lora.pipeline.stages import all_adapters, load_final
from grasp_lora.pipeline.story import grasp_factors, run_pipeline
from grasp_lora.report import write_report
from grasp_lora.report.content import run_content
from grasp_lora.report.records import read_run

PROMPTS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def done(tmp_path_factory, pico_folder):
    """A whole run with every rival, deployment figures and the merged model; both adapters trained here."""
    world = World(tmp_path_factory.mktemp("story"), pico_folder)
    config = world.config(evaluate__rivals=RIVALS, evaluate__deployment=True, export__merged_model=True)
    return world, config, run_pipeline(config, command=["grasp-lora", "run", "--config", str(world.root / "c.yaml")])


@pytest.fixture(scope="module")
def three(tmp_path_factory, pico_folder):
    """Three adapters of different ranks, written by plain PEFT, merged by sum_deltas; nothing is trained before."""
    world = World(tmp_path_factory.mktemp("three"), pico_folder)
    config = world.config(
        merge__rule="sum_deltas",
        merge__weights=[1.0, 0.5, -0.25],
        adapters__source=world.adapter("en", r=3),
        adapters__target=world.adapter("ar", r=2, use_rslora=True),
        adapters__others=[str(world.adapter("fr", r=1, target_modules="all-linear"))],
        data__source=None,
    )
    return world, config, run_pipeline(config)


def final_of(config):
    with working(config, resume=True) as run:
        adapters = all_adapters(run)
        return adapters, load_final(run, adapters, run.folder.stage("finalize"))


def test_the_results_hold_ratio_scores_cost_and_export(done):
    world, _, result = done
    saved = json.loads((world.root / "run" / "results.json").read_text())
    assert saved == json.loads(json.dumps(result.results))
    assert 0.0 <= saved["p_star"] <= 1.0
    assert saved["finalize"]["ratio"] == saved["p_star"] == result.p_star
    assert list(saved["systems"]) == [*RIVALS, "grasp"]
    for system in saved["systems"].values():
        assert [row["name"] for row in system["scores"]] == ["loss", "em", "f1"]
        assert all(row["n"] == 3 for row in system["scores"])
    assert saved["deployment"]["prompts"] == 3
    assert result.adapter == world.root / "run" / "export" / "adapter"
    trained = {"source_adapter", "target_adapter", "search", "finalize", "rival_merged", "rival_sequential"}
    assert set(saved["cost"]) == trained | {"keep"}
    for row in saved["cost"].values():
        assert row["token_passes"] == 4 * row["trained_tokens"] + 2 * row["forward_tokens"]


def test_every_system_keeps_its_predictions(done):
    world, _, result = done
    for name, system in result.results["systems"].items():
        rows = lines(world.root / "run" / "stages" / f"evaluate_{name}" / "predictions.jsonl")
        assert [row["references"] for row in rows] == [["re"], ["blu"], ["gree"]]
        loss = next(row for row in system["scores"] if row["name"] == "loss")
        assert sum(row["loss"] for row in rows) / 3 == pytest.approx(loss["value"], rel=1e-12)
        assert all(isinstance(row["prediction"], str) and {"em", "f1"} <= row.keys() for row in rows)


def test_the_merged_rival_is_the_final_run_without_pruning(done):
    world, _, result = done
    stages = world.root / "run" / "stages"
    merged = json.loads((stages / "rival_merged" / "result.json").read_text())
    assert (merged["ratio"], merged["density"]) == (0.0, 1.0)
    assert result.results["density"] < 1.0


def test_the_search_writes_its_history(done):
    world, _, result = done
    rows = lines(world.root / "run" / "stages" / "search" / "history.jsonl")
    assert [row["round"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= result.results["search"]["rounds"] == 3
    assert all(len(row["baseline"]) == 3 and len(row["candidates"][0]) == 3 for row in rows)


def test_no_record_holds_a_path_of_this_machine(done):
    world, _, _ = done
    folder = world.root / "run"
    own = re.compile(re.escape(str(world.root.parent.parent)))
    for name, text in tree_bytes(folder).items():
        if name != "config.yaml" and not name.startswith("export/merged"):
            assert not own.search(text.decode("utf-8", "replace")), name
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["command"] == ["grasp-lora", "run", "--config", "c.yaml"]
    assert manifest["seeds"]["run"] == 42
    assert set(manifest["inputs"]) == {
        "model", "data.source.train", "data.source.dev",
        *(f"data.target.{split}" for split in ("train", "dev", "micro_dev", "test")),
    }  # fmt: skip
    assert all(len(entry["sha256"]) == 64 for entry in manifest["inputs"].values())


def test_checkpoints_are_gone_and_the_configuration_reads_back(done):
    world, config, _ = done
    assert not list((world.root / "run").rglob("*-step*"))
    assert saved_config(world.root / "run") == config


@pytest.mark.parametrize("name", ["done", "three"])
def test_the_exported_adapter_is_the_model_in_memory(name, request):
    world, config, result = request.getfixturevalue(name)
    _, final = final_of(config)
    base = load_base(config.model)
    factors = grasp_factors(final)
    with torch.no_grad(), Injection(base.model, factors) as injection, injection.active(factors):
        expected = base.model(PROMPTS).logits
    with torch.no_grad():
        plain = load_plain(world.model)(PROMPTS).logits
        served = with_peft(world.model, result.adapter)
        seen = served(PROMPTS).logits
        merged = served.merge_and_unload()(PROMPTS).logits
    bound = 1e-5 * expected.abs().max()
    assert (seen - expected).abs().max() <= bound
    assert (merged - expected).abs().max() <= bound
    assert (plain - expected).abs().max() > 100 * bound


def test_the_merged_model_is_base_plus_adapter(done):
    world, _, result = done
    with torch.no_grad():
        expected = with_peft(world.model, result.adapter)(PROMPTS).logits
        seen = load_plain(world.root / "run" / "export" / "merged")(PROMPTS).logits
    assert (seen - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_exported_folder_is_plain_peft(done, three):
    for (world, _, result), rank in ((done, 2), (three, 6)):
        config = json.loads((result.adapter / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == rank == result.results["export"]["rank"]
        assert config["bias"] == "none"
        assert isinstance(config["target_modules"], list)
        assert config["base_model_name_or_path"] == "pico-llama"
        assert {p.name for p in result.adapter.iterdir()} == {
            "README.md", "adapter_config.json", "adapter_model.safetensors",
        }  # fmt: skip
        assert "| grasp |" in (result.adapter / "README.md").read_text()


def test_the_sparse_file_restores_bit_for_bit(done, three):
    for world, config, result in (done, three):
        _, final = final_of(config)
        path = world.root / "run" / result.results["export"]["sparse"]
        restored = load_sparse(path)
        assert path.stat().st_size == result.results["export"]["sparse_bytes"]
        for key, tensor in final.bank.tensors().items():
            assert torch.equal(restored.tensors[key].view(torch.int32), tensor.view(torch.int32))
            assert torch.equal(restored.masks[key], final.bank.masks()[key])


def test_what_every_adapter_pruned_stays_zero_and_densities_are_counted(done):
    _, config, result = done
    _, final = final_of(config)
    exported = safetensors.torch.load_file(result.adapter / "adapter_model.safetensors")
    masks = final.bank.masks()
    zero = total = 0
    for key, tensor in exported.items():
        module, part = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key).groups()
        gone = ~(masks[f"{module}.0.{part}"] | masks[f"{module}.1.{part}"])
        assert (tensor[gone] == 0).all()
        zero, total = zero + int((tensor == 0).sum()), total + tensor.numel()
    assert zero > 0
    export = result.results["export"]
    assert export["density_after_summing"] == pytest.approx(1 - zero / total, abs=1e-12)
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert export["density_before_summing"] == result.results["density"] == kept


def test_given_adapters_are_not_trained_again(three):
    world, _, result = three
    stages = {path.name for path in (world.root / "run" / "stages").iterdir()}
    assert not {"source_adapter", "target_adapter"} & stages
    manifest = json.loads((world.root / "run" / "manifest.json").read_text())
    assert {"adapters.source", "adapters.target", "adapters.others.0"} <= set(manifest["inputs"])


def test_an_adapter_of_another_base_is_refused_unless_allowed(world, no_weights):
    given = world.adapter("en", base="someone/other-base")
    with pytest.raises(AdapterError, match=r"other-base.*allow_other_base"):
        run_pipeline(world.config(adapters__source=given))
    assert not (world.root / "run").exists()
    make_plan(world.config(adapters__source=given, adapters__allow_other_base=True))


def test_different_ranks_need_sum_deltas(world, no_weights):
    changes = {"adapters__source": world.adapter("en", r=3), "adapters__target": world.adapter("ar", r=2)}
    with pytest.raises(AdapterError, match=r"source: r=3, target: r=2.*merge\.rule=sum_deltas"):
        run_pipeline(world.config(**changes))
    with pytest.raises(AdapterError, match="source: r=3, target: r=2"):  # the one still to be trained has lora.r
        run_pipeline(world.config(**{**changes, "adapters__target": None}))
    make_plan(world.config(**changes, merge__rule="sum_deltas"))


def test_the_same_call_gives_the_same_bits(done, tmp_path):
    world, config, result = done
    again = api.run(config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path / "b")})}))
    left, right = dict(again.results), dict(result.results)
    assert left.pop("deployment").keys() == right.pop("deployment").keys()
    assert left == right
    assert tree_bytes(again.folder / "export") == tree_bytes(result.folder / "export")


def test_without_a_test_split_nothing_is_scored_and_that_is_said(world):
    class Heard:
        warnings: list = []

        def __getattr__(self, name):
            from grasp_lora.runs import QuietProgress

            return getattr(QuietProgress(), name)

        def warn(self, text):
            self.warnings.append(text)

    heard = Heard()
    result = run_pipeline(world.config(data__target__test=None, evaluate__deployment=True), heard)
    assert (result.results["systems"], result.results["deployment"]) == ({}, None)
    assert any("nothing is scored" in text for text in heard.warnings)


def test_a_finished_run_is_not_touched_without_being_asked(done):
    world, config, _ = done
    before = tree_bytes(world.root / "run")
    with pytest.raises(RunError, match="already holds a run"):
        run_pipeline(config)
    assert tree_bytes(world.root / "run") == before


def test_what_a_report_needs_is_measured_and_recorded(done, three):
    for world, config, result in (done, three):
        _, final = final_of(config)
        search = result.results["search"]
        assert search["estimate"]["p_star"] == search["p_star"]
        assert len(search["estimate"]["grid"]) == len(search["estimate"]["mean"]) > 100
        counted = {key: int(mask.sum()) / mask.numel() for key, mask in final.bank.masks().items()}
        assert result.results["finalize"]["densities"] == pytest.approx(counted)
        exported = safetensors.torch.load_file(result.adapter / "adapter_model.safetensors")
        if len({slot.shape for slot in final.bank.slots if slot.part == "A"}) > 1:
            continue  # factors of lower rank are padded with zeros in the file
        shares = {
            re.sub(r"base_model\.model\.(.+)\.lora_([AB])\.weight", r"\1.\2", key): int((t != 0).sum()) / t.numel()
            for key, t in exported.items()
        }
        assert result.results["export"]["densities_after_summing"] == pytest.approx(shares)
        events = lines(world.root / "run" / "stages" / "search" / "events.jsonl")
        assert (events[0]["kind"], events[0]["steps"]) == ("start", config.search.epochs * 3)


def test_a_report_of_a_real_run_lacks_nothing(done, three, tmp_path):
    for index, (_, _, result) in enumerate((done, three)):
        record = read_run(result.folder)
        assert record.missing == ()
        content = run_content(record, "run1", "run")
        assert [section.key for section in content.sections] == [
            "scores", "learned", "diagnostics", "masks", "losses", "examples", "cost", "provenance",
        ]  # fmt: skip
        assert len(content.comparisons) == len(result.results["systems"]) - 1
        written = write_report([result.folder], tmp_path / f"{index}.html", zoom=False)
        assert content.verdict.sentence.split("”")[0] in written.html.read_text()
        assert str(result.folder.parent) not in written.html.read_text() + written.markdown.read_text()
