"""The ratio that all evaluations together point to, with an interval, and what more probes would be worth."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .history import Evaluations
from .surface import GRID, Choice, Matrix, Problem, Vector, interpolate, pose, product, supported

Indices = NDArray[np.int64]
ASKED = 6
"""How many of the likeliest hyperparameter choices the worth of further probes is averaged over."""


@dataclass(frozen=True)
class Estimate:
    """p_star and what is known about it.

    `interval` holds p_star with probability `level` (bootstrap over micro-dev examples); None without per-example
    losses. `grid`, `mean`, `low`, `high` (G,) are the settled curve in nats, less its minimum, and its band at `level`.
    In nats: `noise` of one evaluation's mean, `noise_regret` (what noise may still cost at p_star), `slice_regret`
    (what noise and the choice of examples may cost together), `gain` (what the next probes are expected to win).
    `settle_rounds` is the time in which training flattens the curve, None where it does not, and `unsettled` the share
    of that still to come in the round after next. `minima` (B,) are minima of posterior draws.
    """

    p_star: float
    interval: tuple[float, float] | None
    level: float
    grid: Vector
    mean: Vector
    low: Vector
    high: Vector
    noise: float
    noise_regret: float
    slice_regret: float
    gain: float
    settle_rounds: float | None
    unsettled: float
    minima: Vector
    evaluations: int

    def with_p_star(self, p_star: float) -> Estimate:
        """Return the same estimate with another rule's p_star and no interval (that rule claims none)."""
        return replace(self, p_star=p_star, interval=None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; `from_dict` restores every bit."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Estimate:
        """Rebuild from `to_dict`."""
        values: dict[str, Any] = {k: np.asarray(v, float) if k in _ARRAYS else v for k, v in saved.items()}
        if values["interval"] is not None:
            values["interval"] = tuple(values["interval"])
        return cls(**values)


_ARRAYS = ("grid", "mean", "low", "high", "minima")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class EstimateSettings:
    """What the estimator may assume.

    Bounds; level of the interval; `plateau`, how many standard errors a sparser ratio may look worse and still be
    preferred; draws of bootstrap and posterior; and the probes (`next_ratios` in `next_round`) whose worth is asked.
    """

    p_min: float
    p_max: float
    level: float = 0.9
    plateau: float = 0.0
    draws: int = 200
    next_round: int = 0
    next_ratios: tuple[float, ...] = ()


def noise_of_mean(data: Evaluations) -> float:
    """Return the noise (one standard deviation, nats) of an evaluation's mean, measured between examples.

    What examples share (round, drift, curve) is removed exactly, each example's own smooth curve over ratio and time by
    least squares; what is left is noise. Without per-example losses the means' own residual has to serve.
    """
    x, t = data.ratios, data.rounds
    fade = np.exp(-t / 8)
    design = np.stack([np.ones_like(x), t, x, x**2, x**3, fade, fade * x, fade * x**2], axis=1)
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


def estimate(data: Evaluations, settings: EstimateSettings, rng: np.random.Generator) -> Estimate:
    """Return p_star, its interval and the settled curve from n evaluations; rng feeds bootstrap and draws.

    The posterior mean is linear in the losses, so every bootstrap sample of examples is an average of per-example
    curves and needs no new fit.
    """
    noise = max(noise_of_mean(data), 1e-3 * float(np.ptp(data.losses.mean(axis=1))), 1e-9)
    bounds = (settings.p_min, settings.p_max)
    # Baselines may lie outside the bounds (nothing is pruned at first): they are fitted where they are.
    problem = pose(data, noise, (min(bounds[0], data.ratios.min()), max(bounds[1], data.ratios.max())))
    choices, weight = supported(problem)
    grid = np.linspace(*bounds, GRID)
    maps = [choice.whitened_map() for choice in choices]
    if problem.bounds != bounds:
        maps = [interpolate(grid, np.linspace(*problem.bounds, GRID), whitened.T).T for whitened in maps]
    curves = noise * np.stack([_curves(c, w) for c, w in zip(choices, maps, strict=True)])
    centres = curves.mean(axis=2)
    mean = weight @ centres
    chosen = rng.choice(len(choices), size=settings.draws, p=weight)
    noisy = centres[chosen] + noise * _draws(maps, [np.eye(len(w)) for w in maps], chosen, rng)
    resampled = _bootstrap(curves, chosen, rng)
    resampled += noise * _draws(maps, [np.asarray(np.linalg.inv(c.root), float) for c in choices], chosen, rng)
    blur = blur_variance(problem, choices[0]) if data.per_example else 0.0
    best = _sparser(mean, noisy, int(np.argmin(mean)), settings.plateau)
    part = rng.random((settings.draws, 1))
    sharpened = resampled - 0.5 * part * blur * _bend(resampled, grid)
    interval = _interval(grid[sharpened.argmin(axis=1)], float(grid[best]), settings.level)
    low, high = _band(resampled, mean, settings.level)
    gain = noise * _gain(problem, choices, maps, weight, centres / noise, settings, best, rng)
    likeliest = choices[int(np.argmax(weight))]
    return Estimate(
        p_star=float(grid[best]),
        interval=interval if data.per_example else None,
        level=settings.level,
        grid=grid,
        mean=mean - mean.min(),
        low=low,
        high=high,
        noise=noise,
        noise_regret=_regret(noisy, best),
        slice_regret=_regret(resampled, best),
        gain=gain,
        settle_rounds=likeliest.tau,
        unsettled=float(sum(w * c.fade(settings.next_round) for w, c in zip(weight, choices, strict=True))),
        minima=grid[noisy.argmin(axis=1)],
        evaluations=len(data.ratios),
    )


def _curves(choice: Choice, whitened: Matrix) -> Matrix:
    """Return each example's settled curve (G, m) in units of the noise."""
    return np.asarray(whitened.T @ np.linalg.solve(choice.root, choice.scale[:, None] * choice.right))


def _draws(maps: list[Matrix], roots: list[Matrix], chosen: Indices, rng: np.random.Generator) -> Matrix:
    """Draw (B, G) curves W' R z of each chosen fit, z standard normal, in units of the noise.

    With R = 1 the covariance is the posterior's; with R = L^-1 it is what the posterior has beyond the scatter of its
    own mean, which is the part that a bootstrap cannot see.
    """
    z = rng.standard_normal((len(chosen), max(len(whitened) for whitened in maps)))
    out = np.empty((len(chosen), maps[0].shape[1]))
    for h in np.unique(chosen):
        inside = chosen == h
        out[inside] = product(product(z[inside, : len(maps[h])], roots[h].T), maps[h])
    return out


def _bootstrap(curves: Matrix, chosen: Indices, rng: np.random.Generator) -> Matrix:
    """Return (B, G) curves of resampled examples; curves (H, G, m)."""
    m = curves.shape[2]
    counts = rng.multinomial(m, np.full(m, 1 / m), size=len(chosen)) / m
    # Resampling m values understates their mean's variance by (m - 1) / m.
    counts = 1 / m + (counts - 1 / m) * np.sqrt(m / max(m - 1, 1))
    out = np.empty((len(chosen), curves.shape[1]))
    for h in np.unique(chosen):
        inside = chosen == h
        out[inside] = product(counts[inside], curves[h].T)
    return out


def blur_variance(problem: Problem, choice: Choice) -> float:
    """Return the variance of the examples' own best ratios around the common one, less what noise explains.

    Example i is taken to see the common curve at p + s_i; its shift is read off the residuals, which to first order are
    s_i times the fitted slope. Averaging over shifts blurs the curve: the mean sees f + var(s) f'' / 2.
    """
    weights = np.linalg.solve(choice.root.T, np.linalg.solve(choice.root, choice.scale * choice.right.mean(axis=1)))
    step = (problem.bounds[1] - problem.bounds[0]) / (GRID - 1)
    if step == 0:
        return 0.0
    ends = [np.clip(problem.ratios + side * step, *problem.bounds) for side in (1, -1)]
    above, below = (choice.rows(problem, x, problem.rounds) @ weights for x in ends)
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


def _bend(curves: Matrix, grid: Vector) -> Matrix:
    """Return the second derivative of curves (B, G) over the ratio."""
    step = float(grid[1] - grid[0])
    return (
        np.asarray(np.gradient(np.gradient(curves, step, axis=1), step, axis=1)) if step > 0 else np.zeros_like(curves)
    )


def _regret(draws: Matrix, best: int) -> float:
    return float(np.mean(draws[:, best] - draws.min(axis=1)))


def _interval(minima: Vector, p_star: float, level: float) -> tuple[float, float]:
    low, high = np.quantile(minima, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), p_star), max(float(high), p_star)


