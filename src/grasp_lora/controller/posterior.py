"""The settled curve as the losses leave it: its average, posterior draws, and draws that resample the examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .features import Bounds, Flags, Matrix, Vector
from .history import Evaluations
from .surface import Problem, pose, supported


@dataclass(frozen=True)
class Curves:
    """At points (G, D): the average curve `mean` (G,) and draws `noisy` (B, G), nats."""

    points: Matrix
    mean: Vector
    noisy: Matrix


class Posterior:
    """The settled curve at any points: its mean, draws of it, and draws that resample the examples too."""

    def __init__(self, data: Evaluations, bounds: Bounds, size: int, noise: float, rng: np.random.Generator) -> None:
        seen = [(float(x.min()), float(x.max())) for x in data.points.T]
        # Baselines may lie outside the bounds (nothing is pruned at first): they are fitted where they are.
        wide = tuple((min(b[0], s[0]), max(b[1], s[1])) for b, s in zip(bounds, seen, strict=True))
        self.problem: Problem = pose(data, noise, wide)
        self.choices, self.weight = supported(self.problem)
        self.noise = noise
        widest = max(len(choice.scale) for choice in self.choices)
        self.chosen = rng.choice(len(self.choices), size=size, p=self.weight)
        z = rng.standard_normal((size, widest))
        m = data.losses.shape[1]
        counts = rng.multinomial(m, np.full(m, 1 / m), size=size) / m
        # Resampling m values understates their mean's variance by (m - 1) / m.
        counts = 1 / m + (counts - 1 / m) * np.sqrt(m / max(m - 1, 1))
        self._weigh(z, counts, rng.standard_normal((size, widest)))

    def _weigh(self, z: Matrix, counts: Matrix, rest: Matrix) -> None:
        """Find the weights over the features of every curve: they are few, and points are many.

        Draws are W' z with the posterior's covariance; a bootstrap sample of examples also has what the posterior has
        beyond the scatter of its own mean, W' L^-1 z, which is the part that a bootstrap cannot see.
        """
        J = self.choices[0].features.count
        self._noisy, self._resampled = np.empty((2, len(z), J))
        centres = []
        for h, choice in enumerate(self.choices):
            examples, F, inside = self.noise * choice.of_examples(), self.noise * choice.folded, self.chosen == h
            centres.append(examples.mean(axis=1))
            own, other = z[inside, : F.shape[1]], rest[inside, : F.shape[1]]
            self._noisy[inside] = centres[h] + own @ F.T
            beyond = other @ choice.inverse.T @ F.T
            self._resampled[inside] = counts[inside] @ examples.T + beyond
        self.centres = np.stack(centres)

    def at(self, points: Matrix) -> Curves:
        """Return the average curve and its draws at points (G, D)."""
        mean = np.zeros(len(points))
        for phi, same in self._shapes(points):
            mean += self.weight[same] @ self.centres[same] @ phi
        return Curves(points, mean, self._spread(self._noisy, points))

    def resampled(self, points: Matrix) -> Matrix:
        """Return curves (B, G), nats, of resampled examples at points (G, D)."""
        return self._spread(self._resampled, points)

    def _spread(self, weights: Matrix, points: Matrix) -> Matrix:
        out = np.empty((len(weights), len(points)))
        for phi, same in self._shapes(points):
            inside = same[self.chosen]
            out[inside] = weights[inside] @ phi
        return out

    def _shapes(self, points: Matrix) -> Iterator[tuple[Matrix, Flags]]:
        """Yield the features (J, G) of every length at points (G, D), and which choices (H,) have them."""
        owners = [choice.features for choice in self.choices]
        for features in {id(owner): owner for owner in owners}.values():
            yield features.at(points).T, np.array([owner is features for owner in owners])
