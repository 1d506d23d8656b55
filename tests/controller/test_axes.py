"""Policies of several coordinates: what they may choose, how they learn it, and what it means for a merge."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import ControllerConfig
from grasp_lora.controller import Controller
from grasp_lora.controller.axes import Axis, merge_point, policy_axes, ratio_axis
from grasp_lora.controller.plane import Plane, plane_from
from grasp_lora.controller.replay import replay_file
from grasp_lora.controller.simulate import run_controller, simulate
from grasp_lora.errors import ConfigError, DataError

FIRST = ratio_axis(0.0, 0.95, 0.4)
NAMES, TYPES = ("en", "ar"), ("q_proj", "v_proj")


def axes(policy, scope="per_tensor", **config):
    return policy_axes(policy, ControllerConfig(**config), FIRST, NAMES, TYPES, scope)


def bowl(best=(0.5, 0.6), noise=0.002, **changes) -> Plane:
    """A smooth surface with its minimum at `best` in (ratio, strength)."""
    p, q = np.linspace(0, 1, 21), np.linspace(0.1, 1.2, 23)
    loss = 2 + 0.5 * (p[:, None] - best[0]) ** 2 + 0.4 * (q - best[1]) ** 2
    surface = tuple(tuple(float(x) for x in row) for row in loss)
    given = {"shift_sd": (0.02, 0.02), "noise_sd": noise, "drift_per_round": 0.003, **changes}
    return Plane("bowl", "strength", tuple(map(float, p)), tuple(map(float, q)), surface, 16, 0.8, **given)


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        ("ratio", ["ratio"]),
        ("ratio_strength", ["ratio", "strength"]),
        ("ratio_weights", ["ratio", "weight:en", "weight:ar"]),
        ("ratio_per_adapter", ["ratio:en", "ratio:ar"]),
        ("ratio_per_module_type", ["ratio:q_proj", "ratio:v_proj"]),
    ],
)
def test_a_policy_has_its_axes(policy, names):
    found = axes(policy)
    assert [axis.name for axis in found] == names
    assert all(axis.start == (0.0 if axis.kind == "ratio" else 1.0) for axis in found)


@pytest.mark.parametrize("policy", ["ratio_per_adapter", "ratio_per_module_type"])
def test_own_ratios_need_a_ranking_per_tensor(policy):
    with pytest.raises(ConfigError, match="per_tensor"):
        axes(policy, scope="global")


def test_points_become_merges():
    assert merge_point(axes("ratio"), [0.3]) == MergePoint(0.3)
    assert merge_point(axes("ratio_strength"), [0.3, 0.7]) == MergePoint(0.3, 0.7)
    assert merge_point(axes("ratio_weights"), [0.3, 0.7, 1.1]) == MergePoint(0.3, 1.0, (0.7, 1.1))
    own = merge_point(axes("ratio_per_adapter"), [0.2, 0.6])
    assert (own.ratio, own.of("en", "q_proj"), own.of("ar", "q_proj")) == (pytest.approx(0.4), 0.2, 0.6)
    assert MergePoint.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert "strength 0.700" in MergePoint(0.3, 0.7).describe()


def test_the_released_preset_learns_a_ratio_only():
    with pytest.raises(ValueError, match="ratio only"):
        ControllerConfig(preset="released", policy="ratio_strength")


def test_a_bowl_is_found_in_both_coordinates_with_intervals():
    report = simulate([bowl()], ControllerConfig(), seeds=3, rounds=30)
    row = report["landscapes"][0]
    best = np.asarray(row["best"])
    assert np.abs(best - (0.5, 0.6)).max() < 0.12
    assert row["regret"]["mean"] < 0.004
    assert all(low <= p <= high for p, (low, high) in zip(row["p_star"], row["interval"], strict=True))


def test_the_first_look_covers_both_axes_and_the_policy_starts_at_its_minimum():
    controller = Controller(ControllerConfig(), 3, axes=bowl().axes)
    proposal = controller.ask(0)
    points = np.asarray(proposal.points)
    assert points.shape == (24, 2)
    for d, axis in enumerate(controller.settings.axes):
        strata = np.floor((points[:, d] - axis.low) / (axis.high - axis.low) * 24)
        assert sorted(strata) == list(range(24))
    land = bowl(noise=0.0)
    losses = np.stack([land.curve(np.asarray([point])) + np.zeros(16) for point in proposal.points])
    decision = controller.tell(proposal, land.curve(np.array([[0.0, 1.0]])) + np.zeros(16), losses)
    assert decision.committed
    assert controller.applied_point == pytest.approx((0.5, 0.6), abs=0.1)


def test_commits_move_every_coordinate_by_no_more_than_the_cap():
    controller = run_controller(bowl(), ControllerConfig(early_stop=False), 1, 30)
    reach = np.array([0.1, 0.1 * 1.1])
    steps = [d.state_after.vector("p") - d.state_before.vector("p") for d in controller.decisions[1:]]
    assert np.abs(steps).max(axis=0) == pytest.approx(np.minimum(np.abs(steps).max(axis=0), reach))


@settings(max_examples=10)
@given(st.integers(0, 50), st.floats(-3, 3))
def test_a_constant_added_to_all_losses_changes_nothing(seed, shift):
    one, two = (Controller(ControllerConfig(), seed, axes=bowl().axes) for _ in range(2))
    rng = np.random.default_rng(seed)
    proposal, other = one.ask(0), two.ask(0)
    assert proposal == other
    losses, base = rng.normal(2, 0.1, (24, 16)), rng.normal(2, 0.1, 16)
    one.tell(proposal, base, losses)
    two.tell(other, base + shift, losses + shift)
    assert one.state.vector("mean") == pytest.approx(two.state.vector("mean"), abs=1e-6)


def test_a_saved_controller_goes_on_identically():
    land = bowl()
    first = Controller(ControllerConfig(early_stop=False), 5, axes=land.axes)
    rng = np.random.default_rng(0)
    for t in range(4):
        proposal = first.ask(t)
        losses = rng.normal(2, 0.01, (len(proposal.points), 16))
        first.tell(proposal, losses[0], losses)
    second = Controller(ControllerConfig(early_stop=False), 5, axes=land.axes)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.ask(4) == first.ask(4)
    assert second.estimate().to_dict() == first.estimate().to_dict()


def test_a_history_of_points_replays(tmp_path):
    land, config = bowl(), ControllerConfig(early_stop=False)
    controller = run_controller(land, config, 2, 5)
    rows, points, place = [], controller.history.points, 0
    for decision in controller.decisions:
        size = len(decision.rewards)
        rows.append(
            {
                "round": decision.state_after.round,
                "axes": ["ratio", "strength"],
                "samples": [p for p, _ in points[place + 1 : place + 1 + size]],
                "points": [list(point) for point in points[place + 1 : place + 1 + size]],
                "baseline": controller.history.losses[place],
                "candidates": controller.history.losses[place + 1 : place + 1 + size],
                "mask_ratio": decision.mask_ratio,
                "applied": decision.state_after.vector("applied").tolist(),
                "seed": 2,
            }
        )
        place += size + 1
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = replay_file(path, sets=["controller.early_stop=false"])["runs"][0]
    assert run["axes"] == ["ratio", "strength"]
    assert run["best"] == list(controller.estimate().best)
    assert [r["mean"] for r in run["rounds"]] == [d.state_after.mean for d in controller.decisions]


def test_a_strength_at_its_bound_is_a_finding():
    land = bowl(best=(0.5, 1.5))
    controller = run_controller(land, ControllerConfig(), 0, 20)
    codes = {d.code: d for d in controller.diagnostics()}
    assert "strength" in codes["p_star_at_bound"].seen
    assert "strength_max" in codes["p_star_at_bound"].advice


GOOD = {
    "name": "x", "axis": "strength", "p": [0, 1], "q": [0.5, 1], "loss": [[1, 2], [3, 4]], "examples": 4,
    "example_sd": 0.1, "shift_sd": 0.0, "noise_sd": 0.0, "drift_per_round": 0.0,
}  # fmt: skip


def test_a_surface_is_bilinear_and_its_regret_is_from_the_lowest_knot():
    land = plane_from(GOOD, "file")
    assert land.curve(np.array([[0.5, 0.75], [0.0, 0.5], [2.0, 9.0]])) == pytest.approx([2.5, 1.0, 4.0])
    assert land.regret((0.5, 0.75)) == pytest.approx(1.5)
    assert land.covered([(0.0, 0.2), (0.4, 0.6)])
    assert not land.covered([(0.2, 0.4), (0.5, 0.6)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"axis": "speed"}, "'axis' must be"),
        ({"loss": [[1, 2]]}, "one list per value of p"),
        ({"loss": [[1, 2], [3]]}, "one value per value of q"),
        ({"q": [1, 0.5]}, "'q' must rise"),
        ({"shift_sd": [0.1, 0.1, 0.1]}, "'shift_sd' needs"),
        ({"noise_sd": -1}, "must not be negative"),
        ({"examples": 0}, "'examples'"),
        ({"settle_rounds": 3}, "belong together"),
        ({"sead": 1}, "unknown field 'sead'"),
    ],
)
def test_a_bad_surface_is_one_error(change, says):
    with pytest.raises(DataError, match=says):
        plane_from({**GOOD, **change}, "file")


def test_a_missing_field_is_named():
    with pytest.raises(DataError, match="'examples' is missing"):
        plane_from({k: v for k, v in GOOD.items() if k != "examples"}, "file")


def test_a_weight_axis_takes_its_range_from_the_surface():
    land = plane_from({**GOOD, "axis": "weight:en"}, "file")
    assert land.axes(FIRST)[1] == Axis("weight:en", 0.5, 1.0, 1.0, 1.0)
    own = plane_from({**GOOD, "axis": "ratio:ar", "q": [0.0, 0.9]}, "file")
    assert own.axes(FIRST)[1] == ratio_axis(0.0, 0.9, 0.4, "ar")
