"""The fit behind p_star: exact pieces against plain linear algebra, and what it must not be fooled by."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from grasp_lora.controller.estimate import EstimateSettings, estimate
from grasp_lora.controller.history import Evaluations, History
from grasp_lora.controller.moments import Sums
from grasp_lora.controller.noise import noise_of_mean
from grasp_lora.controller.surface import Problem, pose, supported

WIDE = EstimateSettings(((0.0, 0.95),))


def observed(curve: object, offsets: object = lambda _t: 0.0, noise: float = 0.01, seed: int = 0) -> Evaluations:
    rng, history = np.random.default_rng(seed), History()
    levels = rng.normal(0, 0.8, 16)
    for t in range(10):
        for p in rng.uniform(0, 0.95, 4):
            history.add(t, p, curve(p) + levels + offsets(t) + rng.normal(0, noise * 4, 16))
    return history.as_arrays()


def answer(data: Evaluations, settings: EstimateSettings = WIDE) -> float:
    return estimate(data, settings, np.random.default_rng(0)).p_star


def test_the_answer_is_the_same_to_the_bit_whatever_the_number_of_threads() -> None:
    history, rng = History(), np.random.default_rng(0)
    for t in range(12):
        for p in rng.uniform(0, 0.95, (4, 2)):
            history.add(t, p, ((p - 0.5) ** 2).sum() + rng.normal(0, 0.02, 16))
    settings = replace(WIDE, bounds=((0.0, 0.95), (0.5, 2.0)))
    found, after = [], []
    for threads in (1, 2, 4):
        with threadpool_limits(threads, user_api="blas"):
            found.append(estimate(history.as_arrays(), settings, np.random.default_rng(0)))
            after.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
    assert after[1] == {2}  # what was set comes back
    for other in found[1:]:
        assert np.array_equal(other.minima, found[0].minima)
        assert repr(other.to_dict()) == repr(found[0].to_dict())


@pytest.mark.parametrize("effect", [0.02, 4000.0])
def test_round_effects_are_whitened_as_by_the_full_covariance(effect: float) -> None:
    problem = pose(observed(lambda p: (p - 0.5) ** 2), 0.01, ((0.0, 0.95),))
    phi = np.random.default_rng(1).normal(size=(40, 3))
    whitened = Sums.of(phi, problem.Y, problem.weights, problem.member).whitened(effect)
    rows = np.concatenate([np.ones((40, 1)), phi], axis=1)
    V = np.diag(1 / problem.weights) + effect * problem.member.T @ problem.member
    assert whitened.xx.sum(axis=0) == pytest.approx(rows.T @ np.linalg.solve(V, rows), rel=1e-9)
    assert whitened.xy.sum(axis=0) == pytest.approx(rows.T @ np.linalg.solve(V, problem.Y), rel=1e-8, abs=1e-9)
    mean = problem.Y.mean(axis=1)
    shared = -0.5 * mean @ np.linalg.solve(V, mean) - 0.5 * np.linalg.slogdet(V * problem.weights)[1]
    assert whitened.shared == pytest.approx(shared, rel=1e-9)


def test_sums_by_round_are_the_normal_equations_of_the_whole_design() -> None:
    problem = pose(observed(lambda p: (p - 0.5) ** 2), 0.01, ((0.0, 0.95),))
    phi, t = np.random.default_rng(1).normal(size=(40, 3)), problem.rounds
    taus, shares, drift = np.array([5.0, 20.0]), np.array([0.1, 0.4]), np.arange(10) / 9 - 0.5
    white = Sums.of(phi, problem.Y, problem.weights, problem.member).whitened(20.0)
    XtX, XtY = white.settling(drift, np.exp(-np.arange(10) / taus[:, None]), shares)
    V = np.diag(1 / problem.weights) + 20.0 * problem.member.T @ problem.member
    for k, (tau, share) in enumerate(itertools.product(taus, shares)):
        e = np.exp(-t / tau)[:, None]
        plain = [np.ones_like(e), (t / 9 - 0.5)[:, None]]
        X = np.concatenate([*plain, (share + (1 - share) * e) * phi, e, (1 - e) * phi], axis=1)
        expected = X.T @ np.linalg.solve(V, np.concatenate([X, problem.Y], axis=1))
        assert np.tril(XtX[k]) == pytest.approx(np.tril(expected[:, :9]), rel=1e-8, abs=1e-9)
        assert XtY[k] == pytest.approx(expected[:, 9:], rel=1e-8, abs=1e-8)


def test_the_posterior_mean_is_that_of_the_full_gaussian_regression() -> None:
    data = observed(lambda p: (p - 0.5) ** 2)
    problem: Problem = pose(data, 0.01, ((0.0, 0.95),))
    choices, weights = supported(problem)
    assert weights.sum() == pytest.approx(1.0)
    choice = choices[0]
    X = np.concatenate([choice.rows(problem, data.points[[k]], data.rounds[k]) for k in range(len(data.points))])
    fits = []
    for effect in (0.02, max(20.0, problem.reach**2)):
        V = np.diag(1 / problem.weights) + effect * problem.member.T @ problem.member
        fits.append(X.T @ np.linalg.solve(X @ X.T + V, problem.Y))  # the dual form
    ours = np.linalg.solve(choice.root @ choice.root.T, choice.scale[:, None] * choice.right)
    errors = [np.abs(ours - fit).max() / np.abs(fit).max() for fit in fits]
    assert min(errors) < 1e-6


def test_noise_is_measured_between_examples() -> None:
    assert noise_of_mean(observed(lambda p: (p - 0.5) ** 2, noise=0.02)) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("best", [0.15, 0.5, 0.85])
def test_a_valley_is_found(best: float) -> None:
    assert answer(observed(lambda p: 0.5 * (p - best) ** 2)) == pytest.approx(best, abs=0.08)


def test_jumps_between_rounds_do_not_move_the_answer() -> None:
    jumps = np.random.default_rng(5).normal(0, 2.0, 10)
    calm = answer(observed(lambda p: 0.5 * (p - 0.6) ** 2))
    assert answer(observed(lambda p: 0.5 * (p - 0.6) ** 2, lambda t: jumps[t])) == pytest.approx(calm, abs=0.08)


def test_the_deeper_of_two_valleys_wins() -> None:
    def curve(p: float) -> float:
        return -0.10 * np.exp(-(((p - 0.2) / 0.1) ** 2)) - 0.16 * np.exp(-(((p - 0.75) / 0.1) ** 2))

    assert answer(observed(curve)) == pytest.approx(0.75, abs=0.08)


def test_a_plateau_is_answered_at_its_sparser_end_if_asked() -> None:
    data = observed(lambda p: 3.0 * max(p - 0.6, 0.0) ** 2)
    ends = [answer(data, replace(WIDE, plateau=errors)) for errors in (0.0, 0.5, 2.0)]
    assert ends == sorted(ends)
    assert ends[0] < ends[2] < 0.75


def test_more_noise_means_a_wider_interval() -> None:
    widths = []
    for noise in (0.003, 0.05):
        found = estimate(observed(lambda p: 0.5 * (p - 0.5) ** 2, noise=noise), WIDE, np.random.default_rng(0))
        assert found.interval is not None
        widths.append(found.interval[1] - found.interval[0])
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize("bounds", [((0.0, 0.0), (0.0, 0.0)), ((0.0, 0.95), (1.0, 1.0)), ((0.3, 0.3), (0.0, 0.5))])
def test_axes_without_a_range_are_fitted(bounds) -> None:
    history, rng = History(), np.random.default_rng(0)
    for t in range(4):
        for p in rng.uniform(*np.array(bounds).T, (4, 2)):
            history.add(t, p, p.sum() ** 2 + rng.normal(0, 0.02, 16))
    found = estimate(history.as_arrays(), replace(WIDE, bounds=bounds), np.random.default_rng(0))
    for (low, high), value in zip(bounds, found.best, strict=True):
        assert low <= value <= high
