"""The tables of docs/controller.md are those of the committed records, and their arithmetic is right."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_lora.controller.families import member
from grasp_lora.errors import MissingExtraError

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "controller.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- table: (\S+) -->\n(.*?)\n?<!-- end of table -->", PAGE, flags=re.DOTALL)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("controller_benchmark")
    for name in ("controller_benchmark", "controller_rivals"):
        sys.modules.pop(name, None)


@pytest.fixture
def rivals(benchmark: Any) -> Any:
    return sys.modules["controller_rivals"]


@pytest.mark.parametrize(("record", "shown"), TABLES, ids=[record for record, _ in TABLES])
def test_the_page_shows_the_committed_records(benchmark: Any, record: str, shown: str) -> None:
    saved = json.loads((ROOT / record).read_text(encoding="utf-8"))
    assert shown == benchmark.table(saved)
    assert {"command", "versions", "controller_sha256", "rounds", "records"} <= set(saved)
    assert not re.search(r"[= ]/", saved["command"])  # no path of a machine


def test_both_tables_are_there() -> None:
    assert [Path(record).stem for record, _ in TABLES] == ["files", "held-out"]


def group(*regret: float, **more: list[Any]) -> dict[str, list[Any]]:
    return {"regret": list(regret), "evaluations": [40] * len(regret), **more}


def test_the_arithmetic_of_the_table(benchmark: Any) -> None:
    saved = {
        "records": {
            "default": {
                "a": group(0.001, 0.003, covered=[True, False], width=[0.2, 0.4]),
                "b": group(0.0, 0.002, covered=[True, True], width=[0.1, 0.1]),
            },
            "default, no early stop": {"a": group(0.0, 0.0), "b": group(0.0, 0.0)},
            "Optuna GP, 200": {"a": group(0.004), "b": group(0.001)},
        }
    }
    _, _, ours, _, optuna = benchmark.table(saved).splitlines()
    # Group means 0.002 and 0.001, standard errors 0.001 each; paired with the first seed of each: +0.003 and +0.001.
    assert ours == "| default | 2 | 200 | 100 | 150 ± 71 | - | +150 ± 71 | 40 | 0.50 / 1.00 | 0.30 / 0.10 |"
    assert optuna.startswith("| Optuna GP, 200 | 1 | 400 | 100 | 250 ± nan | +200 ± nan | +250 ± nan | 40 | - | - |")


def test_ways_measured_again_keep_the_others_and_say_whence_they_come(benchmark: Any) -> None:
    same = {"rounds": 50, "candidates": 3, "landscapes": {"a.json": "1"}, "families": None}
    earlier = same | {
        "command": "first", "versions": {}, "controller_sha256": "old",
        "records": {"default": {"a": group(0.2)}, "released": {"a": group(0.3)}},
        "seconds": {"default": 1, "released": 2},
    }  # fmt: skip
    again = {"command": "second", "versions": {}, "controller_sha256": "new", "seconds": {"default": 3}}
    saved = benchmark.joined({**same, **again, "records": {"default": {"a": group(0.1)}}}, earlier)
    assert saved["records"] == {"default": {"a": group(0.1)}, "released": {"a": group(0.3)}}
    assert (saved["controller_sha256"], saved["seconds"]) == ("new", {"default": 3, "released": 2})
    source = {"ways": ["released"], "command": "first", "versions": {}, "controller_sha256": "old"}
    assert saved["kept"] == [source]
    third = {**same, **again, "command": "third", "seconds": {}, "records": {}}
    second = {**source, "ways": ["default"], "command": "second", "controller_sha256": "new"}
    assert benchmark.joined(third, saved)["kept"] == [source, second]
    assert benchmark.joined({**third, "records": {"released": {"a": group(0.4)}}}, saved)["kept"] == [second]
    with pytest.raises(SystemExit, match="differ"):
        benchmark.joined({**saved, "landscapes": {"a.json": "2"}}, earlier)


def test_columns_leave_out_what_nobody_claims(benchmark: Any) -> None:
    rows = [{"regret": 0.12345678901, "evaluations": 8, "covered": None}] * 2
    assert benchmark.columns(rows) == {"regret": [0.1234568] * 2, "evaluations": [8, 8]}


def test_rivals_spend_what_they_are_given_and_see_the_last_round(rivals: Any) -> None:
    assert rivals.schedule(50, 50) == list(range(1, 51))
    few = rivals.schedule(50, 12)
    assert (len(few), few[0], few[-1]) == (12, 5, 50)
    assert len(set(np.diff(few))) <= 2
    job = (member("plain", "development", 0), 0)
    for name, way in rivals.ways(4).items():
        if "Optuna" in name or "48" in name:
            continue
        found = way(job)
        assert found["regret"] >= 0
        assert found["evaluations"] <= 16


def test_optuna_is_asked_in_turn_and_answers_with_its_best_trial(rivals: Any) -> None:
    pytest.importorskip("optuna")
    job = (member("plain", "development", 1), 1)
    trials = rivals._optuna_trials("TPE", 6, 6, job)
    assert [t for t, _, _ in trials] == [t for t in range(1, 7) for _ in range(3)]
    best = min(trials, key=lambda trial: trial[2])[1]
    assert rivals.with_optuna("TPE", 6, 6, job)["regret"] == job[0].regret(best)
    late = min(trials[9:], key=lambda trial: trial[2])[1]
    assert rivals.with_optuna("TPE", 6, 6, job, after=3)["regret"] == job[0].regret(late)


def test_without_optuna_the_error_says_what_to_install(rivals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=re.escape("grasp-lora[baselines]")):
        rivals.with_optuna("TPE", 2, 2, (member("plain", "development", 2), 2))
