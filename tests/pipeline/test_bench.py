"""`bench`: the workloads are the defined ones, the record adds up, the three ways of a round agree."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_bench import PICO, SMALL, words
from transformers import AutoModelForCausalLM, LlamaConfig

from grasp_lora.cli.bench import show_record
from grasp_lora.config import build_config
from grasp_lora.pipeline import footprint
from grasp_lora.pipeline.bench import clock, record, workloads
from grasp_lora.pipeline.bench.counting import Counter
from grasp_lora.pipeline.bench.demo_rounds import measure_rounds
from grasp_lora.pipeline.bench.measure import Subject, _agreement
from grasp_lora.pipeline.bench.stages import stage_times
from grasp_lora.pipeline.bench.variants import PIECES, planned, switches
from grasp_lora.pipeline.bench.workloads import mean_tokens
from grasp_lora.runs import QuietProgress
from pico import pico_model


@pytest.fixture
def pico(monkeypatch):
    monkeypatch.setitem(workloads.WORKLOADS, "pico", PICO)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A record with everything in it, and its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(workloads.WORKLOADS, "pico", PICO)
        path = tmp_path_factory.mktemp("bench") / "record.json"
        request = record.Request(["pico"], SMALL, repeats=2, scaling=True, variants=True, out=path)
        return record.bench(request, QuietProgress())[0], path


@pytest.mark.parametrize(("name", "train", "micro_dev"), [("mlqa-8b", 358, 379), ("xlsum-8b", 1299, 1315)])
def test_lengths_are_those_of_the_definition(name, train, micro_dev):
    workload = workloads.WORKLOADS[name]
    drawn = random.Random(0)
    wanted = [drawn.randint(workload.low, workload.high) for _ in range(66)]
    splits = workload.examples()
    both = (*splits["train"], *splits["micro_dev"])
    assert [item.prompt_length for item in both] == wanted
    assert {len(item.input_ids) - item.prompt_length for item in both} == {workload.answer}
    assert [round(mean_tokens(splits[split])) for split in ("train", "micro_dev")] == [train, micro_dev]
    config = workload.config()
    assert (config.search.epochs * 50, config.finalize.epochs * -(-50 // config.finalize.accumulation)) == (500, 70)
    assert (config.search.batch_size, config.controller.candidates, config.controller.interval) == (1, 3, 10)
    assert {len(prompt) for prompt in workloads.WORKLOADS["mlqa-8b"].prompts()} == {363}


def test_the_body_of_a_model_in_4_bits_is_that_of_the_model():
    model = pico_model("llama")
    body = workloads.body_parameters(model)
    weight = model.model.layers[0].self_attn.q_proj.weight
    packed = torch.nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=weight.shape)  # as bitsandbytes keeps it
    model.model.layers[0].self_attn.q_proj.weight = packed
    assert workloads.body_parameters(model) == body


def test_the_body_is_all_but_embeddings_and_head_and_the_floor_is_the_defined_one():
    workload = workloads.WORKLOADS["mlqa-8b"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**workload.shape), dtype=torch.bfloat16)
    assert workloads.body_parameters(model) == pytest.approx(6.98e9, rel=1e-3)
    counter, splits, rate = Counter(model, 6_815_744), workload.examples(), 805e12
    step = counter.training(splits["train"]).body_flops / 50 / rate
    probed = counter.forward(splits["micro_dev"], 4)
    assert step == pytest.approx(0.0124, rel=0.01)
    assert probed.body_flops / rate == pytest.approx(0.42, rel=0.01)
    assert (500 + 500) * step + 50 * probed.body_flops / rate == pytest.approx(33.5, rel=0.01)
    # 15 GB of weights are read once; attention, head and adapters add little at these lengths.
    assert probed.bytes == pytest.approx(15.01e9, rel=0.01)
    assert 1.0 < probed.flops / probed.body_flops < 1.1
    written = counter.generation(workload)
    assert written.body_flops == pytest.approx(2 * 6.98e9 * 25 * (363 + 63), rel=1e-3)
    assert written.bytes > 64 * 15e9


def test_a_record_adds_up(measured):
    made, path = measured
    assert json.loads(path.read_text()) == json.loads(json.dumps(made))
    (result,) = made["results"]
    run, pieces = result["run"], result["pieces"]
    assert (run["steps"], run["rounds"], run["updates"], run["extrapolated"]) == (27, 9, 9, False)
    assert run["seconds"] == run["timed_s"] == pytest.approx(run["search_s"] + run["finalize_s"])
    for row in pieces.values():
        assert row["min_s"] <= row["median_s"] <= row["max_s"]
        assert len(row["repeats_s"]) == row["repeats"]
    # Three epochs: the search's first and the final run's first two warm up; three of nine steps have a round.
    counts = [(len(pieces[p]["warm_up_s"]), pieces[p]["repeats"]) for p in ("training step", "round", "final update")]
    assert counts == [(6, 12), (3, 6), (6, 3)]
    splits = PICO.examples()
    per_token = 2 * result["body_parameters"] / result["ceilings"]["flops_per_s"]
    tokens, probed = (sum(len(item.input_ids) for item in splits[name]) for name in ("train", "micro_dev"))
    floors = {row["piece"]: row["floor_s"] for row in result["roofline"]}
    assert floors["training step"] == pytest.approx(2 * per_token * tokens / 9)
    assert floors["round"] == pytest.approx(3 * per_token * probed)
    assert floors["final update"] == pytest.approx(2 * per_token * tokens / 3)
    assert run["floor_s"] == pytest.approx(
        27 * floors["training step"] + 9 * floors["round"] + 9 * floors["final update"]
    )
    beside = 9 * pieces["round without probing"]["mean_s"] + 9 * pieces["selection of an update"]["mean_s"]
    assert run["masks_policy_commit_share"] == pytest.approx(beside / run["seconds"])


def test_what_the_stages_did_is_what_was_asked(measured):
    (result,) = measured[0]["results"]
    counted = result["counted"]
    tokens = sum(len(item.input_ids) for item in PICO.examples()["train"])
    assert counted["search_trained_tokens"] == counted["final_trained_tokens"] == 3 * tokens
    assert counted["rounds"] == 9
    assert result["config"]["finalize"]["mask"] == "dynamic"
    assert result["generation"]["agreeing_tokens"] == PICO.new_tokens
    assert _agreement([1, 2, 3], [1, 2, 4]) == 2
    assert result["peak_memory"]["search"]["bytes"] > 0


def test_every_switch_has_its_line(measured):
    (result,) = measured[0]["results"]
    config = build_config({})
    names = [row["variant"] for row in result["variants"]]
    assert (names[0], names[-1]) == ("as configured", "as configured, again")
    assert {name.partition("=")[0] for name in names if name.startswith("speed.")} == {
        f"speed.{name}" for name in switches(config)
    }
    first, last = result["variants"][0], result["variants"][-1]
    assert first["gained"]["training step"] + last["gained"]["training step"] == pytest.approx(2.0)


def test_other_settings_can_be_compared_too():
    sets = ("search.lr=0.1",)
    config = PICO.config(sets)
    given = ("speed.tokens_per_pass=7", "speed.static_cache=false controller.candidates=2")
    one, two = planned(config, given, sets, PICO).values()
    assert (one.speed.tokens_per_pass, one.search.lr) == (7, 0.1)
    assert (two.speed.static_cache, two.controller.candidates) == (False, 2)
    off = [
        *(f"speed.{name}={str(value).lower()}" for name, value in switches(config).items()), "all of these off",
    ]  # fmt: skip
    assert list(planned(config, (), sets, PICO, off=True)) == off
    assert list(planned(config, given, sets, PICO, off=True)) == [*off, *given]
    assert planned(config, (), sets, PICO) == {}


def test_costs_are_shown_against_every_size(measured):
    (result,) = measured[0]["results"]
    kinds = {(row["piece"], row["what"]) for row in result["scaling"]}
    assert kinds == {
        ("probing", "candidates"), ("probing", "micro-dev examples"), ("probing", "examples in a pass"),
        ("probing", "adapters"), ("probing", "length"), ("training step", "batch"), ("training step", "adapters"),
        ("training step", "length"),
    }  # fmt: skip
    probed = {row["value"]: row["tokens"] for row in result["scaling"] if row["what"] == "candidates"}
    assert probed[7] == 4 * probed[1]


def test_a_record_names_no_place_of_this_machine(measured):
    text, path = json.dumps(measured[0]), measured[1]
    assert str(Path.home()) not in text
    assert str(path.parent) not in text
    assert {"versions", "hardware", "code", "started", "request"} <= measured[0].keys()


def test_switches_are_what_is_on():
    config = build_config({"speed": {"static_cache": False, "read_losses_every": 1}})
    assert not {"static_cache", "read_losses_every"} & switches(config).keys()
    assert switches(config)["cudnn_from"] == 1
    assert switches(config)["pack_accumulation"] is False
    assert "tokens_per_pass" not in switches(config)


def test_steps_and_rounds_are_told_apart_by_their_marks():
    durations = [
        ("opening", 1.0), ("step", 5.0), ("round", 7.0), ("step", 0.0), ("epoch", 0.5),
        ("step", 1.0), ("round", 3.0), ("step", 0.5), ("step", 2.0), ("epoch", 0.0),
    ]  # fmt: skip
    assert stage_times(20.0, durations[:-1], 1) == stage_times(20.0, durations, 1)  # stopped before the epoch's end
    times = stage_times(20.0, durations, 1)
    assert times.opening == 1.0
    assert times.step() == clock.Timing((5.0,), (1.0, 2.0))
    assert times.round() == clock.Timing((5.5,), (2.0,))
    assert times.warm_up() == pytest.approx((5.0 + 7.0) - (2 * 1.5 + 2.0))
    cold = stage_times(3.0, durations[5:], 1)
    assert (cold.step().repeats, cold.warm_up()) == ((1.0, 2.0), 0.0)


def test_the_random_model_is_made_once_in_its_own_precision():
    config = PICO.config(["model.dtype=bfloat16", "model.device=cpu", "model.gradient_checkpointing=true"])
    state = torch.get_rng_state()
    subject = Subject(dataclasses.replace(PICO), config)
    assert torch.equal(torch.get_rng_state(), state)
    model = subject.setup.base.model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_the_three_ways_of_a_round_give_the_same_losses():
    result = measure_rounds(1, ["controller.candidates=1"])
    assert result["examples"] == 16
    assert result["largest_difference"] < 1e-4
    medians = {name: times["median_s"] for name, times in result["seconds"].items()}
    assert result["gain"]["per_example"] == pytest.approx(medians["per_example"] / medians["one_pass"])


def test_timings_leave_the_first_calls_out():
    calls = []
    timing = clock.timed(lambda: calls.append(1), 3, torch.device("cpu"), warm_up=2)
    assert (len(calls), len(timing.warm_up), len(timing.repeats)) == (5, 2, 3)
    assert clock.Timing((9.0,), (1.0, 2.0, 6.0)).median == 2.0
    one, two = clock.in_turn([lambda: calls.append(2), lambda: calls.append(3)], 2, torch.device("cpu"))
    assert calls[5:] == [2, 3] * 3
    assert (len(one.repeats), len(two.repeats)) == (2, 2)


def test_a_quick_run_is_extrapolated_and_says_so(pico, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = json.loads(cli(*words("--quick", "--json")).out)
    run = shown["results"][0]["run"]
    assert run["extrapolated"]
    assert run["seconds"] == run["added_up_s"]
    assert (tmp_path / shown["file"]).is_file()
    assert Path(shown["file"]).parent == Path("runs/bench")


def test_a_quick_run_prints_tables(pico, cli, tmp_path):
    said = cli(*words("--quick", "--out", tmp_path / "r.json"))
    assert said.code == 0
    for phrase in ("training step", "round without probing", "whole run (27 steps", "extrapolated", "x floor",
                   "per new token", "peak memory"):  # fmt: skip
        assert phrase in said.out


def test_every_part_of_a_record_is_shown(measured, capsys):
    show_record(*measured, as_json=False)
    said = capsys.readouterr().out
    for phrase in ("timed as a whole", "speed.static_cache=false", "as configured, again", "probing, candidates"):
        assert phrase in said


def test_answers_that_do_not_fit_leave_the_rest_of_the_record(measured, pico, cli, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr("grasp_lora.pipeline.bench.measure.generation_seconds", full)
    said = cli(*words("--quick", "--out", tmp_path / "r.json"))
    assert said.code == 0
    assert "a batch does not fit (tried to allocate 9 GiB)" in said.out
    assert "whole run (27 steps" in said.out


def test_a_warm_up_that_took_no_longer_is_below_noise(measured, capsys):
    made, path = measured
    (result,) = made["results"]
    run = result["run"] | {"compile_capture_warm_up_s": -0.06}
    rows = [row | {"seconds": row["seconds"] | {"warm_up": -0.01}} for row in result["variants"]]
    show_record({**made, "results": [result | {"run": run, "variants": rows}]}, path, as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "compile, capture and warm-up below noise; masks" in said
    assert "-0.0" not in said


def test_the_page_shows_the_recorded_rounds():
    root = Path(__file__).parents[2]
    made = json.loads((root / "benchmarks" / "bench" / "demo-cpu.json").read_text(encoding="utf-8"))
    (result,) = made["results"]
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    gain, used = ({"one_pass": 1.0} | result[key] for key in ("gain", "gain_cpu"))
    for way, times in result["seconds"].items():
        assert f"| {times['median_s']:.3f} | {gain[way]:.2f} | {used[way]:.2f} |" in page
    assert result["largest_difference"] < 4e-6
    assert made["code"]["dirty"] is False
    assert f"(load {result['load_before']:.1f} before, {result['load_after']:.1f}" in page.replace("\n", " ")


def gpu_result(name):
    root = Path(__file__).parents[2]
    made = json.loads((root / "benchmarks" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
    (result,) = made["results"]
    return made, result


def peak_gib(result, kind="bytes"):
    return max(part[kind] for part in result["peak_memory"].values()) / 2**30


ON_GPUS = ("mlqa-8b-h200", "mlqa-8b-h200-fresh", "mlqa-8b-h100", "xlsum-8b-h200")


def test_the_page_shows_the_records_of_gpus():
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    found = [gpu_result(name)[1] for name in ON_GPUS]
    assert not any(result["run"]["extrapolated"] for result in found)

    def check(label, shown, goals):
        cells = [*map(shown, found[:3]), goals[0], shown(found[3]), goals[1]]
        assert f"| {label} | {' | '.join(cells)} |" in page

    for label, name, digits, goals in (
        ("training step, batch 1", "training step", 4, ("0.035 s", "0.085 s")),
        ("round, 4 x 16 examples", "round", 3, ("0.62 s", "2.1 s")),
        ("final update of 8, importance included", "final update", 3, ("", "")),
    ):
        check(label, lambda r, n=name, d=digits: f"{r['pieces'][n]['median_s']:.{d}f} s", goals)
    run = "run of 500 steps, 50 rounds, 70 updates"
    check(run, lambda r: f"{r['run']['seconds'] - r['run']['opening_s']:.1f} s", ("65 s", "200 s"))
    check(
        "of it compiling, capturing, warming up", lambda r: f"{r['run']['compile_capture_warm_up_s']:.1f} s", ("", "")
    )
    check("with the default policy's opening look", lambda r: f"{r['run']['seconds']:.1f} s", ("", ""))
    check("floor of the run", lambda r: f"{r['run']['floor_s']:.1f} s", ("", ""))
    share = "masks, policy and commit, share of the run"
    check(share, lambda r: f"{100 * r['run']['masks_policy_commit_share']:.1f} %", ("2 %", "2 %"))
    answered = "generation, per new token and example at batch 25"
    check(answered, lambda r: f"{r['generation']['per_new_token_and_example_s']:.5f} s", ("0.0015 s", ""))
    check("peak memory, allocated", lambda r: f"{peak_gib(r):.1f} GiB", ("40 GiB", "40 GiB"))
    check("peak memory, held by the allocator", lambda r: f"{peak_gib(r, 'reserved_bytes'):.1f} GiB", ("", ""))


@pytest.mark.parametrize("name", ["mlqa-8b", "xlsum-8b"])
def test_the_estimate_of_memory_is_what_a_gpu_took(name, monkeypatch):
    monkeypatch.setattr(footprint, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(footprint, "kernels_fit", lambda _: True)
    workload, (_, result) = workloads.WORKLOADS[name], gpu_result(f"{name}-h200")
    config, described = workload.config(["model.dtype=bfloat16"]), LlamaConfig(**workload.shape)
    parts, parameters = workload.examples(), 8_030_261_248
    for stage in ("search", "finalize"):
        trained = footprint.Trained(getattr(config, stage), parts["train"], padded=stage == "search")
        judged = footprint.Judged(parts["micro_dev"], config.search.eval_batch_size, 1 + config.controller.candidates)
        estimated = footprint.peak_bytes(
            config, described, parameters=parameters, trainable=result["trainable"],
            training=footprint.training_pass(config, trained),
            forward=footprint.judging_pass(config, described, parameters, judged),
        )  # fmt: skip
        assert estimated == pytest.approx(result["peak_memory"][stage]["bytes"], rel=0.06)


def test_the_page_shows_what_each_switch_gains():
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    _, result = gpu_result("mlqa-8b-h100")
    rows = {row["variant"]: row["gained"] for row in result["variants"] if "as configured" not in row["variant"]}
    assert len(rows) == 12
    for variant, gained in rows.items():
        shown = " | ".join(f"{gained[piece]:.2f}" for piece in PIECES)
        name = variant.removeprefix("speed.").removesuffix("=false")
        start = "| all of these |" if " " in name else f"| `{name}` |"
        lines = [line for line in page.splitlines() if line.startswith(start) and line.endswith(f"| {shown} |")]
        assert len(lines) == 1, variant


def test_a_card_of_24_gb_holds_both_workloads():
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8").replace("\n", " ")
    for name, digits in (("mlqa-8b-24gib-h100", (4, 3, 3)), ("xlsum-8b-24gib-h100", (3, 2, 2))):
        made, result = gpu_result(name)
        assert made["max_memory_gib"] == 24
        assert peak_gib(result) < 24
        times = [result["pieces"][piece]["median_s"] for piece in ("training step", "round", "final update")]
        for value, shown in zip(times, digits, strict=True):
            assert f"{value:.{shown}f} s" in page
        assert f"peak {peak_gib(result):.1f} GiB" in page


def test_the_page_shows_the_recorded_twins():
    root = Path(__file__).parents[2]
    made = json.loads((root / "benchmarks" / "bench" / "cpu-twins.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    for result in made["results"]:
        run, pieces = result["run"], result["pieces"]
        step, probed, update = (pieces[name]["median_s"] for name in ("training step", "round", "final update"))
        answered = 1e3 * result["generation"]["per_new_token_and_example_s"]
        assert (
            f"| `{result['workload']}` | {step:.3f} s | {probed:.2f} s | {update:.3f} s | {answered:.2f} ms "
            f"| {run['seconds']:.1f} s | {run['ratio']:.2f} | {100 * run['masks_policy_commit_share']:.1f} % |"
        ) in page
        assert not run["extrapolated"]
    assert made["code"]["dirty"] is False