def _band(draws: Matrix, mean: Vector, level: float) -> tuple[Vector, Vector]:
    """Return the band of the curve's shape: levels, which no ratio can change, are taken out first."""
    shapes = draws - draws.mean(axis=1, keepdims=True) + (mean.mean() - mean.min())
    low, high = np.quantile(shapes, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _sparser(mean: Vector, draws: Matrix, best: int, errors: float) -> int:
    """Return the sparsest grid index reached from `best` while the loss stays within `errors` standard errors."""
    spread = (draws - draws[:, [best]]).std(axis=0)
    index = best
    while index + 1 < len(mean) and mean[index + 1] - mean[best] < errors * spread[index + 1]:
        index += 1
    return index


def _gain(
    problem: Problem,
    choices: list[Choice],
    maps: list[Matrix],
    weight: Vector,
    centres: Matrix,
    settings: EstimateSettings,
    best: int,
    rng: np.random.Generator,
) -> float:
    """Return by how much (in units of the noise) the next probes are expected to lower the loss at p_star.

    The knowledge gradient of a batch (Frazier, Powell and Dayanik, 2009): draw the posterior mean as it would be after
    the probes and compare its minimum with its value at p_star.
    """
    ratios = np.asarray(settings.next_ratios)
    if not len(ratios):
        return 0.0
    z = rng.standard_normal((len(ratios), 64))
    total = 0.0
    most = slice(0, ASKED)  # the likeliest come first
    asked = zip(weight[most] / weight[most].sum(), choices[most], maps[most], centres[most], strict=True)
    for share, choice, whitened, centre in asked:
        reach = np.linalg.solve(choice.root, choice.rows(problem, ratios, settings.next_round).T)
        step = np.linalg.cholesky(reach.T @ reach + np.eye(len(ratios)))
        after = centre[:, None] + np.linalg.solve(step, reach.T @ whitened).T @ z
        known = float(centre[best] - centre.min())
        total += share * (float(np.mean(after[best] - after.min(axis=0))) - known)
    return total
