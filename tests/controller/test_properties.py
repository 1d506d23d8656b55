"""What must hold whatever the losses are: true records, no dependence on level or order, exact reverts and restarts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.controller.test_session import run
from tests.pico import pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.masks import prune_count
from grasp_lora.config import ControllerConfig
from grasp_lora.controller import Controller, PolicyState, Proposal, policy, resolve
from grasp_lora.controller.axes import Axis

AXES: dict[str, Callable[[Axis], tuple[Axis, ...]] | None] = {
    "ratio": None,
    "ratio_strength": lambda first: (first, Axis("strength", 0.1, 1.2, 1.0, 1.0)),
}
PRESETS = ("default", "released")
RELEASED = resolve(ControllerConfig(preset="released"))
ratios = st.floats(0.0, 0.95)
losses = st.floats(0.5, 3.0)


def controller(axes: str, seed: int = 0, **changes: Any) -> Controller:
    return Controller(ControllerConfig(**changes), seed, axes=AXES[axes])


def answers(one: Controller, proposal: Proposal, rng: np.random.Generator) -> tuple[Any, Any]:
    """Noisy losses (5,) and (C, 5) of a valley in every coordinate."""
    depth = [sum((x - 0.6) ** 2 for x in point) for point in (one.applied_point, *proposal.points)]
    rows = np.asarray(depth)[:, None] + np.arange(5) + rng.normal(0, 0.01, (len(depth), 5))
    return rows[0], rows[1:]


def played(one: Controller, rounds: range, seed: int) -> list[Any]:
    """Play rounds; the losses of a round depend on its number and on what is asked only."""
    decisions = []
    for t in rounds:
        proposal = one.ask(t)
        if proposal is not None:
            decisions.append(one.tell(proposal, *answers(one, proposal, np.random.default_rng((seed, t)))))
    return decisions


# --- the recorded ratio is the measured density -----------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(st.integers(0, 4), st.one_of(st.just(-1.0), st.floats(0, 1)), min_size=1))
def test_the_recorded_ratio_is_the_measured_density(commits: dict[int, float]) -> None:
    bank, _, _, rows, _, _ = run(commits)
    n, sizes = bank.values.numel(), bank.segments("per_tensor")
    for row in rows:
        assert row["density"] == (n - sum(prune_count(row["after"]["p"], size) for size in sizes)) / n
    assert int(bank.values.count_nonzero()) == round(rows[-1]["density"] * n)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 200), st.floats(0, 0.5), st.sampled_from(sorted(AXES)))
def test_a_commit_is_recorded_at_the_ratio_of_its_mask(seed: int, max_step: float, axes: str) -> None:
    for decision in played(controller(axes, seed, max_step=max_step), range(8), seed):
        assert decision.mask_ratio == (decision.recorded_ratio if decision.committed else None)
        assert decision.recorded_ratio == decision.state_after.p
        if decision.committed:
            assert decision.state_after.applied == decision.recorded_ratio
        else:
            assert decision.state_after.applied == decision.state_before.applied


# --- a constant on all rewards changes nothing ------------------------------------------------------------------


@given(st.lists(st.tuples(ratios, losses), min_size=2, max_size=6), st.floats(-2, 2))
def test_released_ignores_a_constant_on_all_rewards(group: list[tuple[float, float]], shift: float) -> None:
    state = PolicyState(3, 0.4, 0.1, 0.4, 0.3)
    samples, gains = zip(*group, strict=True)
    one = policy.released_update(state, samples, gains, RELEASED, 4)
    two = policy.released_update(state, samples, [g + shift for g in gains], RELEASED, 4)
    assert (one.mean, one.std) == pytest.approx((two.mean, two.std), abs=1e-9)


@pytest.mark.parametrize("axes", AXES)
@settings(max_examples=4, deadline=None)
@given(st.floats(-5, 5), st.integers(0, 50))
def test_a_constant_on_a_rounds_rewards_changes_no_policy(axes: str, shift: float, seed: int) -> None:
    """The constant stands on the baseline, and so on every reward of the round; only the commit may look at it."""
    states = []
    for constant in (0.0, shift):
        one = controller(axes, seed)
        played(one, range(1), seed)
        proposal = Proposal.of(1, [tuple(0.1 * (k + 1) for _ in one.applied_point) for k in range(4)])
        base, trials = answers(one, proposal, np.random.default_rng(seed))
        states.append(one.tell(proposal, base + constant, trials).state_after)
    for key in ("mean", "std"):
        np.testing.assert_allclose(states[0].vector(key), states[1].vector(key), atol=1e-9)


# --- the order of candidates changes nothing --------------------------------------------------------------------


@given(st.lists(st.tuples(ratios, losses), min_size=2, max_size=6, unique_by=lambda pair: pair[1]), st.randoms())
def test_released_ignores_the_order_of_candidates(group: list[tuple[float, float]], random: Any) -> None:
    state, shuffled = PolicyState(3, 0.4, 0.1, 0.4, 0.3), list(group)
    random.shuffle(shuffled)
    one, two = (policy.released_update(state, *zip(*rows, strict=True), RELEASED, 4) for rows in (group, shuffled))
    assert (one.mean, one.std, one.p) == pytest.approx((two.mean, two.std, two.p), abs=1e-9)
    assert one.applied == two.applied


@pytest.mark.parametrize("axes", AXES)
@settings(max_examples=6, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 50))
def test_default_ignores_the_order_of_candidates(axes: str, order: list[int], seed: int) -> None:
    found = []
    for rows in (list(range(6)), order):
        one = controller(axes, seed)
        points = [tuple(float(x) for x in np.full(len(one.applied_point), 0.15 * (k + 1))) for k in range(6)]
        proposal = Proposal.of(0, points)
        base, trials = answers(one, proposal, np.random.default_rng(seed))
        decision = one.tell(Proposal.of(0, [points[i] for i in rows]), base, trials[rows])
        found.append((decision, one.estimate()))
    (first, answer), (second, other) = found
    for key in ("mean", "std", "p", "applied"):
        np.testing.assert_allclose(first.state_after.vector(key), second.state_after.vector(key), atol=1e-9)
    assert first.committed == second.committed
    np.testing.assert_allclose(answer.mean, other.mean, atol=1e-6)


# --- a revert restores every bit --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attached() -> Iterator[tuple[Any, Any]]:
    model = pico_model("llama", torch.float32)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    with Injection(model, bank.modules) as injection:
        yield bank, work.evaluator(work.attach(injection, bank), "micro_dev")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=4), st.integers(0, 2**20))
def test_probing_any_masks_restores_every_bit(attached: tuple[Any, Any], seeds: list[int], committed: int) -> None:
    bank, probe = attached

    def mask(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(bank.kept.shape, generator=generator) >= torch.rand(1, generator=generator)

    whole = {name: value.clone() for name, value in bank.state().items()}
    bank.commit(mask(committed))
    before = {name: value.clone() for name, value in bank.state().items()}
    found = probe.candidate_losses([mask(seed) for seed in seeds])
    assert all(torch.equal(value, before[name]) for name, value in bank.state().items())
    assert torch.equal(probe.candidate_losses([mask(seed) for seed in seeds]), found)
    bank.commit(torch.ones_like(bank.kept))
    after = bank.state()
    assert torch.equal(after["values"].view(torch.int32), whole["values"].view(torch.int32))
    assert bool(after["kept"].all())
    assert not bool(after["stash"].any())


# --- a saved and restored controller goes on identically --------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 6))
def test_saved_and_restored_goes_on_identically(axes: str, seed: int, cut: int) -> None:
    through, first = (controller(axes, seed, early_stop=seed % 2 == 0) for _ in range(2))
    played(through, range(cut), seed)
    played(first, range(cut), seed)
    second = controller(axes, seed + 1, early_stop=seed % 2 == 0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert played(through, range(cut, 8), seed) == played(second, range(cut, 8), seed)
    assert through.state_dict() == second.state_dict()
    if len(through.history):
        assert through.estimate().to_dict() == second.estimate().to_dict()
