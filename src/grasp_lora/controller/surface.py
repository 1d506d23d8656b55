"""The regression behind p_star: a settling loss curve over the ratio, its evidence and its posterior.

Model of the mean loss, in units of its noise, of an evaluation in round t at ratio p:

    y = c + d t + u_t + (rho + (1 - rho) e) h(p) + (1 - e) r(p) + c' e + noise,      e = exp(-t / tau)

h is the curve right after the merge and rho h + r the settled one: training shrinks the curve to a share rho of itself
and reshapes it by r. u_t is what a whole round shares, so that baseline and candidates of a round are compared with
each other. h and r are Gaussian processes with a squared-exponential kernel in a truncated eigenbasis (Rasmussen and
Williams, Gaussian Processes for Machine Learning, sections 2.2, 4.3 and 8.1; a loss that decays while training goes on
is modelled the same way by Swersky, Snoek and Adams, arXiv 1406.3896). Length, amplitudes, rho, tau and the size of u
are averaged over a grid by their evidence (section 5.2). Where a point has several coordinates, p stands for all of
them: the kernel is a product over the axes, and so are its eigenfunctions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.linalg import solve_triangular

from .features import Bounds, Features, Matrix, Vector, product_features
from .history import Evaluations
from .moments import Sums

LENGTHS = (0.12, 0.2, 0.35)
"""Length scales: as ratios on the first axis, on further axes as shares of the axis."""
TAUS = (3.5, 5.5, 8.5, 13.0, 20.0, 40.0)
"""Settling times, in rounds; beside them, no settling at all."""
SHARES = (0.05, 0.15, 0.4)
RESHAPES = (0.015, 0.06)
"""Amplitude of r relative to that of h."""
ROUND_EFFECTS = (0.02, 20.0)
"""Variance of u_t relative to the noise's: almost none, or (at least this, and as much as the losses range over) so
large that only differences within a round count."""
AMPLITUDES = 3
MISFIT = 0.08
"""Doubt about the model far above a round's best loss, as a share of the excess."""
KEEP = 0.04
MOST = 20
"""Choices are averaged from the likeliest down to this share of its weight, and no more than this many."""
WIDE = 1e3
Kind: TypeAlias = tuple[float | None, float]
"""Settling time in rounds (None: no settling) and share of h that stays."""
CACHED = 1 << 17
"""Numbers in a part of a batch that is to stay in a core's cache."""


@dataclass(frozen=True)
class Problem:
    """Losses Y (n, m) in units of the noise, less each example's mean; weights (n,), rounds as member (T, n).

    `points` (n, D); `spread` is the largest range of the mean loss within one round, free of drift, `reach` its whole
    range.
    """

    Y: Matrix
    weights: Vector
    member: Matrix
    rounds: Vector
    points: Matrix
    spread: float
    reach: float
    bounds: Bounds

    @property
    def horizon(self) -> float:
        """Return the last round, the unit of the drift."""
        return max(float(self.rounds.max()), 1.0)


def pose(data: Evaluations, noise: float, bounds: Bounds) -> Problem:
    """Scale the losses by the noise (> 0, nats) and trust evaluations far above their round's best less."""
    mean = data.losses.mean(axis=1)
    member = (np.unique(data.rounds)[:, None] == data.rounds[None, :]).astype(float)
    floor = np.array([mean[row > 0].min() for row in member])
    spread = max(float(np.ptp(mean[row > 0])) for row in member) / noise
    excess = np.maximum(mean - member.T @ floor - 2 * noise, 0.0)
    weights = 1 / (1 + (MISFIT * excess / noise) ** 2)
    Y = data.losses / noise
    reach = float(np.ptp(mean)) / noise
    return Problem(Y - Y.mean(axis=0), weights, member, data.rounds, data.points, spread, reach, bounds)


