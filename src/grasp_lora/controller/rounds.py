"""What passes between a controller and its training loop in one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import RunError, check_fields
from .policy import Point, PolicyState

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Proposal:
    """What to probe in one round, beside the committed state's baseline: ratios, and further coordinates of each.

    `samples` (C,) is the first axis, `further` C tuples of the other axes; without it the ratio is the only axis.
    """

    round: int
    samples: tuple[float, ...]
    further: tuple[Point, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """Return every candidate as a point, one coordinate per axis."""
        return tuple(
            (p, *rest) for p, rest in zip(self.samples, self.further or ((),) * len(self.samples), strict=True)
        )

    @classmethod
    def of(cls, round_index: int, points: Sequence[Point]) -> Proposal:
        """Return the proposal of these points."""
        further = tuple(point[1:] for point in points) if len(points[0]) > 1 else ()
        return cls(round_index, tuple(point[0] for point in points), further)


@dataclass(frozen=True)
class Decision:
    """What one round came to.

    `rewards` (C,) are baseline minus candidate mean losses, in nats. `mask_ratio` is the ratio (the first axis) at
    which the mask must be built now, None when everything stays; `state_after.vector("applied")` has all axes.
    `recorded_ratio` is the p that the policy keeps.
    """

    rewards: tuple[float, ...]
    committed: bool
    mask_ratio: float | None
    recorded_ratio: float
    state_before: PolicyState
    state_after: PolicyState

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Decision:
        """Rebuild from `dataclasses.asdict`; raises `RunError` for the fields of another version."""
        check_fields(saved, cls)
        states = {key: PolicyState.from_dict(saved[key]) for key in ("state_before", "state_after")}
        return cls(**{**saved, **states, "rewards": tuple(saved["rewards"])})


def checked_losses(proposal: Proposal, baseline: ArrayLike, candidates: ArrayLike) -> tuple[Vector, Vector]:
    """Return baseline (m,) and candidates (C, m) as arrays; raises `RunError` on a wrong shape or a loss not finite."""
    base, trials = np.asarray(baseline, dtype=float), np.asarray(candidates, dtype=float)
    if base.ndim != 1 or trials.shape != (len(proposal.samples), len(base)) or not len(base):
        raise RunError(
            f"round {proposal.round}: the baseline needs shape (m,) and the candidates ({len(proposal.samples)}, m), "
            f"got {base.shape} and {trials.shape}. Evaluate every proposed ratio on the same examples."
        )
    if not (np.isfinite(base).all() and np.isfinite(trials).all()):
        raise RunError(f"round {proposal.round}: a micro-dev loss is not finite. Lower search.lr or controller.p_max.")
    return base, trials
