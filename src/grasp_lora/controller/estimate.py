"""The point that all evaluations together name, with an interval, and what more probes would be worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from .answer import Estimate, Glimpse, Slice
from .features import GRID, Bounds, Matrix, Vector
from .history import Evaluations
from .interval import displaced, sharpened
from .noise import blur_variance, noise_of_mean
from .posterior import Curves, Posterior
from .threads import one_thread

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


@dataclass(frozen=True)
class _Named:
    """A posterior, its curves at all places and at the named point; noise in nats.

    `part` (B, 1) is the share of the blur that each resampled curve is freed of.
    """

    posterior: Posterior
    curves: Curves
    best: Vector
    here: Curves
    noise: float
    part: Matrix

    def gain(self, settings: EstimateSettings, rng: np.random.Generator) -> float:
        return self.noise * _gain(self.posterior, self.curves, self.here, settings, rng)

    def unsettled(self, settings: EstimateSettings) -> float:
        fades = [c.fade(settings.next_round) for c in self.posterior.choices]
        return float(self.posterior.weight @ np.asarray(fades))

    @property
    def minima(self) -> Matrix:
        return np.asarray(self.curves.points[self.curves.noisy.argmin(axis=1)])


def _named(data: Evaluations, settings: EstimateSettings, rng: np.random.Generator) -> _Named:
    noise = max(noise_of_mean(data), 1e-3 * float(np.ptp(data.losses.mean(axis=1))), 1e-9)
    posterior = Posterior(data, settings.bounds, settings.draws, noise, rng)
    curves = posterior.at(_places(settings.bounds))
    best = _name(posterior, curves, settings)
    return _Named(posterior, curves, best, posterior.at(best[None]), noise, rng.random((settings.draws, 1)))


def glimpse(data: Evaluations, settings: EstimateSettings, rng: np.random.Generator) -> Glimpse:
    """Return what decides on the next probes, from the same fit as `estimate` and without its intervals."""
    with one_thread():
        found = _named(data, settings, rng)
        gain = found.gain(settings, rng)
    return Glimpse(tuple(float(x) for x in found.best), found.minima, gain, found.unsettled(settings), len(data.rounds))


def estimate(data: Evaluations, settings: EstimateSettings, rng: np.random.Generator) -> Estimate:
    """Return the best point, its interval and the settled curve from n evaluations; rng feeds bootstrap and draws.

    The posterior mean is linear in the losses, so every bootstrap sample of examples is an average of per-example
    curves and needs no new fit.
    """
    with one_thread():
        return _estimated(data, settings, rng)


def _estimated(data: Evaluations, settings: EstimateSettings, rng: np.random.Generator) -> Estimate:
    found = _named(data, settings, rng)
    posterior, best, gain = found.posterior, found.best, found.gain(settings, rng)
    resampled = posterior.resampled(found.curves.points)
    intervals = _intervals(found, resampled, settings.level) if data.per_example else None
    slices = [_slice(posterior, settings, best, d) for d in range(len(best))]
    return Estimate(
        p_star=float(best[0]),
        interval=intervals[0] if intervals else None,
        best=tuple(float(x) for x in best),
        intervals=intervals,
        level=settings.level,
        **vars(slices[0]),
        further=tuple(slices[1:]),
        noise=found.noise,
        noise_regret=_regret(found.here.noisy, found.curves.noisy),
        slice_regret=_regret(posterior.resampled(best[None]), resampled),
        gain=gain,
        settle_rounds=posterior.choices[int(np.argmax(posterior.weight))].tau,
        unsettled=found.unsettled(settings),
        minima=found.minima,
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


def _name(posterior: Posterior, curves: Curves, settings: EstimateSettings) -> Vector:
    """Return the best point (D,), moved to its sparser end along the first axis."""
    line = curves
    best = curves.points[int(np.argmin(curves.mean))]
    if len(settings.bounds) > 1:
        best = curves.points[int(np.argmin(_surely(curves)))]
        near = _near(settings.bounds, best)
        best = near[int(np.argmin(_surely(posterior.at(near))))]
        line = posterior.at(_line(settings.bounds, best, 0))
    points = line.points
    at = int(np.argmin(np.abs(points[:, 0] - best[0])))
    return np.asarray(points[_sparser(line.mean, line.noisy, at, settings.plateau)])


def _surely(curves: Curves) -> Vector:
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


def _slice(posterior: Posterior, settings: EstimateSettings, best: Vector, axis: int) -> Slice:
    points = _line(settings.bounds, best, axis)
    mean = posterior.at(points).mean
    low, high = _band(posterior.resampled(points), mean, settings.level)
    return Slice(points[:, axis], mean - mean.min(), low, high)


def _regret(here: Matrix, everywhere: Matrix) -> float:
    return float(np.mean(np.maximum(here[:, 0] - everywhere.min(axis=1), 0.0)))


def _intervals(found: _Named, resampled: Matrix, level: float) -> tuple[tuple[float, float], ...]:
    """Return each coordinate's interval from the minima of resampled curves (B, G).

    Only one axis knows how far its examples differ; there the interval says so.
    """
    places, best, alone = found.curves.points, found.best, len(found.best) == 1
    blur = blur_variance(found.posterior.problem, found.posterior.choices[0]) if alone else 0.0
    if alone:
        resampled = sharpened(resampled, places[:, 0], blur, found.part)
    tails = (1 - level) / 2, (1 + level) / 2
    ends = np.quantile(places[resampled.argmin(axis=1)], tails, axis=0).T.tolist()
    if alone:
        ends = [displaced((ends[0][0], ends[0][1]), found.curves.mean, places[:, 0], float(best[0]), blur)]
    return tuple((min(low, float(x)), max(high, float(x))) for (low, high), x in zip(ends, best, strict=True))


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
    posterior: Posterior, curves: Curves, here: Curves, settings: EstimateSettings, rng: np.random.Generator
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
    places = np.concatenate([curves.points, here.points])
    total = 0.0
    for h, share in enumerate(weight):
        choice = posterior.choices[h]
        phi = choice.features.at(places)
        centre = phi @ (posterior.centres[h] / posterior.noise)
        reach = choice.inverse @ choice.rows(posterior.problem, points, settings.next_round).T
        step = np.linalg.cholesky(reach.T @ reach + np.eye(len(points)))
        moves = np.linalg.solve(step.T, z)
        after = centre[:, None] + phi @ (choice.folded @ reach) @ moves
        known = float(centre[-1] - centre.min())
        total += share * (float(np.mean(after[-1] - after.min(axis=0))) - known)
    return total