@dataclass(frozen=True)
class Choice:
    """The posterior under one choice of hyperparameters.

    The D weights have prior deviations `scale` (D,), `root` (D, D) is the Cholesky factor of
    scale X' V^-1 X scale + I, and `right` (D, m) is X' V^-1 Y.
    """

    features: Features
    scale: Vector
    root: Matrix
    right: Matrix
    tau: float | None
    share: float

    @cached_property
    def inverse(self) -> Matrix:
        """Return L^-1 (D, D)."""
        return np.asarray(solve_triangular(self.root, np.eye(len(self.root)), lower=True, check_finite=False))

    @cached_property
    def folded(self) -> Matrix:
        """Return F (J, D): F z are the settled curve's weights over the features, for z = L' times the scaled weights.

        F F' is their posterior covariance.
        """
        J = self.features.count
        back = self.inverse.T * self.scale[:, None]
        return np.asarray(self.share * back[2 : 2 + J] + (back[3 + J :] if self.tau is not None else 0.0))

    def of_examples(self) -> Matrix:
        """Return the weights over the features (J, m) of every example's settled curve, in units of the noise."""
        return self.folded @ (self.inverse @ (self.scale[:, None] * self.right))

    def fade(self, round_index: float) -> float:
        """Return the share of h that a round still shows beyond the settled curve."""
        return 0.0 if self.tau is None else (1 - self.share) * float(np.exp(-round_index / self.tau))

    def rows(self, problem: Problem, points: Matrix, rounds: Vector | float) -> Matrix:
        """Return scaled design rows (k, D) of probes at k points, in one round or in k."""
        phi = self.features.at(points)
        t = np.broadcast_to(np.asarray(rounds, float), (len(points),))[:, None]
        blocks = [np.ones_like(t), t / problem.horizon - 0.5, phi]
        if self.tau is not None:
            e = np.exp(-t / self.tau)
            blocks = [*blocks[:2], (self.share + (1 - self.share) * e) * phi, e, (1 - e) * phi]
        return np.asarray(np.concatenate(blocks, axis=1) * self.scale)


@dataclass(frozen=True)
class _Batch:
    """Choices with one shape of design: log evidence (K S,) of K kinds at S scales (S, D), and their equations.

    `XtX` (K, D, D) has the lower triangle only; `XtY` is (K, D, m).
    """

    features: Features
    evidence: Vector
    scales: Matrix
    XtX: Matrix
    XtY: Matrix
    kinds: Sequence[Kind]

    def choice(self, row: int) -> Choice:
        kind, scale = divmod(row, len(self.scales))
        scales = self.scales[scale : scale + 1]
        root = _roots(self.XtX[kind : kind + 1], self.XtY[kind : kind + 1], scales, _outer(scales))[0]
        return Choice(self.features, self.scales[scale], root[:-1, :-1], self.XtY[kind], *self.kinds[kind])


def supported(problem: Problem) -> tuple[list[Choice], Vector]:
    """Return the choices that the evidence supports, with their normalised weights."""
    several = len(problem.member) > 1
    effects = (ROUND_EFFECTS[0], max(ROUND_EFFECTS[1], problem.reach**2))
    shapes = (effects, TAUS) if several else (effects[:1], ())
    batches = [b for length in LENGTHS for b in _batches(problem, length, *shapes)]
    evidence = np.concatenate([b.evidence for b in batches])
    weight = np.exp(evidence - evidence.max())
    starts = np.cumsum([0, *(len(b.evidence) for b in batches)])
    order = np.argsort(-weight, kind="stable")[:MOST]
    keep = order[weight[order] > KEEP]
    owners = np.searchsorted(starts, keep, side="right") - 1
    choices = [batches[o].choice(int(k - starts[o])) for k, o in zip(keep, owners, strict=True)]
    return choices, weight[keep] / weight[keep].sum()


