"""The policy itself: pure functions from state to state, no files, no randomness but the generator passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from ..errors import check_fields
from .presets import Settings

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Point: TypeAlias = tuple[float, ...]
MIN_VARIANCE = 1e-4
MIN_STD = 1e-3
FIRST_LOOK = 8


@dataclass(frozen=True)
class Coordinate:
    """What a policy holds on one axis beside the first: mean, spread, recorded and applied value."""

    mean: float
    std: float
    p: float
    applied: float


@dataclass(frozen=True)
class PolicyState:
    """A Gaussian over the prune ratio and the ratio committed so far; `rest` has the same for further axes.

    `p` is the recorded ratio (the anchor); `applied` is the ratio at which the committed mask was built: 0 until the
    first commit, and different from `p` in the `released` preset only.
    """

    round: int
    mean: float
    std: float
    p: float
    applied: float
    rest: tuple[Coordinate, ...] = ()

    def vector(self, field: str) -> Vector:
        """Return one of mean, std, p and applied on all axes, shape (D,)."""
        return np.array([getattr(self, field), *(getattr(axis, field) for axis in self.rest)])

    @classmethod
    def build(cls, round_index: int, mean: Vector, std: Vector, p: Vector, applied: Vector) -> PolicyState:
        """Return the state with these vectors, each of shape (D,)."""
        rows = [Coordinate(*(float(x) for x in row)) for row in zip(mean, std, p, applied, strict=True)]
        first = rows[0]
        return cls(round_index, first.mean, first.std, first.p, first.applied, tuple(rows[1:]))

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> PolicyState:
        """Rebuild from `dataclasses.asdict`; raises `RunError` for the fields of another version."""
        check_fields(saved, cls)
        rest = saved.get("rest", ())
        for axis in rest:
            check_fields(axis, Coordinate)
        return cls(**{**saved, "rest": tuple(Coordinate(**axis) for axis in rest)})


def initial_state(settings: Settings) -> PolicyState:
    """Return the state before any round: mean and p at the axes' first values, nothing pruned yet."""
    init = np.array([axis.init for axis in settings.axes])
    std = np.array([(axis.high - axis.low) / 6 for axis in settings.axes])
    if settings.preset != "released":
        std = np.maximum(std, MIN_STD)
    return PolicyState.build(0, init, std, init, np.array([axis.start for axis in settings.axes]))


def clip(value: float, low: float, high: float) -> float:
    """Return `value` moved into [low, high]."""
    return min(max(value, low), high)


# --- released ---------------------------------------------------------------------------------------------------


def released_samples(state: PolicyState, settings: Settings, rng: np.random.Generator) -> tuple[float, ...]:
    """Draw C ratios from N(mean, std^2), each clamped to the bounds (algorithm: table of errors, point 4)."""
    drawn = rng.normal(state.mean, state.std, settings.candidates)
    return tuple(clip(float(x), settings.p_min, settings.p_max) for x in drawn)


def released_update(
    state: PolicyState,
    samples: Sequence[float],
    rewards: Sequence[float],
    settings: Settings,
    round_index: int,
) -> PolicyState:
    """One round of the released arithmetic: centred advantages, sigma plus bonus, step-limited p (points 2, 3, 5, 12).

    The order of operations is the release's, so that recorded runs agree to the last bits.
    """
    count = len(samples)
    average = sum(rewards) / count
    advantages = [r - average for r in rewards]
    variance = max(state.std**2, MIN_VARIANCE)
    g_mean = sum(a * (p - state.mean) / variance for a, p in zip(advantages, samples, strict=True)) / count
    g_std = sum(a * ((p - state.mean) ** 2 / variance - 1) for a, p in zip(advantages, samples, strict=True)) / count
    pull = settings.anchor * (state.mean - state.p)
    mean = clip(state.mean + settings.policy_lr * (g_mean - pull), settings.p_min, settings.p_max)
    std = max(MIN_STD, state.std + settings.policy_lr * g_std + settings.entropy_bonus)
    p, applied = _released_commit(state, samples, rewards, settings)
    return PolicyState(round_index, mean, std, p, applied)


def _released_commit(
    state: PolicyState, samples: Sequence[float], rewards: Sequence[float], settings: Settings
) -> tuple[float, float]:
    best = max(range(len(samples)), key=lambda i: rewards[i])
    if rewards[best] < 0:
        return state.p, state.applied
    return limited(state.p, samples[best], settings.max_step), samples[best]


def limited(start: float, goal: float, step: float) -> float:
    """Return `goal`, or the point `step` away from `start` on the way to it."""
    return start + clip(goal - start, -step, step)


# --- default ----------------------------------------------------------------------------------------------------


