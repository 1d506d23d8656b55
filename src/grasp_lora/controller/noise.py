"""What disturbs an evaluation, measured between the micro-dev examples: noise, and ratios that differ by example."""

from __future__ import annotations

import numpy as np

from .features import GRID, Matrix, Vector
from .history import Evaluations
from .surface import Choice, Problem


def noise_of_mean(data: Evaluations) -> float:
    """Return the noise (one standard deviation, nats) of an evaluation's mean, measured between examples.

    What examples share (round, drift, curve) is removed exactly, each example's own smooth curve over ratio and time by
    least squares; what is left is noise. Without per-example losses the means' own residual has to serve.
    """
    t = data.rounds
    design = _smooth(data.points, t)
    design = design / np.maximum(np.abs(design).max(axis=0), 1e-12)
    n, k = design.shape
    if n <= k:
        return 0.0
    centred = data.losses - data.losses.mean(axis=1, keepdims=True)
    if not data.per_example:
        centred, design = _within_rounds(data.losses, t), _within_rounds(design, t)
        n -= len(np.unique(t)) - 1
        if n <= k:
            return 0.0
    m = centred.shape[1]
    # A whisper of ridge: early designs (round 0 alone) have columns that coincide.
    padded = np.concatenate([design, 1e-4 * np.eye(k)]), np.concatenate([centred, np.zeros((k, m))])
    residual = centred - design @ np.linalg.lstsq(*padded, rcond=None)[0]
    variance = float((residual**2).sum()) / ((n - k) * max(m - 1, 1))
    return float(np.sqrt(variance / m))


def _within_rounds(rows: Matrix, rounds: Vector) -> Matrix:
    """Return rows (n, k) less the mean of their round."""
    member = (np.unique(rounds)[:, None] == rounds[None, :]).astype(float)
    return np.asarray(rows - member.T @ ((member @ rows) / member.sum(axis=1, keepdims=True)))


def noise_of_rewards(baseline: Vector, trials: Matrix) -> float:
    """Return the standard error (nats) of the differences between candidates, from examples; (m,), (C, m)."""
    m = trials.shape[1]
    if m < 2 or baseline.shape != (m,):
        return 0.0
    centred = trials - trials.mean(axis=0)
    return float(np.sqrt(np.mean(centred.var(axis=1, ddof=1)) / m))


def _smooth(points: Matrix, t: Vector) -> Matrix:
    """Return the columns of a smooth curve over points and time; few enough for the evaluations of a first look."""
    x, fade = points.T, np.exp(-t / 8)
    columns = [np.ones_like(t), t, *x, *x**2, fade, *(fade * x), *(fade * x**2)]
    if len(x) <= 2:
        columns[2 + 2 * len(x) : 2 + 2 * len(x)] = [*x**3]
    if len(x) == 2:
        columns += [x[0] * x[1], fade * x[0] * x[1]]
    return np.stack(columns, axis=1)


def blur_variance(problem: Problem, choice: Choice) -> float:
    """Return the variance of the examples' own best ratios around the common one, less what noise explains; one axis.

    Example i is taken to see the common curve at p + s_i; its shift is read off the residuals, which to first order are
    s_i times the fitted slope. Averaging over shifts blurs the curve: the mean sees f + var(s) f'' / 2.
    """
    weights = np.linalg.solve(choice.root.T, np.linalg.solve(choice.root, choice.scale * choice.right.mean(axis=1)))
    (low, high), ratios = problem.bounds[0], problem.points[:, 0]
    step = (high - low) / (GRID - 1)
    if step == 0:
        return 0.0
    ends = [np.clip(ratios + side * step, low, high) for side in (1, -1)]
    above, below = (choice.rows(problem, x[:, None], problem.rounds) @ weights for x in ends)
    slope = (above - below) / np.maximum(ends[0] - ends[1], step)
    slope = slope - slope.mean()
    residual = problem.Y - problem.Y.mean(axis=1, keepdims=True)
    strength = float(slope @ slope)
    m = problem.Y.shape[1]
    if strength == 0 or m < 2:
        return 0.0
    shifts = slope @ residual / strength
    return float(np.clip(shifts.var(ddof=1) - m / strength, 0.0, LARGEST_BLUR))


LARGEST_BLUR = 0.15**2
