"""`simulate` and `replay` as commands: JSON as promised, tables and plots, and a run audited from its own record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

TRACE = Path(__file__).parents[3] / "shared/spec/traces/released_policy.json"
KNOTS = np.linspace(0, 1, 11)
VALLEY = {
    "name": "valley",
    "p": KNOTS.tolist(),
    "loss": (2 + 0.4 * (KNOTS - 0.65) ** 2).tolist(),
    "examples": 8,
    "example_sd": 0.5,
    "shift_sd": 0.02,
    "noise_sd": 0.01,
    "drift_per_round": 0.004,
}


@pytest.fixture
def valley(tmp_path: Path) -> Path:
    path = tmp_path / "valley.json"
    path.write_text(json.dumps(VALLEY))
    return path


def test_simulate_json(cli, valley):
    said = cli("simulate", "--landscape", valley, "--seeds", 3, "--rounds", 5, "--json")
    assert (said.code, said.err) == (0, "")
    (row,) = json.loads(said.out)["landscapes"]
    assert list(row) == [
        "name", "preset", "seeds", "p_star", "interval", "regret", "evaluations", "coverage", "width",
    ]  # fmt: skip
    assert (row["name"], row["preset"], row["seeds"], len(row["p_star"])) == ("valley", "default", 3, 3)
    assert set(row["regret"]) == {"mean", "p90"}
    again = cli("simulate", "--landscape", valley, "--seeds", 3, "--rounds", 5, "--json")
    assert again.out == said.out


def test_simulate_released_claims_no_interval(cli, valley):
    words = ["simulate", "--landscape", valley, "--seeds", 2, "--rounds", 5, "--json"]
    (row,) = json.loads(cli(*words, "--preset", "released").out)["landscapes"]
    assert (row["preset"], row["interval"], row["coverage"], row["width"]) == ("released", [None, None], None, None)
    assert row["evaluations"] == 20
    (same,) = json.loads(cli(*words, "--set", "controller.preset=released").out)["landscapes"]
    assert same == row


def test_simulate_table_and_plot(cli, valley):
    said = cli("simulate", "--landscape", valley, "--landscape", valley, "--seeds", 3, "--rounds", 5)
    assert said.out.count("3 seeds") == 2
    assert "mean" in said.out
    assert "█" in said.out
    assert "regret: settled loss at p_star above its minimum" in said.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 2, "--seeds: at least 1"),
        (["--preset", "realeased"], 2, "controller.preset"),
        (["--set", "controller.p_mx=1"], 2, "Did you mean 'p_max'"),
        (["--landscape", "none.json"], 3, "none.json does not exist"),
    ],
)
def test_simulate_refuses(cli, valley, words, code, message):
    said = cli("simulate", "--landscape", valley, *words)
    assert (said.code, said.out) == (code, "")
    assert message in said.error


@pytest.mark.parametrize("policy", ["ratio", "ratio_strength"])
def test_replay_of_a_run_repeats_its_answer_to_the_bit(cli, world, policy):
    file = world.file(controller__seed=7, controller__policy=policy, data__micro_dev_size=4)
    assert cli("search", "--config", file, "--quiet", "--json").code == 0
    folder = world.root / "run"
    result = json.loads((folder / "stages/search/result.json").read_text())
    history = [json.loads(line) for line in (folder / "stages/search/history.jsonl").read_text().splitlines()]
    for given in (folder, folder / "stages/search/history.jsonl"):
        report = json.loads(cli("replay", given, "--json").out)
        (run,) = report["runs"]
        assert (run["seed"], run["p_star"], run["interval"]) == (7, result["p_star"], result["interval"])
        assert run["rounds"] == [{"round": row["round"], **row["after"]} for row in history]
        assert "held fixed" in report["note"]
    said = cli("replay", folder, "--preset", "released")
    if policy == "ratio":
        assert "preset released" in said.out
        assert "held fixed" in said.out
        assert f"{len(history)} rounds" in said.out
    else:
        assert said.code == 2
        assert "learns a ratio only" in said.error


def test_replay_refuses(cli, tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"round": 1}\n')
    said = cli("replay", path)
    assert (said.code, said.out) == (3, "")
    assert "line 1: field 'samples' is missing" in said.error
    assert cli("replay", tmp_path).code == 3


@pytest.mark.shared
@pytest.mark.skipif(not TRACE.exists(), reason="needs ../shared")
def test_replay_of_recorded_released_runs(cli):
    runs = json.loads(cli("replay", TRACE, "--json").out)["runs"]
    recorded = json.loads(TRACE.read_text())
    for ours, theirs in zip(runs, recorded, strict=True):
        assert (ours["seed"], ours["interval"]) == (theirs["seed"], None)
        assert ours["p_star"] == pytest.approx(theirs["p_star"], abs=1e-12)
        assert len(ours["rounds"]) == len(theirs["trace"])
        for row, round_ in zip(ours["rounds"], theirs["trace"], strict=True):
            assert row["round"] == round_["round"]
            for key in ("mean", "std", "p"):
                assert row[key] == pytest.approx(round_["after"][key], abs=1e-12)
