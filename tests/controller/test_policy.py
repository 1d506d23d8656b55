"""The policy's arithmetic, both presets, by formula and by property."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grasp_lora.config import ControllerConfig
from grasp_lora.controller import Controller, Proposal, policy, resolve
from grasp_lora.controller.policy import PolicyState
from grasp_lora.controller.replay import read_history, replay

SHARED_TRACE = Path(__file__).parents[3] / "shared/spec/traces/released_policy.json"
RELEASED = resolve(ControllerConfig(preset="released"))
DEFAULT = resolve(ControllerConfig())
ratios = st.floats(0.0, 0.95)
rewards = st.floats(-2.0, 2.0)
groups = st.lists(st.tuples(ratios, rewards), min_size=2, max_size=6)
states = st.builds(PolicyState, st.just(3), ratios, st.floats(0.06, 0.4), ratios, ratios)


def test_released_round_by_hand() -> None:
    state = PolicyState(0, 0.4, 0.1, 0.4, 0.0)
    after = policy.released_update(state, (0.5, 0.3, 0.7), (0.3, -0.1, 0.1), RELEASED, 1)
    # mean reward 0.1, advantages 0.2, -0.2, 0; variance 0.01
    # g_mu = (0.2 * 0.1 + 0.2 * 0.1) / 0.01 / 3; g_sigma = (0.2 * 0 - 0.2 * 0) / 3
    assert after.mean == pytest.approx(0.4 + 0.05 * (0.04 / 0.01 / 3), abs=1e-12)
    assert after.std == pytest.approx(0.1 + 0.01, abs=1e-12)
    assert after.p == pytest.approx(0.5, abs=1e-12)
    assert after.applied == 0.5


def test_released_commit_applies_the_sample_but_records_the_limited_step() -> None:
    after = policy.released_update(PolicyState(0, 0.4, 0.1, 0.4, 0.0), (0.8, 0.5), (0.0, -1.0), RELEASED, 1)
    assert (after.applied, after.p) == (0.8, 0.5)
    kept = policy.released_update(after, (0.6, 0.7), (-0.1, -0.2), RELEASED, 2)
    assert (kept.applied, kept.p) == (0.8, 0.5)


def test_released_clamps_and_floors() -> None:
    tight = policy.released_update(PolicyState(0, 0.7, 0.002, 0.7, 0.0), (0.8, 0.1), (5.0, -5.0), RELEASED, 1)
    assert tight.mean == 0.8
    variance = 1e-4  # the floor: 0.002 ** 2 is below it
    g_std = (5.0 * (0.1**2 / variance - 1) - 5.0 * (0.6**2 / variance - 1)) / 2
    assert g_std < 0
    assert tight.std == 1e-3


def test_released_p_star_is_the_largest_logged_value_baselines_included() -> None:
    controller = Controller(ControllerConfig(preset="released"), 0)
    assert controller.ask(0) is None
    controller.tell(Proposal(1, (0.2, 0.3)), [3.0, 3.0], [[4.0, 4.0], [5.0, 5.0]])  # rewards -1, -2; logs -3 at 0.4
    assert controller.estimate().p_star == 0.2
    controller.tell(Proposal(2, (0.6, 0.7)), [-4.0, 2.5], [[5.0, 5.0], [6.0, 6.0]])  # logs 0.75 at p = 0.4
    assert controller.estimate().p_star == 0.4
    assert controller.estimate().interval is None


@pytest.mark.shared
@pytest.mark.skipif(not SHARED_TRACE.exists(), reason="needs ../shared")
def test_released_reproduces_recorded_runs() -> None:
    recorded = json.loads(SHARED_TRACE.read_text())
    replayed = replay(read_history(SHARED_TRACE))["runs"]
    assert len(replayed) == len(recorded) == 2
    for ours, theirs in zip(replayed, recorded, strict=True):
        assert ours["p_star"] == pytest.approx(theirs["p_star"], abs=1e-12)
        for row, round_ in zip(ours["rounds"], theirs["trace"], strict=True):
            for key in ("mean", "std", "p"):
                assert row[key] == pytest.approx(round_["after"][key], abs=1e-12)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED_TRACE.exists(), reason="needs ../shared")
def test_released_mask_ratio_gives_the_recorded_masked_entries() -> None:
    for run in json.loads(SHARED_TRACE.read_text()):
        bonus = run["config"]["entropy_bonus"]
        controller = Controller(ControllerConfig(preset="released", entropy_bonus=bonus), 0)
        half = run["total_entries"] // 2  # two tensors of equal size
        for row in run["trace"]:
            controller.tell_rewards(Proposal(row["round"], tuple(row["samples"])), None, row["rewards"])
            assert 2 * math.floor(controller.applied_ratio * half + 1e-9) == row["masked_entries"]


@given(states, groups, st.floats(-3, 3))
def test_default_ignores_a_constant_added_to_all_rewards(state: PolicyState, group: list, shift: float) -> None:
    samples, gains = (np.array(x) for x in zip(*group, strict=True))
    noise = 0.05
    one = policy.default_update(state, samples, policy.advantages(gains, noise), DEFAULT, 4)
    two = policy.default_update(state, samples, policy.advantages(gains + shift, noise), DEFAULT, 4)
    assert (one.mean, one.std) == pytest.approx((two.mean, two.std), abs=1e-9)


@given(states, groups, st.randoms(use_true_random=False))
def test_default_ignores_the_order_of_candidates(state: PolicyState, group: list, random) -> None:
    shuffled = list(group)
    random.shuffle(shuffled)
    results = []
    for rows in (group, shuffled):
        samples, gains = (np.array(x) for x in zip(*rows, strict=True))
        results.append(policy.default_update(state, samples, policy.advantages(gains, 0.01), DEFAULT, 4))
    assert (results[0].mean, results[0].std) == pytest.approx((results[1].mean, results[1].std), abs=1e-12)


@given(states, groups, st.floats(1e-3, 1e3))
def test_default_ignores_the_scale_of_the_loss(state: PolicyState, group: list, scale: float) -> None:
    samples, gains = (np.array(x) for x in zip(*group, strict=True))
    one = policy.default_update(state, samples, policy.advantages(gains, 0.05), DEFAULT, 4)
    two = policy.default_update(state, samples, policy.advantages(gains * scale, 0.05 * scale), DEFAULT, 4)
    assert (one.mean, one.std) == pytest.approx((two.mean, two.std), abs=1e-9)


@given(states, groups, st.floats(0, 1))
def test_default_states_stay_inside_their_bounds(state: PolicyState, group: list, goal: float) -> None:
    samples, gains = (np.array(x) for x in zip(*group, strict=True))
    after = policy.default_update(state, samples, policy.advantages(gains, 0.01), DEFAULT, 1)
    assert DEFAULT.p_min <= after.mean <= DEFAULT.p_max
    assert 0 < after.std <= (DEFAULT.p_max - DEFAULT.p_min) / 2
    committed = policy.default_commit(after, goal, DEFAULT)
    assert abs(committed.p - state.p) <= DEFAULT.max_step + 1e-12
    assert committed.applied == committed.p
    assert DEFAULT.p_min <= committed.p <= DEFAULT.p_max


@settings(max_examples=60)
@given(states, st.integers(1, 8), st.integers(0, 99))
def test_samples_stay_inside_the_bounds(state: PolicyState, count: int, seed: int) -> None:
    for own in (DEFAULT, resolve(ControllerConfig(p_min=0.3, p_max=0.35, p_init=0.3))):
        drawn = policy.truncated_samples(state, own, np.random.default_rng(seed), count)
        assert len(drawn) == count
        assert all(own.p_min <= p <= own.p_max for (p,) in drawn)


def test_truncated_samples_follow_the_truncated_gaussian() -> None:
    from scipy.stats import kstest, truncnorm

    state = PolicyState(0, 0.8, 0.2, 0.8, 0.0)
    rng = np.random.default_rng(1)
    drawn = [p for _ in range(800) for p in policy.truncated_samples(state, DEFAULT, rng, 3)]
    law = truncnorm((0.0 - 0.8) / 0.2, (0.95 - 0.8) / 0.2, 0.8, 0.2)
    assert kstest(drawn, law.cdf).pvalue > 0.01


def test_entropy_widens_a_policy_that_learns_nothing_less_and_less() -> None:
    state = PolicyState(0, 0.5, 0.1, 0.5, 0.0)
    flat, samples = np.zeros(3), np.array([0.4, 0.5, 0.6])
    early = policy.default_update(state, samples, flat, DEFAULT, 1).std
    late = policy.default_update(state, samples, flat, DEFAULT, 100).std
    assert early > late > state.std
