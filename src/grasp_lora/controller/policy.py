"""The policy itself: pure functions from state to state, no files, no randomness but the generator passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from .presets import Settings

Vector = NDArray[np.float64]
MIN_VARIANCE = 1e-4
MIN_STD = 1e-3
FIRST_LOOK = 8


@dataclass(frozen=True)
class PolicyState:
    """A Gaussian over the prune ratio and the ratio committed so far.

    `p` is the recorded ratio (the anchor); `applied` is the ratio at which the committed mask was built: 0 until the
    first commit, and different from `p` in the `released` preset only.
    """

    round: int
    mean: float
    std: float
    p: float
    applied: float


def initial_state(settings: Settings) -> PolicyState:
    """Return the state before any round: mean and p at p_init, nothing pruned yet."""
    std = settings.initial_std if settings.preset == "released" else max(settings.initial_std, MIN_STD)
    return PolicyState(0, settings.p_init, std, settings.p_init, 0.0)


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
) -> tuple[float, ...]:
    """Draw from the Gaussian truncated to the bounds, one ratio per equal-probability stratum, in random order.

    Stratifying keeps every candidate's marginal law over the group and removes most of the group's sampling noise.
    """
    low = float(ndtr((settings.p_min - state.mean) / state.std))
    high = float(ndtr((settings.p_max - state.mean) / state.std))
    strata = (np.arange(count) + rng.random(count)) / count
    drawn = state.mean + state.std * ndtri(low + (high - low) * strata)
    bounded = np.clip(drawn, settings.p_min, settings.p_max)
    return tuple(float(x) for x in rng.permutation(bounded))


def advantages(rewards: Vector, noise: float) -> Vector:
    """Return (r - mean r) / sqrt(var r + noise^2), shape (C,): free of the loss's scale, small where all is noise."""
    centred = rewards - rewards.mean()
    scale = math.sqrt(float(np.mean(centred**2)) + noise**2)
    return np.asarray(centred / scale if scale > 0 else centred)


def default_update(
    state: PolicyState, samples: Vector, scaled: Vector, settings: Settings, round_index: int
) -> PolicyState:
    """Natural-gradient step on (mean, log std) from scaled advantages, shape (C,).

    The truncated Gaussian's normaliser has the same score for every candidate and cancels, because the advantages
    add up to zero. The Fisher information is 1 / std^2 for the mean and 2 for log std. The entropy term's gradient
    in log std is 1; it is annealed as 1 / sqrt(round), so that the policy explores first and settles later.
    """
    z = (samples - state.mean) / state.std
    # Sorted sums: permuting the candidates must not change the last bit.
    order = np.lexsort((scaled, samples))
    g_mean = float(np.mean((scaled * z)[order])) * state.std
    g_log_std = float(np.mean((scaled * (z * z - 1))[order])) / 2
    bonus = settings.entropy_bonus / math.sqrt(max(round_index, 1))
    mean = state.mean + settings.policy_lr * (g_mean - settings.anchor * (state.mean - state.p))
    log_std = math.log(state.std) + settings.policy_lr * (g_log_std + bonus)
    widest = max((settings.p_max - settings.p_min) / 2, MIN_STD)
    narrowest = min(MIN_RELATIVE_STD * (settings.p_max - settings.p_min), widest)
    return replace(
        state,
        round=round_index,
        mean=clip(mean, settings.p_min, settings.p_max),
        std=clip(math.exp(log_std), max(narrowest, MIN_STD), widest),
    )


MIN_RELATIVE_STD = 0.06


def default_commit(state: PolicyState, goal: float, settings: Settings) -> PolicyState:
    """Move the committed ratio towards `goal` by at most `max_step`; the mask is built exactly there (point 5)."""
    p = clip(limited(state.p, goal, settings.max_step), settings.p_min, settings.p_max)
    return replace(state, p=p, applied=p)
