"""Seconds of a run before it runs: loads are the passes that run, lines go through what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from world import World

from grasp_lora.config import TrainingConfig, build_config
from grasp_lora.data import Encoded
from grasp_lora.errors import RunError, TrainingError
from grasp_lora.pipeline.bench import calibrate, record, recorded, workloads
from grasp_lora.pipeline.costs import (
    CostModel,
    Line,
    Load,
    answering_loads,
    forward_load,
    training_load,
)
from grasp_lora.pipeline.plan import make_plan
from grasp_lora.pipeline.prediction import predicted_plan
from grasp_lora.pipeline.story import run_pipeline
from grasp_lora.runs import QuietProgress
from grasp_lora.training import TrainingLoop

ITEMS = [Encoded(str(n), tuple(range(n)), n - 1) for n in (5, 9, 3, 4, 8, 2)]
SPEED = build_config({}).speed


def test_loads_count_padding_and_passes():
    plain = SPEED.model_copy(update={"pack_accumulation": False})
    load = training_load(plain, TrainingConfig(batch_size=6), ITEMS, 0)
    assert load == Load("train", 1, 6 * 9)
    packed = training_load(SPEED.model_copy(update={"tokens_per_pass": 18}), TrainingConfig(accumulation=6), ITEMS, 0)
    assert packed == Load("train", 3, 18 + 15 + 2)
    assert forward_load(ITEMS, 3, candidates=4) == Load("forward", 2, 4 * (3 * 9 + 3 * 4))
    assert forward_load(ITEMS, 3, candidates=0).passes == forward_load([], 3).passes == 0
    assert answering_loads(ITEMS, 4, 10) == [Load("forward", 2, 4 * 9 + 2 * 3), Load("decode", 2 * 9, 6 * 9)]
    assert Load("train", 3, 10).times(0.5) == Load("train", 2, 5)


def test_seconds_are_lines_of_passes_and_tokens():
    costs = CostModel({"train": Line((1.0, 2.0), (0.1, 0.1)), "forward": Line((0.5, 0.5))}, "here", 0.5)
    low, high = costs.seconds([Load("train", 2, 10), Load("forward", 4), Load("decode", 0)])
    assert (low, high) == pytest.approx(((2 + 1 + 2) * 0.5, (4 + 1 + 2) * 1.5))
    assert costs.seconds([]) == (0.0, 0.0)


def test_the_loads_of_a_plan_hold_the_tokens_that_are_counted(tmp_path, pico_folder):
    """Without padding (one example a pass) the loads' tokens are the plan's token passes, which the run counts."""
    world = World(tmp_path, pico_folder)
    config = world.config(
        search__batch_size=1, search__eval_batch_size=1, finalize__batch_size=1, finalize__eval_batch_size=1,
        train_source__batch_size=1, train_source__eval_batch_size=1, train_target__batch_size=1,
        train_target__eval_batch_size=1, evaluate__batch_size=1, prune__importance="activation",
        finalize__mask="dynamic", controller__p_min=0.3, train_target__patience=None, finalize__patience=None,
    )  # fmt: skip
    plan = make_plan(config)
    for stage in plan.stages:
        factors = {"train": 4, "forward": 2}
        passes = sum(factors[load.kind] * load.tokens for load in stage.loads if load.kind in factors)
        if stage.name != "evaluate":  # its prompts are shorter than the examples that stand for them
            assert (stage.name, passes) == (stage.name, stage.token_passes)
    cost = run_pipeline(config).results["cost"]
    assert {name: row["token_passes"] for name, row in cost.items()} == {
        stage.name: stage.token_passes for stage in plan.stages if stage.name in cost
    }
    loads = {stage.name: {load.kind: load.passes for load in stage.loads} for stage in plan.stages}
    search = next(stage for stage in plan.stages if stage.name == "search")
    assert loads["search"]["round"] == search.steps // 2 + 1
    assert loads["finalize"]["select"] == next(s.steps for s in plan.stages if s.name == "finalize")


def test_a_measurement_predicts_every_stage(world, no_weights):
    plan = predicted_plan(world.config())
    found = plan.prediction
    assert found.why_not is None
    assert set(found.stages) == {stage.name for stage in plan.stages}
    assert all(0 < low <= high for low, high in found.stages.values())
    assert found.total == pytest.approx(tuple(map(sum, zip(*found.stages.values(), strict=True))))
    assert "all layers" in found.source


def test_a_search_that_trains_nothing_is_predicted_too(world):
    plan = predicted_plan(world.config(search__epochs=0))
    search = next(stage for stage in plan.stages if stage.name == "search")
    kinds = {load.kind: load.passes for load in search.loads if load.passes}
    assert "train" not in kinds
    assert kinds["round"] > 1
    assert plan.prediction.stages["search"][0] > 0


def test_a_deep_model_is_measured_at_two_depths(world, monkeypatch, no_weights):
    depths = []

    def measured(_config, _typical, settings):
        depth = settings.get_text_config().num_hidden_layers
        depths.append(depth)
        lines = {
            kind: Line((1.0 + depth, 2.0 + depth), (0.5, 0.5)) for kind in ("train", "forward", "decode", "select")
        }
        return lines | {"round": Line((3.0, 3.0))}

    monkeypatch.setattr(calibrate, "SMALL", 0)
    monkeypatch.setattr(calibrate, "_measured", measured)
    monkeypatch.setattr(calibrate, "_depth", lambda _settings: 11)
    costs = calibrate.calibrate(world.config(), calibrate.Typical(10, 2))
    assert depths == [2, 4]
    assert costs.lines["train"] == Line((12.0, 13.0), (0.5, 0.5))
    assert costs.lines["round"] == Line((3.0, 3.0))
    assert "2 and 4 of its 11 layers" in costs.source


def test_cutting_a_model_cuts_its_kinds_of_layers_too():
    from transformers import Gemma2Config

    cut = calibrate._cut(Gemma2Config(num_hidden_layers=4), 1)
    assert (cut.num_hidden_layers, len(cut.layer_types)) == (1, 1)


def pico_record(path, monkeypatch, *sets):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 48, "vocab_size": 64}  # fmt: skip
    pico = workloads.Workload("pico", shape, 5, 9, 2, 64, train=6, micro_dev=4, generated=3, prompt=8, new_tokens=3)
    monkeypatch.setitem(workloads.WORKLOADS, "pico", pico)
    usual = ("model.device=cpu", "controller.interval=3", "search.epochs=2", "finalize.epochs=3")
    record.bench(record.Request(["pico"], (*usual, *sets), repeats=1, out=path), QuietProgress())
    return path


@pytest.fixture
def bench_record(tmp_path, monkeypatch):
    return pico_record(tmp_path / "bench.json", monkeypatch)


def test_a_record_of_bench_predicts_too(world, bench_record, cli):
    saved = json.loads(bench_record.read_text())["results"][0]
    costs = recorded.recorded_costs(world.config(), bench_record)
    with torch.device("meta"):
        body = workloads.body_parameters(calibrate.skeleton(world.config().model))
    expected = body / saved["body_parameters"] * saved["pieces"]["training step"]["mean_s"]
    assert costs.lines["train"].seconds(Load("train", 1, saved["mean_tokens"]["train"]))[0] == pytest.approx(expected)
    said = cli("run", "--config", world.file(), "--dry-run", "--bench-record", bench_record)
    assert said.code == 0
    assert "pico in bench.json, measured on" in said.out
    assert "if none stops early" in said.out


@pytest.mark.parametrize(
    ("sets", "examples"),
    [
        (("search.batch_size=2", "controller.interval=2"), 2),
        (("search.accumulation=2", "controller.interval=2"), 2),
        (("search.batch_size=2", "search.accumulation=2", "controller.interval=2"), 3),  # six examples in two updates
        (("search.batch_size=100", "search.epochs=4", "controller.interval=2"), 6),
    ],
)
def test_a_recorded_step_of_several_examples_is_no_step_of_one(sets, examples, world, tmp_path, monkeypatch):
    path = pico_record(tmp_path / "batch.json", monkeypatch, *sets)
    saved = json.loads(path.read_text())["results"][0]
    ratio = recorded._body(world.config()) / saved["body_parameters"]
    line = recorded.recorded_costs(world.config(), path).lines["train"]
    step = Load("train", 1, examples * saved["mean_tokens"]["train"])
    assert line.seconds(step)[0] == pytest.approx(ratio * saved["pieces"]["training step"]["mean_s"])


def test_a_record_without_answers_predicts_all_but_what_answers(world, cli):
    name = Path(__file__).parents[2] / "benchmarks" / "bench" / "xlsum-8b-24gib-h100.json"
    plan = predicted_plan(world.config(), name)
    found = plan.prediction
    assert set(found.stages) == {stage.name for stage in plan.stages} - {"evaluate"}
    assert found.why_not.startswith("evaluate: the record has no time of answers")
    assert found.total == pytest.approx(tuple(map(sum, zip(*found.stages.values(), strict=True))))
    said = cli("run", "--config", world.file(), "--dry-run", "--bench-record", name)
    shown = " ".join(said.out.split())
    assert said.code == 0
    assert "seconds are not predicted: evaluate: the record has no time of answers" in shown
    assert "the other stages" in shown


@pytest.mark.parametrize(
    ("place", "lacks"),
    [
        (("body_parameters",), "'body_parameters'"),
        (("generation", "median_s"), "'median_s'"),
        (("pieces", "training step"), "'training step'"),
        (("config", "search", "batch_size"), "'batch_size'"),
    ],
)
def test_a_record_that_lacks_something_is_refused(place, lacks, world, tmp_path, cli):
    made = json.loads((Path(__file__).parents[2] / "benchmarks" / "bench" / "mlqa-8b-h200.json").read_text())
    *parents, leaf = place
    node = made["results"][0]
    for name in parents:
        node = node[name]
    del node[leaf]
    path = tmp_path / "torn.json"
    path.write_text(json.dumps(made))
    said = cli("run", "--config", world.file(), "--dry-run", "--bench-record", path)
    assert said.code == 6
    assert f"with a workload in it (it lacks {lacks})" in said.error.replace("\n", " ")


@pytest.mark.parametrize(
    "text",
    ["[]", "3", *(f'{{"format": 1, "results": {results}}}' for results in ("null", "[3]", '[{"pieces": {}}]')),
     '{"format": 2, "results": []}'],
)  # fmt: skip
def test_a_file_of_another_kind_is_no_record(text, world, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(RunError, match="is no record of `grasp-lora bench` with a workload in it"):
        recorded.recorded_costs(world.config(), tmp_path / "other.json")


def test_what_is_no_record_is_refused(world, tmp_path, cli):
    (tmp_path / "other.json").write_text('{"format": 1, "results": []}')
    said = cli("run", "--config", world.file(), "--dry-run", "--bench-record", tmp_path / "other.json")
    assert said.code == 6
    assert "is no record of `grasp-lora bench`" in said.error.replace("\n", " ")
    said = cli("run", "--config", world.file(), "--bench-record", tmp_path / "other.json")
    assert (said.code, "Use it with --dry-run" in said.error) == (2, True)
    assert not (world.root / "run").exists()


def test_four_bits_are_not_predicted_without_a_record(world, monkeypatch):
    config = world.config(model__quantization="torchao-8bit")
    monkeypatch.setattr("grasp_lora.pipeline.prediction.make_plan", lambda _config: make_plan(world.config()))
    found = predicted_plan(config).prediction
    assert "Quantized weights are not made at random" in found.why_not
    assert found.stages == {}


def test_a_learning_rate_for_other_weights_does_not_stop_a_measurement(world):
    found = predicted_plan(world.config(search__lr=1e6, search__lr_decay=1e9, search__weight_decay=1e9)).prediction
    assert found.why_not is None
    assert found.stages["search"][1] > 0


def test_as_many_adapters_are_measured_as_are_merged(world):
    other = str(world.adapter("third"))
    found = predicted_plan(world.config(adapters__others=[other], merge__weights=[0.5, 0.25, 0.25])).prediction
    assert found.why_not is None


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (TrainingError("the loss became nan at step 2 of training. The last checkpoint is kept. Lower it."),
         "the loss became nan at step 2 of training"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"),
         "CUDA out of memory. Tried to allocate 9 GiB."),
    ],
)  # fmt: skip
def test_a_measurement_that_fails_leaves_the_plan(fails, said, world, cli, monkeypatch):
    def stop(*_, **__):
        raise fails

    monkeypatch.setattr(TrainingLoop, "_epochs", stop)  # as a GPU's full memory does
    plan = predicted_plan(world.config())
    assert plan.prediction.why_not == said
    shown = cli("run", "--config", world.file(), "--dry-run")
    assert shown.code == 0
    assert f"seconds are not predicted: {said}" in " ".join(shown.out.split())


def test_attention_that_is_not_there_leaves_the_plan(world, cli):
    shown = cli("run", "--config", world.file(), "--dry-run", "--set", "model.attn_implementation=nothing")
    assert shown.code == 0
    assert "not predicted: model.attn_implementation: 'nothing' cannot be used" in " ".join(shown.out.split())


def test_a_plan_is_not_resumed(world, cli):
    said = cli("run", "--config", world.file(), "--dry-run", "--resume")
    assert said.code == 2
    assert "--dry-run plans a whole one" in said.error.replace("\n", " ")
