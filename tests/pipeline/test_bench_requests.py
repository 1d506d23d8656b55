"""What is asked of `bench`: refused before anything is measured, done as it was asked for, and in the record."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_bench import PICO, SMALL, words
from world import tree_bytes

from grasp_lora.config import build_config
from grasp_lora.errors import ConfigError, TrainingError
from grasp_lora.pipeline.bench import demo_rounds, record, scaling, sizes, workloads
from grasp_lora.pipeline.bench.demo_rounds import measure_rounds
from grasp_lora.pipeline.bench.measure import Subject
from grasp_lora.pipeline.bench.variants import planned, switches
from grasp_lora.pipeline.bench.workloads import WORKLOADS
from grasp_lora.runs import QuietProgress

OFF = [f"speed.{name}={str(value).lower()}" for name, value in switches(build_config({})).items()]


@pytest.fixture
def pico(monkeypatch):
    monkeypatch.setitem(workloads.WORKLOADS, "pico", PICO)


@pytest.mark.parametrize(
    ("more", "code", "expected"),
    [
        (("--workload", "mlqa"), 2, "--workload must be mlqa-8b or"),
        (("--workload", "mlqa-8b", "--set", "model.device=cpu"), 2, "mlqa-8b needs a GPU (device cpu). Use its small"),
        (("--repeats", 0), 2, "--repeats must be at least 1 (got 0)"),
        (("--max-memory-gib", 8, "--set", "model.device=cpu"), 2, "--max-memory-gib caps the allocator of a GPU"),
        (("--variant", "speed.nothing=1"), 2, "unknown setting 'speed.nothing'"),
        (("--variant", "model.dtype=float64"), 2, "model and adapters are made once"),
        (("--workload", "demo", "--quick"), 2, "are not for the demo's rounds"),
        (("--max-memory-gib", 0), 2, "--max-memory-gib must be a number above 0"),
        (("--max-memory-gib", "nan"), 2, "--max-memory-gib must be a number above 0 (got nan)"),
        (("--max-memory-gib", "inf"), 2, "--max-memory-gib must be a number above 0 (got inf)"),
        (("--variant", ""), 2, "--variant: needs settings to compare"),
        (("--variant", " "), 2, "--variant: needs settings to compare"),
        (("--set", "search.patience=1"), 2, "search.patience: bench has no dev data"),
        (("--set", "finalize.patience=1"), 2, "finalize.patience: bench has no dev data"),
        (("--set", "finalize.keep_start=true"), 2, "finalize.keep_start: bench has no dev data"),
        (("--set", "finalize.keep=best"), 2, "finalize.keep: bench has no dev data"),
        (("--set", "finalize.adapter=reuse"), 2, "finalize.adapter: reuse makes no final run"),
        (("--set", "controller.early_stop=true"), 2, "controller.early_stop: bench times every round"),
        (("--set", "controller.interval=501"), 2, "leave 450 updates without a round and 0 rounds to time"),
        (("--quick", "--set", "controller.interval=200"), 2, "leave 50 updates without a round and 0 rounds to time"),
        (("--quick", "--set", "search.batch_size=50", "--set", "controller.interval=2"), 2, "leave 0 updates without"),
        (("--variant", "search.batch_size=16 controller.interval=2"), 2, "leave 0 updates without a round"),
        (("--scaling", "--set", "merge.weights=[0.5,0.5]"), 2, "--scaling: measures other numbers of adapters too"),
        (("--variants", *(w for name in OFF for w in ("--set", name))), 2, "every switch of `speed` is off already"),
        (("--set", "model.quantization=bnb-4bit"), 2, "model.quantization: bench makes its own weights"),
        (("--set", "search.epochs=0"), 2, "search.epochs: bench times a search that trains"),
        (("--set", "controller.interval=1"), 2, "controller.interval: bench tells rounds from steps"),
        (("--set", "speed.nothing=1"), 2, "unknown setting 'speed.nothing'"),
    ],
)
def test_what_cannot_be_measured_is_said_first(cli, tmp_path, monkeypatch, more, code, expected):
    monkeypatch.chdir(tmp_path)
    said = cli("bench", *more)
    assert said.code == code
    assert expected in said.error.replace("\n", " ")
    assert not list(tmp_path.rglob("*.json"))


def test_a_record_is_never_overwritten(pico, cli, tmp_path):
    (tmp_path / "there.json").write_text("mine")
    said = cli(*words("--out", tmp_path / "there.json"))
    assert said.code == 6
    assert "exists and is not overwritten" in said.error.replace("\n", " ")
    assert (tmp_path / "there.json").read_text() == "mine"


def test_the_cap_on_memory_is_set_and_taken_back(monkeypatch):
    seen = []
    whole = type("Properties", (), {"total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: whole)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, index: seen.append((share, index)))
    with record._capped(24.0, torch.device("cuda")):
        assert seen == [(24 / 80, 0)]
    with record._capped(40.0, torch.device("cuda", 1)):
        pass
    assert seen[1:] == [(1.0, 0), (0.5, 1), (1.0, 1)]
    with pytest.raises(ConfigError, match=r"the GPU has 80\.0 GiB, so 100 cap nothing"):
        record._share(100.0, torch.device("cuda"))


def test_a_search_ends_with_its_rounds_and_is_counted_so(pico, tmp_path):
    """Three updates into the second epoch: what is cut short is timed too."""
    request = record.Request(["pico"], (*SMALL, "controller.rounds=4"), repeats=1, out=tmp_path / "r.json")
    (result,) = record.bench(request, QuietProgress())[0]["results"]
    assert (result["run"]["steps"], result["run"]["rounds"]) == (12, 4)
    assert result["counted"]["rounds"] == 4
    counts = [
        (len(result["pieces"][p]["warm_up_s"]), result["pieces"][p]["repeats"]) for p in ("training step", "round")
    ]
    assert counts == [(6, 2), (3, 1)]
    tokens = sum(len(item.input_ids) for item in PICO.examples()["train"])
    floor = 4 * result["body_parameters"] / result["ceilings"]["flops_per_s"] * tokens
    rounds = 4 * next(row["floor_s"] for row in result["roofline"] if row["piece"] == "round")
    assert result["run"]["floor_s"] == pytest.approx((12 / 9 + 3) * floor + rounds)


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("rounds", [None, 1, 3, 100])
@pytest.mark.parametrize("interval", [2, 3, 7, 9])
def test_the_updates_to_time_are_counted_as_the_loop_makes_them(epochs, rounds, interval):
    each = 7
    wanted = [[0, 0] for _ in range(epochs)]
    done = 0
    for step in range(epochs * each):
        probed = (step + 1) % interval == 0
        wanted[step // each][probed] += 1
        done += probed
        if done == rounds:
            break
    config = PICO.config(
        [f"controller.interval={interval}", f"controller.rounds={'null' if rounds is None else rounds}"]
    )
    found = sizes.search_epochs(config, each, epochs)
    assert found == [tuple(pair) for pair in wanted if any(pair)]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(pico, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "Subject", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("mine")
    said = cli(*words("--out", tmp_path / "file" / "r.json"))
    assert said.code == 6
    assert "cannot be written" in said.error.replace("\n", " ")
    assert tree_bytes(tmp_path) == {"file": b"mine"}


def test_a_start_that_fails_leaves_no_file(pico, cli, tmp_path):
    said = cli(*words("--out", tmp_path / "new" / "r.json", "--set", "model.attn_implementation=nothing"))
    assert said.code == 5
    assert "model.attn_implementation: 'nothing' cannot be used" in said.error.replace("\n", " ")
    assert tree_bytes(tmp_path) == {}


def test_what_was_asked_for_is_in_the_record(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "measure", lambda *_, **__: {})
    monkeypatch.setattr(record, "variants", lambda _subject, plans, _say: list(plans))
    given = ["speed.tokens_per_pass=7"]
    request = record.Request(["pico"], SMALL, quick=True, variants=True, variant=given, out=tmp_path / "r.json")
    made, path = record.bench(request, QuietProgress())
    assert json.loads(path.read_text())["request"] == {
        "workloads": ["pico"], "set": list(SMALL), "repeats": 5, "quick": True, "scaling": False, "variants": True,
        "variant": given,
    }  # fmt: skip
    assert made["results"][0]["variants"] == [*OFF, "all of these off", *given]


def test_the_demo_has_no_steps_and_takes_any_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "measure_rounds", lambda _repeats, sets: {"gain": {}, "sets": list(sets)})
    request = record.Request(["demo"], ["controller.interval=1"], out=tmp_path / "r.json")
    assert record.bench(request, QuietProgress())[0]["results"][0]["sets"] == ["controller.interval=1"]


def test_as_many_candidates_are_measured_as_are_asked_for(monkeypatch):
    seen = []
    real = demo_rounds.per_candidate
    monkeypatch.setattr(
        demo_rounds, "per_candidate", lambda bank, probe, masks: seen.append(len(masks)) or real(bank, probe, masks)
    )
    monkeypatch.setattr(demo_rounds, "per_example", lambda _attached, items, masks: torch.zeros(len(masks), len(items)))
    assert measure_rounds(1, ["controller.candidates=12"])["candidates"] == 12
    assert set(seen) == {1 + 12}


def test_the_updates_behind_a_size_are_of_one_pass(pico, monkeypatch):
    seen = []
    real = scaling.step_seconds
    monkeypatch.setattr(scaling, "step_seconds", lambda bench, settings: seen.append(settings) or real(bench, settings))
    list(scaling._training(Subject(PICO, PICO.config([*SMALL, "search.accumulation=4"]))))
    assert {settings.accumulation for settings in seen} == {1}


@pytest.mark.parametrize(
    "setting", ["data.micro_dev_size=4", "evaluate.batch_size=3", "train_target.lr=0.1", "model.name_or_path=x"]
)
def test_settings_that_nothing_follows_are_refused(setting):
    with pytest.raises(ConfigError, match=f"--set {setting.partition('=')[0]}: bench makes its own"):
        WORKLOADS["mlqa-cpu"].config([setting])


def test_modules_that_the_shape_lacks_are_said_before_weights_are_made(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "Subject", lambda *_: pytest.fail("weights are made"))
    out = tmp_path / "r.json"
    said = cli("bench", "--workload", "mlqa-cpu", "--quick", "--out", out, "--set", "lora.target_modules=foo")
    assert said.code == ConfigError.exit_code
    assert "foo" in said.error
    assert not out.exists()


def test_a_loss_that_is_no_number_gets_the_advice_of_a_measurement(cli, tmp_path):
    out = tmp_path / "r.json"
    said = cli("bench", "--workload", "mlqa-cpu", "--quick", "--repeats", 1, "--out", out, "--set", "search.lr=1e9")
    assert said.code == TrainingError.exit_code
    told = " ".join(said.error.split())
    assert "mlqa-cpu: the loss became nan at step" in told
    assert "Nothing was recorded" in told
    assert "checkpoint" not in told


def test_too_few_updates_of_a_variant_name_it():
    sets = ["search.batch_size=16", "controller.interval=2"]
    config = WORKLOADS["mlqa-cpu"].config(sets)
    with pytest.raises(
        ConfigError, match=r"variant 'as configured', over 16 examples: controller.interval: 2"
    ) as error:
        planned(config, [], sets, WORKLOADS["mlqa-cpu"], off=True)
    assert "--quick" not in str(error.value)
    with pytest.raises(ConfigError, match=r"--variant: needs settings .*\(got 'speed'\)"):
        planned(WORKLOADS["mlqa-cpu"].config(), ["speed"], [], WORKLOADS["mlqa-cpu"])
