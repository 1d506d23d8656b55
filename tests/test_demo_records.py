"""The demo's figures in the documents are those of the committed records, as the script prints them."""

import argparse
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("demo_curve")


def printed(command, capsys):
    command(argparse.Namespace(records=ROOT / "benchmarks" / "demo", runs=[]))
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_the_readme_shows_the_recorded_runs(script, capsys):
    lines = printed(script.gather, capsys)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 8
    assert [line for line in lines if line.startswith("|") and line not in readme] == []


def test_the_log_shows_the_recorded_curve(script, capsys):
    lines = printed(script.table, capsys)
    log = (ROOT / "docs" / "log.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 15
    assert [line for line in lines if line.startswith("|") and line not in log] == []


def test_the_demo_is_an_instance_of_the_problem(script):
    curves = script.read_records(ROOT / "benchmarks" / "demo", "curve")
    runs = script.read_records(ROOT / "benchmarks" / "demo", "run")
    assert [row["seed"] for row in curves] == [row["seed"] for row in runs] == sorted(script.SEEDS)

    for when in ("before", "after"):
        means = [sum(r["ratios"][i][when]["dev"] for r in curves) / len(curves) for i in range(len(script.RATIOS))]
        assert min(means) < min(means[0], means[-1])

    def mean(system):
        scores = [run["results"]["systems"][system]["scores"] for run in runs]
        return sum(row["value"] for rows in scores for row in rows if row["name"] == "loss") / len(runs)

    assert mean("grasp") < mean("target")
    for curve, run in zip(curves, runs, strict=True):  # the script trains what the command trains
        (alone,) = [s["value"] for s in run["results"]["systems"]["target"]["scores"] if s["name"] == "loss"]
        assert curve["systems"]["target"]["test"] == pytest.approx(alone, abs=1e-5)