def _batches(problem: Problem, length: float, effects: tuple[float, ...], taus: tuple[float, ...]) -> list[_Batch]:
    features = product_features(problem.bounds, length)
    sums = Sums.of(features.at(problem.points), problem.Y, problem.weights, problem.member)
    rounds = np.unique(problem.rounds)
    drift = rounds / problem.horizon - 0.5
    tops, wide = _amplitudes(problem.spread), WIDE * max(problem.reach, 1.0)
    out = []
    for effect in effects:
        white = sums.whitened(effect)
        still: list[Kind] = [(None, 1.0)]
        designs = [(white.still(drift), _scales(tops, None, wide, features.count), still)]
        if taus:
            fades = np.exp(-rounds / np.array(taus)[:, None])
            scales = _scales(tops, RESHAPES, wide, features.count)
            kinds: list[Kind] = list(itertools.product(taus, SHARES))
            designs.append((white.settling(drift, fades, np.array(SHARES)), scales, kinds))
        out += [_Batch(features, _evidence(*e, s) + white.shared, s, *e, kinds) for e, s, kinds in designs]
    return out


def _amplitudes(spread: float) -> Vector:
    """Return prior deviations of h, in units of the noise: from the noise to one and a half times what was seen."""
    top = max(1.5 * spread, 4.0)
    return np.geomspace(max(1.0, top / 300), top, AMPLITUDES)


def _scales(tops: Vector, reshapes: tuple[float, ...] | None, wide: float, J: int) -> Matrix:
    """Return prior deviations (S, D) of every weight; r is never held below a third of the noise."""
    if reshapes is None:
        return np.stack([np.concatenate([[wide, wide], np.full(J, a)]) for a in tops])
    rows = [
        np.concatenate([[wide, wide], np.full(J, a), [wide], np.full(J, max(part * a, 0.3))])
        for a, part in itertools.product(tops, reshapes)
    ]
    return np.stack(rows)


def _evidence(XtX: Matrix, XtY: Matrix, scales: Matrix) -> Vector:
    """Return the log evidence (K S,) of every design (K, D, D) at every scale (S, D), less what all share.

    In parts that stay in a cache: all factors together are tens of megabytes, and only the likeliest are of use. Scales
    that are equal, as a small h has them, whose r is at its least whatever its share, are factored once.
    """
    rows = [row.tobytes() for row in scales]
    once = list(dict.fromkeys(rows))
    same, scales = [once.index(row) for row in rows], scales[[rows.index(row) for row in once]]
    (K, D), S = XtX.shape[:2], len(scales)
    kinds = max(1, CACHED // (S * (D + 1) ** 2))
    outer, parts = _outer(scales), []
    for k in range(0, K, kinds):
        roots = _roots(XtX[k : k + kinds], XtY[k : k + kinds], scales, outer)
        logdet = np.log(np.einsum("hdd->hd", roots[:, :D, :D])).sum(axis=1)
        parts.append(0.5 * (roots[:, D, :D] ** 2).sum(axis=1) - logdet)
    return np.concatenate(parts).reshape(K, S)[:, same].ravel()


def _outer(scales: Matrix) -> Matrix:
    """Return the products of the scales (S, D) of any two weights, shape (S, D, D)."""
    return scales[:, :, None] * scales[:, None, :]


def _roots(XtX: Matrix, XtY: Matrix, scales: Matrix, outer: Matrix) -> Matrix:
    """Return the Cholesky factors (K S, D + 1, D + 1) of every design (K, D, D) at every scale (S, D).

    `outer` is `_outer` of the scales. X'y of the mean loss is factored along as a last row, which becomes L^-1 X'y.
    """
    (K, D), S = XtX.shape[:2], len(scales)
    A = np.empty((K, S, D + 1, D + 1))
    A[:, :, :, D] = 0.0
    np.multiply(XtX[:, None], outer, out=A[:, :, :D, :D])
    A[:, :, range(D), range(D)] += 1.0
    half = scales * XtY.mean(axis=2)[:, None]
    A[:, :, D, :D] = half
    A[:, :, D, D] = 1.0 + (half**2).sum(axis=2)  # enough for a positive definite whole, and used no further
    return np.asarray(np.linalg.cholesky(A.reshape(K * S, D + 1, D + 1)), float)
