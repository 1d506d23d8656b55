"""The point that all evaluations together name, with an interval, and what more probes would be worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from .answer import Estimate, Slice
from .features import GRID, Bounds, Matrix, Vector
from .history import Evaluations
from .noise import blur_variance, noise_of_mean
from .surface import Choice, Problem, pose, product, supported

ASKED = 6
"""How many of the likeliest hyperparameter choices the worth of further probes is averaged over."""
MESH = {1: GRID, 2: 41, 3: 17}
"""Points per axis at which the curve is judged; beyond three axes a Sobol set of SOBOL points takes their place."""
SOBOL = 4096
FINE = 9
DOUBT = 1.0


@dataclass(frozen=True)
class EstimateSettings:
    """What the estimator may assume.

    Bounds of every axis; level of the interval; `plateau`, how many standard errors a sparser ratio may look worse and
    still be preferred; draws of bootstrap and posterior; and the probes (`next_points` (k, D) in `next_round`) whose
    worth is asked.
    """

    bounds: Bounds
    level: float = 0.9
    plateau: float = 0.0
    draws: int = 200
    next_round: int = 0
    next_points: tuple[tuple[float, ...], ...] = ()


class _Posterior:
    """The settled curve at any points: its mean, draws of it, and draws that resample the examples too."""

    def __init__(self, data: Evaluations, settings: EstimateSettings, noise: float, rng: np.random.Generator) -> None:
        seen = [(float(x.min()), float(x.max())) for x in data.points.T]
        # Baselines may lie outside the bounds (nothing is pruned at first): they are fitted where they are.
        bounds = tuple((min(b[0], s[0]), max(b[1], s[1])) for b, s in zip(settings.bounds, seen, strict=True))
        self.problem: Problem = pose(data, noise, bounds)
        self.choices, self.weight = supported(self.problem)
        self.noise = noise
        size = settings.draws
        widest = max(len(choice.scale) for choice in self.choices)
        self.chosen = rng.choice(len(self.choices), size=size, p=self.weight)
        self._z = rng.standard_normal((size, widest))
        m = data.losses.shape[1]
        counts = rng.multinomial(m, np.full(m, 1 / m), size=size) / m
        # Resampling m values understates their mean's variance by (m - 1) / m.
        self._counts = 1 / m + (counts - 1 / m) * np.sqrt(m / max(m - 1, 1))
        self._rest = rng.standard_normal((size, widest))

    def at(self, points: Matrix) -> _Curves:
        """Return the curves at points (G, D)."""
        maps = [choice.whitened_map(points) for choice in self.choices]
        examples = [self.noise * _example_curves(c, w) for c, w in zip(self.choices, maps, strict=True)]
        centres = np.stack([curve.mean(axis=1) for curve in examples])
        eyes = [np.eye(len(w)) for w in maps]
        noisy = centres[self.chosen] + self.noise * self._draws(maps, eyes, self._z)
        resampled = np.empty_like(noisy)
        for h in np.unique(self.chosen):
            inside = self.chosen == h
            resampled[inside] = product(self._counts[inside], examples[h].T)
        roots = [np.asarray(np.linalg.inv(c.root), float) for c in self.choices]
        resampled += self.noise * self._draws(maps, roots, self._rest)
        return _Curves(maps, centres, self.weight @ centres, noisy, resampled)

    def _draws(self, maps: list[Matrix], roots: list[Matrix], z: Matrix) -> Matrix:
        """Return (B, G) curves W' R z of each chosen fit, z standard normal, in units of the noise.

        With R = 1 the covariance is the posterior's; with R = L^-1 it is what the posterior has beyond the scatter of
        its own mean, which is the part that a bootstrap cannot see.
        """
        out = np.empty((len(self.chosen), maps[0].shape[1]))
        for h in np.unique(self.chosen):
            inside = self.chosen == h
            out[inside] = product(product(z[inside, : len(maps[h])], roots[h].T), maps[h])
        return out


@dataclass(frozen=True)
class _Curves:
    """`maps` (D, G) and `centres` (H, G) per choice, their average `mean` (G,), and (B, G) draws, nats."""

    maps: list[Matrix]
    centres: Matrix
    mean: Vector
    noisy: Matrix
    resampled: Matrix


def _example_curves(choice: Choice, whitened: Matrix) -> Matrix:
    """Return each example's settled curve (G, m) in units of the noise."""
    return np.asarray(whitened.T @ np.linalg.solve(choice.root, choice.scale[:, None] * choice.right))


def estimate(data: Evaluations, settings: EstimateSettings, rng: np.random.Generator) -> Estimate:
    """Return the best point, its interval and the settled curve from n evaluations; rng feeds bootstrap and draws.

    The posterior mean is linear in the losses, so every bootstrap sample of examples is an average of per-example
    curves and needs no new fit.
    """
    noise = max(noise_of_mean(data), 1e-3 * float(np.ptp(data.losses.mean(axis=1))), 1e-9)
    posterior = _Posterior(data, settings, noise, rng)
    places = _places(settings.bounds)
    curves = posterior.at(places)
    line, best = _name(posterior, places, curves, settings)
    here = posterior.at(best[None])
    part = rng.random((settings.draws, 1))
    alone = len(settings.bounds) == 1
    blur = blur_variance(posterior.problem, posterior.choices[0]) if data.per_example and alone else 0.0
    sharpened = curves.resampled - 0.5 * part * blur * _bend(curves.resampled, places) if alone else curves.resampled
    intervals = _intervals(places[sharpened.argmin(axis=1)], best, settings.level)
    slices = [_slice(posterior, settings, best, d, line) for d in range(len(best))]
    likeliest = posterior.choices[int(np.argmax(posterior.weight))]
    fades = [c.fade(settings.next_round) for c in posterior.choices]
    return Estimate(
        p_star=float(best[0]),
        interval=intervals[0] if data.per_example else None,
        best=tuple(float(x) for x in best),
        intervals=intervals if data.per_example else None,
        level=settings.level,
        **vars(slices[0]),
        further=tuple(slices[1:]),
        noise=noise,
        noise_regret=_regret(here.noisy, curves.noisy),
        slice_regret=_regret(here.resampled, curves.resampled),
        gain=noise * _gain(posterior, curves, here, settings, rng),
        settle_rounds=likeliest.tau,
        unsettled=float(posterior.weight @ np.asarray(fades)),
        minima=places[curves.noisy.argmin(axis=1)],
        evaluations=len(data.rounds),
    )