def truncated_samples(
    state: PolicyState, settings: Settings, rng: np.random.Generator, count: int
) -> tuple[Point, ...]:
    """Draw points (D,) from the Gaussian truncated to the bounds, one per equal-probability stratum of every axis.

    Stratifying keeps every candidate's marginal law over the group and removes most of the group's sampling noise. Each
    axis has an order of its own, as in a Latin hypercube.
    """
    columns = []
    for axis, mean, std in zip(settings.axes, state.vector("mean"), state.vector("std"), strict=True):
        low, high = float(ndtr((axis.low - mean) / std)), float(ndtr((axis.high - mean) / std))
        strata = (np.arange(count) + rng.random(count)) / count
        drawn = mean + std * ndtri(low + (high - low) * strata)
        columns.append(rng.permutation(np.clip(drawn, axis.low, axis.high)))
    return as_points(np.stack(columns, axis=1))


def first_look(settings: Settings, rng: np.random.Generator) -> tuple[Point, ...]:
    """Return a stratified sweep of all axes: probes are cheapest, and tell most, right after the merge.

    One axis: FIRST_LOOK points in rising order; D of them: a Latin hypercube of FIRST_LOOK (D + 1).
    """
    count = FIRST_LOOK * (len(settings.axes) + 1 if len(settings.axes) > 1 else 1)
    columns = []
    for d, axis in enumerate(settings.axes):
        place = (np.arange(count) + rng.random(count)) / count
        column = axis.low + (axis.high - axis.low) * place
        columns.append(rng.permutation(column) if d else column)
    return as_points(np.stack(columns, axis=1))


def as_points(rows: Matrix) -> tuple[Point, ...]:
    """Return rows (n, D) as plain tuples."""
    return tuple(tuple(float(x) for x in row) for row in rows)


def advantages(rewards: Vector, noise: float) -> Vector:
    """Return (r - mean r) / sqrt(var r + noise^2), shape (C,): free of the loss's scale, small where all is noise."""
    centred = rewards - rewards.mean()
    scale = math.sqrt(float(np.mean(centred**2)) + noise**2)
    return np.asarray(centred / scale if scale > 0 else centred)


def default_update(
    state: PolicyState, points: Matrix, scaled: Vector, settings: Settings, round_index: int
) -> PolicyState:
    """Natural-gradient step on (mean, log std) of every axis from scaled advantages (C,) of points (C, D).

    The truncated Gaussian's normaliser has the same score for every candidate and cancels, because the advantages
    add up to zero. The Fisher information is 1 / std^2 for the mean and 2 for log std. The entropy term's gradient
    in log std is 1; it is annealed as 1 / sqrt(round), so that the policy explores first and settles later.
    """
    rows = np.reshape(points, (len(scaled), -1))
    mean, std, p = state.vector("mean"), state.vector("std"), state.vector("p")
    low, high = settings.lows, settings.highs
    z = (rows - mean) / std
    # Sorted sums: permuting the candidates must not change the last bit.
    order = np.lexsort((scaled, *rows.T[::-1]))
    g_mean = np.mean((scaled[:, None] * z)[order], axis=0) * std
    g_log_std = np.mean((scaled[:, None] * (z * z - 1))[order], axis=0) / 2
    bonus = settings.entropy_bonus / math.sqrt(max(round_index, 1))
    mean = mean + settings.policy_lr * (g_mean - settings.anchor * (mean - p))
    log_std = np.log(std) + settings.policy_lr * (g_log_std + bonus)
    widened = bounded_std(np.exp(log_std), settings)
    return PolicyState.build(round_index, np.clip(mean, low, high), widened, p, state.vector("applied"))


MIN_RELATIVE_STD = 0.06


def bounded_std(std: Vector, settings: Settings) -> Vector:
    """Return the spread (D,) kept between 6 % and 50 % of each axis."""
    span = settings.highs - settings.lows
    widest = np.maximum(span / 2, MIN_STD)
    return np.clip(std, np.maximum(np.minimum(MIN_RELATIVE_STD * span, widest), MIN_STD), widest)


def default_commit(state: PolicyState, goal: Sequence[float] | float, settings: Settings) -> PolicyState:
    """Move the committed point towards `goal` by at most `max_step`; the mask is built exactly there (point 5)."""
    p = state.vector("p")
    reach = settings.max_step * np.array([axis.span for axis in settings.axes])
    return committed_at(state, p + np.clip(np.atleast_1d(goal) - p, -reach, reach), settings)


def committed_at(state: PolicyState, point: Sequence[float] | Vector, settings: Settings) -> PolicyState:
    """Return the state with `point`, moved into the bounds, as recorded and applied."""
    p = np.clip(np.asarray(point, float), settings.lows, settings.highs)
    return PolicyState.build(state.round, state.vector("mean"), state.vector("std"), p, p)
