"""The demo: its settings hold, it runs end to end on the embedded backbone, and what it prints can be used."""

import json
import re
from pathlib import Path

import pytest
from peft import PeftModel

from grasp_lora.adapters.point import MergePoint
from grasp_lora.cli.console import show_search
from grasp_lora.data import world as demo_world
from grasp_lora.pipeline.demo import DATA, demo_config, prepare_demo_data
from grasp_lora.pipeline.models import demo_backbone

SYSTEMS = ["zero_shot", "source", "target", "sequential", "merged", "grasp"]
SHORT = [
    "train_source.epochs=1", "train_target.epochs=1", "finalize.epochs=1", "search.epochs=2", "search.batch_size=4",
    "controller.interval=1", "controller.early_stop=false", "evaluate.bootstrap=20", "evaluate.deployment=false",
    "task.max_new_tokens=4",
]  # fmt: skip
SIZES = {"SOURCE_TRAIN": 32, "SOURCE_DEV": 4, "TRAIN": 8, "DEV": 4, "MICRO_DEV": 4, "TEST": 4}


def words(*sets):
    return [word for item in (*SHORT, *sets) for word in ("--set", item)]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A working directory of the test's own, and few examples."""
    monkeypatch.chdir(tmp_path)
    for name, size in SIZES.items():
        monkeypatch.setattr(demo_world.generator, name, size)


def test_the_demo_runs_and_says_how_to_load_its_adapter(small, cli, tmp_path):
    first = cli("demo", "-q", "--json", *words())
    assert (first.code, first.err) == (0, "")
    results = json.loads(first.out)
    assert list(results["systems"]) == SYSTEMS
    assert 0.0 <= results["p_star"] <= 1.0
    assert results["density"] == pytest.approx(1 - results["p_star"], abs=0.01)

    shown = cli("demo", "-q", "--resume", *words())
    assert shown.code == 0
    for label in ("zero shot", "source adapter only", "target adapter only", "target fine-tuned from source",
                  "merged, not pruned", "GRASP", f"learned ratio {results['p_star']:.4f}"):  # fmt: skip
        assert label in shown.out
    assert str(tmp_path) not in shown.out
    assert str(demo_backbone()) not in shown.out

    snippet = "\n".join(re.findall(r"^    ((?:from|model) .*)$", shown.out, flags=re.MULTILINE))
    names = {}
    exec(snippet, names)
    assert isinstance(names["model"], PeftModel)

    assert cli("validate", "--config", "runs/demo/config.yaml").code == 0
    again = cli("demo", "-q", *words())
    assert (again.code, "runs/demo" in again.error) == (6, True)


def test_the_settings_of_the_demo_hold(small):
    config = demo_config()
    assert (config.model.name_or_path, config.run.dir) == ("demo", "runs/demo")
    assert [*config.evaluate.rivals, "grasp"] == SYSTEMS
    assert config.adapters.source is None
    assert config.adapters.target is None


def test_each_task_language_and_seed_has_its_own_files(small):
    for sets in ([], ["seed=7"], ["task.language=zh"], ["task.name=summarization"]):
        prepare_demo_data(demo_config(sets))
    assert {path.name for path in DATA.iterdir()} == {"qa-ar-42", "qa-ar-7", "qa-zh-42", "summarization-ar-42"}
    before = {path: path.read_bytes() for path in DATA.rglob("*.jsonl")}
    assert len(before) == 4 * 6
    prepare_demo_data(demo_config())
    assert {path: path.read_bytes() for path in DATA.rglob("*.jsonl")} == before


def test_files_of_the_users_own_are_not_written(small):
    prepare_demo_data(demo_config(["data.target.test=mine.jsonl"]))
    assert not Path("mine.jsonl").exists()
    assert not (DATA / "qa-ar-42" / "target-test.jsonl").exists()


def test_the_settings_can_be_printed_without_a_run(small, cli):
    said = cli("demo", "--print-config", "--set", "seed=7")
    assert (said.code, "runs/demo-data/qa-ar-7/target-test.jsonl" in said.out) == (0, True)
    assert not Path("runs").exists()


def test_a_language_that_the_world_does_not_speak(small, cli):
    said = cli("demo", "--set", "task.language=fr")
    assert (said.code, said.error) == (2, "task.language: the demo's world speaks en, ar, zh (got 'fr').")
    assert not Path("runs").exists()


def test_a_finding_of_the_search_is_three_lines(capsys):
    finding = {"severity": "info", "seen": "the loss is flat", "why": "any ratio does", "advice": "take the sparsest"}
    found = {"p_star": 0.5, "interval": [0.1, 0.9], "rounds": 3, "evaluations": 12, "stop_reason": None}
    point = MergePoint(0.5, strength=0.25).to_dict()
    show_search(found | {"point": point, "diagnostics": [finding]}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "learned ratio 0.5000, 90 % interval [0.100, 0.900] (3 rounds, 12 micro-dev evaluations)",
        "the whole point: ratio 0.500, strength 0.250",
        "info: the loss is flat",
        "    why it matters: any ratio does",
        "    what to change: take the sparsest",
    ]