def _places(bounds: Bounds) -> Matrix:
    """Return the points (G, D) at which the curve is judged."""
    D = len(bounds)
    if D in MESH:
        axes = [np.linspace(low, high, MESH[D]) for low, high in bounds]
        return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    low, high = np.asarray(bounds).T
    # Unscrambled: the points are the same on every machine, whatever the generator.
    return np.asarray(low + (high - low) * qmc.Sobol(D, scramble=False).random(SOBOL))


def _line(bounds: Bounds, point: Vector, axis: int, count: int = GRID) -> Matrix:
    """Return points (S, D) along one axis through `point`."""
    line = np.repeat(point[None], count, axis=0)
    line[:, axis] = np.linspace(*bounds[axis], count)
    return line


def _name(posterior: _Posterior, places: Matrix, curves: _Curves, settings: EstimateSettings) -> tuple[_Curves, Vector]:
    """Return the curves along the first axis through the best point, and that point moved to its sparser end."""
    best = places[int(np.argmin(curves.mean))]
    if len(settings.bounds) == 1:
        line, points = curves, places
    else:
        best = places[int(np.argmin(_surely(curves)))]
        near = _near(settings.bounds, best)
        best = near[int(np.argmin(_surely(posterior.at(near))))]
        points = _line(settings.bounds, best, 0)
        line = posterior.at(points)
    at = int(np.argmin(np.abs(points[:, 0] - best[0])))
    return line, points[_sparser(line.mean, line.noisy, at, settings.plateau)]


def _surely(curves: _Curves) -> Vector:
    """Return the mean with DOUBT standard deviations added, shape (G,).

    Of several axes some corner is always far from every probe, and there the fit may promise what nobody has seen.
    """
    return np.asarray(curves.mean + DOUBT * curves.noisy.std(axis=0))


def _near(bounds: Bounds, point: Vector) -> Matrix:
    """Return a finer set of points around `point`: within a cell of the mesh, or along every axis of many."""
    D = len(bounds)
    if D not in MESH:
        return np.concatenate([point[None], *[_line(bounds, point, axis, 41) for axis in range(D)]])
    axes = []
    for (low, high), x in zip(bounds, point, strict=True):
        cell = (high - low) / (MESH[D] - 1)
        axes.append(np.linspace(max(low, x - cell), min(high, x + cell), FINE))
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def _slice(posterior: _Posterior, settings: EstimateSettings, best: Vector, axis: int, first: _Curves) -> Slice:
    points = _line(settings.bounds, best, axis)
    curves = first if axis == 0 else posterior.at(points)
    low, high = _band(curves.resampled, curves.mean, settings.level)
    return Slice(points[:, axis], curves.mean - curves.mean.min(), low, high)


def _bend(curves: Matrix, places: Matrix) -> Matrix:
    """Return the second derivative of curves (B, G) over the ratio."""
    step = float(places[1, 0] - places[0, 0])
    return (
        np.asarray(np.gradient(np.gradient(curves, step, axis=1), step, axis=1)) if step > 0 else np.zeros_like(curves)
    )


def _regret(here: Matrix, everywhere: Matrix) -> float:
    return float(np.mean(np.maximum(here[:, 0] - everywhere.min(axis=1), 0.0)))


def _intervals(minima: Matrix, best: Vector, level: float) -> tuple[tuple[float, float], ...]:
    low, high = np.quantile(minima, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return tuple((min(float(a), float(x)), max(float(b), float(x))) for a, b, x in zip(low, high, best, strict=True))


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
    posterior: _Posterior, curves: _Curves, here: _Curves, settings: EstimateSettings, rng: np.random.Generator
) -> float:
    """Return by how much (in units of the noise) the next probes are expected to lower the loss at the best point.

    The knowledge gradient of a batch (Frazier, Powell and Dayanik, 2009): draw the posterior mean as it would be after
    the probes and compare its minimum with its value at the best point.
    """
    points = np.asarray(settings.next_points, float)
    if not len(points):
        return 0.0
    z = rng.standard_normal((len(points), 64))
    weight = posterior.weight[:ASKED] / posterior.weight[:ASKED].sum()  # the likeliest come first
    total = 0.0
    for h, share in enumerate(weight):
        choice = posterior.choices[h]
        whitened = np.concatenate([curves.maps[h], here.maps[h]], axis=1)
        centre = np.concatenate([curves.centres[h], here.centres[h]]) / posterior.noise
        reach = np.linalg.solve(choice.root, choice.rows(posterior.problem, points, settings.next_round).T)
        step = np.linalg.cholesky(reach.T @ reach + np.eye(len(points)))
        after = centre[:, None] + np.linalg.solve(step, reach.T @ whitened).T @ z
        known = float(centre[-1] - centre.min())
        total += share * (float(np.mean(after[-1] - after.min(axis=0))) - known)
    return total
