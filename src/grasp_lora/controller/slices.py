"""Landscape files, and one simulated micro-dev slice of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..rng import numpy_generator
from .landscape import Landscape, landscape_from
from .plane import Plane, plane_from

Vector = NDArray[np.float64]
AnyLandscape: TypeAlias = Landscape | Plane


class Slice:
    """One simulated micro-dev slice: offsets and shifts drawn once, noise drawn for every evaluation."""

    def __init__(self, landscape: AnyLandscape, seed: int) -> None:
        self.landscape = landscape
        self._rng = numpy_generator(seed, "landscape", landscape.name)
        self.offsets = self._rng.normal(0.0, landscape.example_sd, landscape.examples)
        size = (landscape.examples,) if landscape.dimensions == 1 else (landscape.examples, landscape.dimensions)
        self.shifts = self._rng.normal(0.0, landscape.shift_sd, size)

    def losses(self, point: float | Sequence[float], round_index: int) -> Vector:
        """Return per-example losses (m,) of one evaluation, at a ratio or a point of several coordinates."""
        land = self.landscape
        noise = self._rng.normal(0.0, land.noise_sd * math.sqrt(land.examples), land.examples)
        where = point if land.dimensions > 1 or isinstance(point, float | int) else point[0]
        curve = land.curve(np.asarray(where, float) + self.shifts, round_index)
        return np.asarray(curve + self.offsets - land.drift_per_round * round_index + noise)


def read_landscape(path: str | Path) -> AnyLandscape:
    """Read one landscape file, of one dimension or (with a field `axis`) of two.

    Raises `DataError` naming file, field, rule and value.
    """
    where = Path(path)
    try:
        loaded = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"landscape file {where} does not exist. Check the path given to --landscape.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"landscape file {where} is not readable JSON ({error}). Mend the file.") from None
    if isinstance(loaded, dict) and "axis" in loaded:
        return plane_from(loaded, str(where))
    return landscape_from(loaded, str(where))
