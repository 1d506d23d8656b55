"""What is read from a run folder, and what is said when parts of it lack or are damaged."""

import json
import shutil

import pytest

from grasp_lora.errors import RunError
from grasp_lora.report.content import run_content
from grasp_lora.report.provenance import system_passes
from grasp_lora.report.records import read_run
from grasp_lora.report.tables import stage_costs
from report.synthetic import ROUNDS, SYSTEMS, write_run


def test_a_finished_run_lacks_nothing(record):
    assert record.missing == ()
    assert record.finished
    assert record.systems == tuple(SYSTEMS)
    assert list(record.stages)[:3] == ["source_adapter", "search", "finalize"]
    assert list(record.stages)[-1] == "export"
    assert len(record.history) == ROUNDS + 1
    assert (record.setting("seed"), record.setting("controller.interval")) == (7, 10)
    with pytest.raises(KeyError):
        record.setting("controller.nonsense")


def test_no_path_of_the_machine_is_read(record):
    assert record.config["model"]["name_or_path"] == "tiny"
    assert record.config["data"]["target"]["test"] == "test.jsonl"
    assert "/machine" not in str(record.config)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="not a run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("stages/search/result.json", "“search” has begun and has no result.json"),
        ("stages/search", "“search” was not begun: no ratio was learned"),
        ("stages/finalize", "“final run” was not begun: there is no final run"),
        ("stages/export", "nothing was exported"),
        ("stages/evaluate_grasp", "GRASP was not scored on a test split"),
        ("stages", "No stage was begun yet"),
        ("manifest.json", "manifest.json does not exist"),
        ("config.yaml", "config.yaml cannot be read"),
        ("stages/search/history.jsonl", None),
        ("stages/search/events.jsonl", None),
        ("stages/evaluate_target/predictions.jsonl", None),
        ("results.json", None),
    ],
)
def test_what_lacks_is_said_and_the_rest_is_told(gone, said, run):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    record = read_run(run)
    if said is not None:
        assert any(said in line for line in record.missing), record.missing
    assert str(run.parent) not in str(record.missing)
    content = run_content(record, "run1", "one")
    assert content.verdict.sentence
    assert gone == "stages" or content.sections


@pytest.mark.parametrize(
    "file", ["stages/search/result.json", "stages/search/history.jsonl", "stages/evaluate_target/predictions.jsonl",
             "manifest.json"]
)  # fmt: skip
def test_a_damaged_file_is_named(file, run):
    (run / file).write_text('{"cut\n')
    record = read_run(run)
    assert any(file.split("/")[-1] in line for line in record.missing), record.missing
    assert run_content(record, "run1", "one").verdict.sentence


def test_a_search_of_an_older_version_has_no_curve(run):
    path = run / "stages" / "search" / "result.json"
    found = json.loads(path.read_text())
    del found["estimate"]
    path.write_text(json.dumps(found))
    record = read_run(run)
    assert any("no loss curve" in line for line in record.missing)
    keys = {figure.key for section in run_content(record, "run1", "one").sections for figure in section.figures}
    assert "run1-trajectory-1" in keys
    assert "run1-curve-1" not in keys


def test_what_a_system_took_is_all_that_it_needed(record, run):
    costs = stage_costs(record.stages)
    passes = {name: row["token_passes"] for name, row in costs.items()}
    assert passes["search"] == 4 * 5000 + 2 * (500 + 1000)
    assert system_passes(record, "zero_shot") == 0
    assert system_passes(record, "source") == passes["source_adapter"]
    assert system_passes(record, "grasp") == sum(passes[name] for name in ("source_adapter", "search", "finalize"))
    final = run / "stages" / "finalize" / "result.json"
    final.write_text(json.dumps(json.loads(final.read_text()) | {"reused": True}))
    assert system_passes(read_run(run), "grasp") == passes["source_adapter"] + passes["search"]
    final.unlink()
    assert system_passes(read_run(run), "grasp") is None


def test_systems_that_were_not_asked_for_come_before_ours(tmp_path):
    record = read_run(write_run(tmp_path / "run", {"grasp": 0.0, "adapter-0a1b": 0.1, "target": 0.2}))
    assert record.systems == ("target", "adapter-0a1b", "grasp")
