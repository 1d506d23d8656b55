"""Smooth functions over points: the eigenfunctions of a squared-exponential kernel, and their products over axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
Bounds: TypeAlias = tuple[tuple[float, float], ...]

GRID = 191
BASIS = 12
PRODUCTS = (12, 40, 60)
"""Features kept for one, two, and more axes; the largest eigenvalues of the product come first."""


@lru_cache(maxsize=64)
def basis(low: float, high: float, length: float) -> tuple[Vector, Matrix]:
    """Return the grid (G,) over the bounds and J features on it (G, J) of a unit squared-exponential kernel."""
    grid = np.linspace(low, high, GRID)
    kernel = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / length) ** 2)
    values, vectors = np.linalg.eigh(kernel)
    keep = np.argsort(values)[::-1][:BASIS]
    return grid, vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0.0))


def interpolate(x: Vector, grid: Vector, features: Matrix) -> Matrix:
    """Return the features (G, J) at ratios x (n,), linear between grid points and constant outside; (n, J)."""
    step = grid[1] - grid[0]
    place = np.clip((x - grid[0]) / step, 0, len(grid) - 1 - 1e-9) if step > 0 else np.zeros_like(x)
    left = place.astype(int)
    part = (place - left)[:, None]
    return np.asarray((1 - part) * features[left] + part * features[left + 1])


@dataclass(frozen=True)
class Features:
    """J product features over D axes: `grids` and `tables` hold each axis's own, `index` (J, D) picks one of each."""

    grids: tuple[Vector, ...]
    tables: tuple[Matrix, ...]
    index: Indices

    @property
    def count(self) -> int:
        """Return J."""
        return len(self.index)

    def at(self, points: Matrix) -> Matrix:
        """Return the features at points (n, D), shape (n, J)."""
        out = interpolate(points[:, 0], self.grids[0], self.tables[0])[:, self.index[:, 0]]
        for d in range(1, len(self.grids)):
            out = out * interpolate(points[:, d], self.grids[d], self.tables[d])[:, self.index[:, d]]
        return out


@lru_cache(maxsize=64)
def product_features(bounds: Bounds, length: float) -> Features:
    """Return the features of a product kernel over the bounds; further axes scale the length by their own range."""
    ranges = [1.0 if d == 0 or high == low else high - low for d, (low, high) in enumerate(bounds)]
    own = [basis(low, high, length * size) for (low, high), size in zip(bounds, ranges, strict=True)]
    if len(own) == 1:
        return Features((own[0][0],), (own[0][1],), np.arange(BASIS)[:, None])
    # The columns' squared norms are the eigenvalues of each axis, so their product ranks the products.
    sizes = [np.square(table).sum(axis=0) for _, table in own]
    places = np.stack([m.ravel() for m in np.meshgrid(*[np.arange(len(s)) for s in sizes], indexing="ij")], axis=1)
    value = np.prod([size[places[:, d]] for d, size in enumerate(sizes)], axis=0)
    kept = places[np.argsort(-value, kind="stable")[: PRODUCTS[min(len(own), 3) - 1]]]
    return Features(tuple(grid for grid, _ in own), tuple(table for _, table in own), kept)
