"""Landscapes by formula, simulation and replay end to end, and their error messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grasp_lora.config import ControllerConfig
from grasp_lora.controller import Controller
from grasp_lora.controller.families import FAMILIES, member
from grasp_lora.controller.landscape import Landscape, landscape_from
from grasp_lora.controller.plane import plane_from
from grasp_lora.controller.replay import NOTE, read_history, replay, replay_file
from grasp_lora.controller.simulate import run_controller, simulate, simulate_files
from grasp_lora.controller.slices import Slice, read_landscape
from grasp_lora.errors import ConfigError, DataError

PLAIN = {
    "name": "steps",
    "p": [0.0, 0.5, 1.0],
    "loss": [2.0, 1.0, 3.0],
    "examples": 4,
    "example_sd": 0.5,
    "shift_sd": 0.0,
    "noise_sd": 0.0,
    "drift_per_round": 0.25,
}
SETTLING = {**PLAIN, "loss_start": [4.0, 3.0, 1.0], "settle_rounds": 2.0}
KNOTS = np.linspace(0, 1, 21)
VALLEY = {
    **PLAIN,
    "p": KNOTS.tolist(),
    "loss": (2 + 0.4 * (KNOTS - 0.65) ** 2).tolist(),
    "noise_sd": 0.01,
    "examples": 16,
    "shift_sd": 0.05,
}


def test_the_curve_is_linear_between_knots_and_clamped() -> None:
    land = landscape_from(PLAIN, "here")
    assert land.curve(np.array([-1.0, 0.25, 0.5, 0.75, 2.0])).tolist() == [2.0, 1.5, 1.0, 2.0, 3.0]
    assert land.regret(0.75) == 1.0


def test_settling_follows_the_exponential_and_regret_the_settled_curve() -> None:
    land = landscape_from(SETTLING, "here")
    for t in (0, 1, 7):
        assert land.curve(0.25, t) == pytest.approx(1.5 + (3.5 - 1.5) * np.exp(-t / 2.0), abs=1e-12)
    assert land.regret(0.5) == 0.0


def test_losses_without_noise_are_curve_offset_and_drift() -> None:
    land = landscape_from({**PLAIN, "shift_sd": 0.1}, "here")
    slice_ = Slice(land, 3)
    assert slice_.losses(0.4, 8) == pytest.approx(land.curve(0.4 + slice_.shifts) + slice_.offsets - 2.0, abs=1e-12)


def test_the_noise_of_the_mean_is_noise_sd() -> None:
    slice_ = Slice(landscape_from({**PLAIN, "noise_sd": 0.2, "examples": 16}, "here"), 0)
    means = [slice_.losses(0.5, 0).mean() for _ in range(4000)]
    assert np.std(means) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("low", "high", "covered"), [(0.1, 0.4, False), (0.4, 0.6, True), (0.5, 0.5, True), (0.6, 1, False)]
)
def test_covered_means_meeting_the_minimum(low: float, high: float, covered: bool) -> None:
    assert landscape_from(PLAIN, "here").covered(low, high) is covered


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"los": [1]}, "unknown field 'los'. Did you mean 'loss'"),
        ({"p": [0.0, 0.0, 1.0]}, "'p' must rise strictly"),
        ({"p": [0.0, 0.5, 50.0]}, "'p' must lie between 0 and 1"),
        ({"loss": [1.0]}, "'loss' needs one value per p"),
        ({"examples": 0}, "'examples' must be at least 1"),
        ({"noise_sd": -1}, "'noise_sd' must not be negative"),
        ({"noise_sd": "much"}, "'noise_sd' must be a finite number"),
        ({"loss": 3}, "'loss' must be a list of numbers"),
        ({"settle_rounds": 3}, "belong together"),
    ],
)
def test_bad_landscapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError) as error:
        landscape_from({**PLAIN, **change}, "here.json")
    assert message in str(error.value)
    assert "here.json" in str(error.value)


def test_missing_field_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'drift_per_round' is missing"):
        landscape_from({k: v for k, v in PLAIN.items() if k != "drift_per_round"}, "x")
    with pytest.raises(DataError, match="does not exist"):
        read_landscape(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(DataError, match="not readable JSON"):
        read_landscape(tmp_path / "bad.json")


def test_simulate_reports_the_promised_fields_and_is_deterministic() -> None:
    land = landscape_from(VALLEY, "here")
    one = simulate([land], ControllerConfig(), seeds=4, rounds=20)
    assert one == simulate([land], ControllerConfig(), seeds=4, rounds=20)
    (row,) = one["landscapes"]
    assert set(row) == {"name", "preset", "seeds", "p_star", "interval", "regret", "evaluations", "coverage", "width"}
    assert (row["name"], row["preset"], row["seeds"], len(row["p_star"])) == ("steps", "default", 4, 4)
    assert row["evaluations"] <= 80
    assert all(lo <= p <= hi for p, (lo, hi) in zip(row["p_star"], row["interval"], strict=True))
    assert json.loads(json.dumps(one)) == one


def test_default_beats_released_on_a_valley() -> None:
    land = landscape_from(VALLEY, "here")
    ours, theirs = (
        simulate([land], ControllerConfig(preset=name), seeds=12, rounds=50)["landscapes"][0]
        for name in ("default", "released")
    )
    assert ours["regret"]["mean"] < 0.5 * theirs["regret"]["mean"]
    assert ours["evaluations"] < 0.6 * theirs["evaluations"]
    assert theirs["interval"] == [None] * 12
    assert theirs["coverage"] is None


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_budget_of_evaluations_is_kept(rounds: int) -> None:
    for preset in ("default", "released"):
        controller = run_controller(landscape_from(VALLEY, "x"), ControllerConfig(preset=preset), 0, rounds)
        assert 0 < len(controller.history) <= rounds * 4


def test_simulate_refuses_nothing_to_do() -> None:
    with pytest.raises(ConfigError, match="--seeds: at least 1"):
        simulate([landscape_from(PLAIN, "x")], ControllerConfig(), seeds=0, rounds=1)


def test_the_released_rule_knows_ratios_only() -> None:
    plane = plane_from(
        {
            **{k: v for k, v in PLAIN.items() if k not in ("p", "loss", "shift_sd")},
            "axis": "strength", "p": [0.0, 1.0], "q": [0.5, 1.0], "loss": [[2.0, 1.0], [1.0, 2.0]],
            "shift_sd": [0.0, 0.0],
        },
        "here",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="landscape steps has 2 coordinates"):
        simulate([plane], ControllerConfig(preset="released"), seeds=1, rounds=2)


def test_processes_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALLEY))
    before = dict(os.environ)
    one, two = (simulate_files([path], seeds=5, rounds=6, workers=n)[1] for n in (1, 2))
    assert one == two
    assert dict(os.environ) == before


def test_simulation_takes_settings_that_have_an_effect_only(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(VALLEY))
    plain = simulate_files([path], seeds=1, rounds=4)[1]
    (row,) = simulate_files([path], sets=["controller.p_max=0.5"], seeds=1, rounds=4)[1]["landscapes"]
    assert plain["landscapes"][0]["p_star"][0] > 0.5 >= row["p_star"][0]
    for bad, message in {
        "controller.interval=5": "landscapes count rounds",
        "controller.seed=5": "--seeds",
        "controller.rounds=5": "--rounds",
        "controller.policy=ratio_weights": "a landscape file has its own coordinates",
        "merge.strength=0.5": "only controller.KEY=VALUE",
        "controller=5": "a section, not a value",
        "controller.p_mx=0.5": "Did you mean 'p_max'",
        "controller.p_min=0.96": "must not exceed p_max",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            simulate_files([path], sets=[bad], seeds=1, rounds=1)


def test_simulating_needs_no_torch() -> None:
    """Importing torch takes longer than a simulation."""
    code = (
        "import sys, grasp_lora.cli, grasp_lora.cli.controller_output, grasp_lora.controller.simulate as s, "
        "grasp_lora.controller.replay; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_landscapes_and_their_parts_differ(family: str) -> None:
    one, two = member(family, "development", 0), member(family, "held-out", 0)
    assert one == member(family, "development", 0)
    assert one.loss != two.loss
    assert isinstance(one, Landscape)
    assert np.isfinite(one.loss).all()


def recorded(controller: Controller, slice_: Slice, rounds: int) -> list[dict]:
    rows = []
    for t in range(rounds):
        proposal = controller.ask(t)
        if proposal is None:
            continue
        base = slice_.losses(controller.applied_ratio, t)
        trials = [slice_.losses(p, t) for p in proposal.samples]
        decision = controller.tell(proposal, base, trials)
        rows.append(
            {
                "round": t,
                "samples": list(proposal.samples),
                "baseline": base.tolist(),
                "candidates": [x.tolist() for x in trials],
                "rewards": list(decision.rewards),
                "mask_ratio": decision.mask_ratio,
            }
        )
    return rows


@pytest.mark.parametrize("preset", ["default", "released"])
def test_replay_of_an_own_history_gives_the_same_states_and_answer(preset: str, tmp_path: Path) -> None:
    config = ControllerConfig(preset=preset, early_stop=False)
    controller = Controller(config, 0)
    rows = recorded(controller, Slice(landscape_from(VALLEY, "x"), 1), 9)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = replay(read_history(path), {"preset": preset, "early_stop": False})
    (run,) = report["runs"]
    found = controller.estimate()
    last = run["rounds"][-1]
    assert (last["mean"], last["std"], last["p"]) == (controller.state.mean, controller.state.std, controller.state.p)
    assert run["p_star"] == found.p_star
    assert run["interval"] == (None if found.interval is None else list(found.interval))
    assert report["note"] == NOTE


def test_replay_of_means_only_has_no_interval_and_takes_overrides(tmp_path: Path) -> None:
    trace = [{"round": t, "samples": [0.3, 0.5, 0.7], "rewards": [-0.1, 0.02, -0.05]} for t in range(1, 6)]
    path = tmp_path / "trace.json"
    config = {"enable": True, "p_min": 0.1, "kl_coeff": 0.0, "policy_lr": 0.1, "entropy_bonus": 0.0}
    path.write_text(json.dumps([{"seed": 7, "config": config, "trace": trace}]))
    (released,) = replay(read_history(path))["runs"]
    assert (released["preset"], released["seed"], released["p_star"]) == ("released", 7, 0.5)
    (other,) = replay(read_history(path), overrides={"preset": "default"})["runs"]
    assert other["preset"] == "default"
    assert other["interval"] is None
    (still,) = replay_file(path, sets=["controller.policy_lr=0"])["runs"]
    assert {row["mean"] for row in still["rounds"]} == {0.4}
    (short,) = replay_file(path, sets=["controller.rounds=2"])["runs"]
    assert short["rounds"] == released["rounds"][:2]
    for key, value in {"interval": 2, "candidates": 2, "policy": "ratio"}.items():
        with pytest.raises(ConfigError, match=f"controller.{key}: has no effect here"):
            replay_file(path, sets=[f"controller.{key}={value}"])


def test_a_run_folder_brings_its_settings(tmp_path: Path) -> None:
    config = ControllerConfig(preset="released", p_max=0.7)
    controller = Controller(config, 5)
    rows = recorded(controller, Slice(landscape_from(VALLEY, "x"), 1), 6)
    path = tmp_path / "run" / "stages" / "search" / "history.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (alone,) = replay_file(path)["runs"]
    assert (alone["preset"], alone["seed"]) == ("default", 0)
    (tmp_path / "run" / "config.yaml").write_text("seed: 5\ncontroller: {preset: released, p_max: 0.7}\n")
    for given in (path, tmp_path / "run"):
        (run,) = replay_file(given)["runs"]
        assert (run["preset"], run["seed"]) == ("released", 5)
        assert run["rounds"][-1]["mean"] == controller.state.mean
        assert run["p_star"] == controller.estimate().p_star
    (other,) = replay_file(path, preset="default", sets=["controller.seed=9"])["runs"]
    assert (other["preset"], other["seed"]) == ("default", 9)
    assert other["interval"] is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no round"),
        ("{", "line 1: not valid JSON"),
        ('{"round": 1, "samples": [0.1], "rewards": [0.1]}\n{"round": 2}', "line 2: field 'samples' is missing"),
        ('{"round": 1, "samples": [0.1, 0.2], "rewards": [0.1]}', "every sample needs"),
        ('{"round": 1, "samples": [0.1]}', "needs 'baseline' and 'candidates'"),
        ('[{"seed": 1}]', "run 1: needs a field 'trace'"),
        ('[{"config": {"lr": 1}, "trace": [{"round": 1, "samples": [0.1], "rewards": [0]}]}]', "unknown setting 'lr'"),
        ("3", "a round is one JSON object"),
        ("[]", "holds no run"),
        ('[{"config": 3, "trace": [{"round": 1, "samples": [0.1], "rewards": [0]}]}]', "'config' must hold settings"),
        ('[{"seed": "a", "trace": [{"round": 1, "samples": [0.1], "rewards": [0]}]}]', "'seed' must be a whole number"),
        ('{"round": 1, "samples": [55.0], "rewards": [0.1]}', "a ratio between 0 and 1 (got 55.0)"),
        ('{"round": 1, "samples": ["a"], "rewards": [0.1]}', "a ratio between 0 and 1 (got 'a')"),
        ('{"round": 1.5, "samples": [0.1], "rewards": [0.1]}', "'round' must be a whole number above -1 (got 1.5)"),
        (
            '{"round": 2, "samples": [0.1], "rewards": [0.1]}\n{"round": 2, "samples": [0.1], "rewards": [0.1]}',
            "line 2: 'round' must be a whole number above 2 (got 2)",
        ),
    ],
)
def test_bad_histories_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_history(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"round": 1, "samples": [0.1, 0.2], "baseline": [1.0], "candidates": [[1.0], ["x"]]}',
            "round 1: not numbers",
        ),
        ('{"round": 1, "samples": [0.1], "baseline": [1.0], "candidates": [[NaN]]}', "a micro-dev loss is not finite"),
        (
            '{"round": 1, "samples": [0.1], "baseline": [1.0], "candidates": [[1.0, 2.0]]}',
            "round 1: the baseline needs",
        ),
        ('{"round": 1, "samples": [0.1], "rewards": ["x"]}', "round 1: not numbers"),
        ('{"round": 1, "samples": [0.1], "rewards": [0.1], "mask_ratio": "x"}', "round 1: not numbers"),
    ],
)
def test_values_that_cannot_be_replayed_are_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(row)
    with pytest.raises(DataError, match=message):
        replay_file(path)


def test_settings_that_are_wrong_are_refused_on_replay(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text('{"round": 1, "samples": [0.1], "rewards": [0.1]}')
    with pytest.raises(ConfigError, match=r"controller\.p_min: a ratio must lie between 0 and 1"):
        replay_file(path, sets=["controller.p_min=7"])
    with pytest.raises(ConfigError, match="p_min"):
        replay_file(path, sets=["controller.p_min=0.96"])
