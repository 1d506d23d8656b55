"""The page of real input and the README's table are what the committed records say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDS, PAGE = ROOT / "benchmarks" / "real" / "records.json", ROOT / "docs" / "results-real.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_input_under_test", ROOT / "scripts" / "real_input.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(script, monkeypatch, tmp_path):
    out = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["real_input.py", "page", "--records", str(RECORDS), "--out", str(out)])
    script.main()
    assert out.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_the_readme_shows_the_recorded_losses():
    record = json.loads((ROOT / "benchmarks" / "compare" / "real.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("<!-- results: real -->") : readme.index("## What it is worth")]
    rows = dict(re.findall(r"^\| (.*?) \| (.*\d.*) \|$", table, flags=re.MULTILINE))
    titles = {row["title"]: row["row"] for row in record["cells"][0]["rows"]}
    assert len(rows) > 8
    for title, shown in rows.items():
        losses = [
            next(r for r in cell["rows"] if r["row"] == titles[title])["scores"]["loss"] for cell in record["cells"]
        ]
        assert shown.split(" | ") == [f"{loss['mean']:.3f} ± {loss['sd']:.3f}" for loss in losses]


def test_the_verdict_shows_the_recorded_means():
    record = json.loads((ROOT / "benchmarks" / "compare" / "real.json").read_text(encoding="utf-8"))
    verdict = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| .*\(`(\w+)`.*?\).*? \| ([\d.]+) \|", verdict, flags=re.MULTILINE)
    assert len(shown) == 8
    for name, value in shown:
        rows = [next(row for row in cell["rows"] if row["row"] == name) for cell in record["cells"]]
        assert f"{fmean(row['scores']['loss']['mean'] for row in rows):.3f}" == value


def test_merging_and_pruning_beats_the_target_alone_on_questions(script):
    runs = json.loads(RECORDS.read_text(encoding="utf-8"))["runs"]
    questions = [run for run in runs if run["task"] == "qa"]
    assert len(questions) == 2
    assert all(script.value(run, "grasp", "loss") < script.value(run, "target", "loss") for run in questions)


def test_records_hold_no_place_of_a_machine():
    text = RECORDS.read_text(encoding="utf-8")
    assert not any(start in text for start in ('"/', "=/", "/tmp/", "/home/", "/work/", "/root/"))


def test_the_pages_show_what_probing_the_merge_as_it_is_chose(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    probes = importlib.import_module("real_probes")
    record = json.loads((ROOT / "benchmarks" / "controller" / "real-probes.json").read_text(encoding="utf-8"))
    compared = json.loads((ROOT / "benchmarks" / "compare" / "real.json").read_text(encoding="utf-8"))
    found = probes.regrets_of(record["cells"])
    assert json.loads(json.dumps(found)) == record["regret"]
    final = fmean(
        seed["cost"]["token_passes"] for cell in compared["cells"] for row in cell["rows"]
        if row["row"] == "merged" for seed in row["seeds"]
    )  # fmt: skip
    whole = fmean(cell["token_passes"] for cell in record["cells"]) + final
    test, dev = (
        "{:.4f} [{:.4f}, {:.4f}]".format(found[side]["mean"], *found[side]["interval"]) for side in ("test", "dev")
    )
    page = (ROOT / "docs" / "controller.md").read_text(encoding="utf-8")
    assert f"| default, policy `ratio`, probing the merge as it is | {test} | {dev} | {whole / 1e6:.2f}M |" in page


def test_the_verdict_shows_the_recipe_that_ships():
    record = json.loads((ROOT / "benchmarks" / "compare" / "real-recommended.json").read_text(encoding="utf-8"))
    rows = [cell["rows"][0] for cell in record["cells"]]
    losses = [row["scores"]["loss"]["mean"] for row in rows]
    spent = fmean(seed["cost"]["token_passes"] for row in rows for seed in row["seeds"])
    shown = " | ".join(f"{loss:.3f}" for loss in (*losses, fmean(losses)))
    verdict = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    assert f"| shipped | {shown} | {spent / 1e6:.2f}M |" in verdict
    assert sum(seed["density"] == 1.0 for row in rows for seed in row["seeds"]) == 4  # dev kept the average as it came


def test_the_verdict_shows_the_fresh_draws():
    records = json.loads((ROOT / "benchmarks" / "compare" / "fresh.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    own = page[page.index("## On fresh draws") :]
    losses: dict[str, list[float]] = {}
    for cell in records["cells"]:
        for row in cell["rows"]:
            losses.setdefault(row["row"], []).append(fmean(seed["scores"]["loss"] for seed in row["seeds"]))
    recommended = losses["grasp_recommended"]
    shown = {"recommended": recommended} | {
        f"`{name}`": losses[name]
        for name in ("average", "target", "grasp_default", "strength_by_probe", "sequential", "grasp_released")
    }
    for name, values in shown.items():
        cells = " | ".join(f"{value:.3f}" for value in (*values, fmean(values)))
        assert f"| {name} | {cells} |" in own
        assert fmean(recommended) <= fmean(values)
    assert len(losses["grid"]) == 2
