"""The axes of a policy: what a controller may choose beside the one prune ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..adapters.point import MergePoint
from ..config import ControllerConfig, Policy, Scope
from ..errors import ConfigError

Vector = NDArray[np.float64]
RATIO, STRENGTH, WEIGHT = "ratio", "strength", "weight"


@dataclass(frozen=True)
class Axis:
    """One coordinate of a point.

    `name` is `ratio`, `strength`, `ratio:NAME` (of an adapter or a module type) or `weight:NAME` (of an adapter).
    `init` is the policy's first mean, `start` what holds before the first commit: no pruning, full strength.
    """

    name: str
    low: float
    high: float
    init: float
    start: float

    @property
    def kind(self) -> str:
        """Return ratio, strength or weight."""
        return self.name.partition(":")[0]

    @property
    def owner(self) -> str:
        """Return whose ratio or weight it is; empty for all."""
        return self.name.partition(":")[2]

    @property
    def span(self) -> float:
        """Return the unit in which steps are limited: 1 for a ratio, the range for anything else."""
        return 1.0 if self.kind == RATIO else self.high - self.low


def ratio_axis(low: float, high: float, init: float, owner: str = "") -> Axis:
    """Return the axis of a prune ratio."""
    return Axis(f"{RATIO}:{owner}" if owner else RATIO, low, high, init, 0.0)


def policy_axes(
    policy: Policy,
    config: ControllerConfig,
    first: Axis,
    adapters: Sequence[str],
    module_types: Sequence[str],
    scope: Scope,
) -> tuple[Axis, ...]:
    """Return the axes of a policy; `first` is the ratio's, with the preset's bounds.

    Raises:
        ConfigError: a policy with own ratios under a global ranking, which knows only one.

    """
    if policy in ("ratio_per_adapter", "ratio_per_module_type"):
        if scope == "global":
            raise ConfigError(
                f"controller.policy: {policy} needs a ratio per tensor, and prune.scope=global ranks all "
                "tensors together. Use --set prune.scope=per_tensor or another policy."
            )
        owners = adapters if policy == "ratio_per_adapter" else module_types
        return tuple(ratio_axis(first.low, first.high, first.init, owner) for owner in owners)
    low, high = config.strength_min, config.strength_max
    full = min(max(1.0, low), high)
    if policy == "ratio_strength":
        return (first, Axis(STRENGTH, low, high, full, 1.0))
    if policy == "ratio_weights":
        return (first, *(Axis(f"{WEIGHT}:{name}", low, high, full, 1.0) for name in adapters))
    return (first,)


def named_axes(names: Sequence[str], config: ControllerConfig, first: Axis) -> tuple[Axis, ...]:
    """Return the axes of a recorded history by their names, with the bounds of `config` and of the ratio's axis.

    Raises:
        ConfigError: a name that is no axis.

    """
    low, high = config.strength_min, config.strength_max
    out = []
    for name in names:
        kind, _, owner = name.partition(":")
        if kind == RATIO:
            out.append(ratio_axis(first.low, first.high, first.init, owner))
        elif kind in (STRENGTH, WEIGHT):
            out.append(Axis(name, low, high, min(max(1.0, low), high), 1.0))
        else:
            raise ConfigError(
                f"axis '{name}': known are ratio, strength, ratio:NAME and weight:NAME. Mend the history."
            )
    return tuple(out)


def merge_point(axes: Sequence[Axis], point: Sequence[float] | Vector) -> MergePoint:
    """Return what the coordinates mean for a merge; without an axis for all, the ratio is the mean of the own ones."""
    named = list(zip(axes, (float(x) for x in point), strict=True))
    own = {axis.owner: x for axis, x in named if axis.kind == RATIO and axis.owner}
    common = [x for axis, x in named if axis.name == RATIO]
    ratio = common[0] if common else float(np.mean(list(own.values())))
    strength = next((x for axis, x in named if axis.kind == STRENGTH), 1.0)
    weights = tuple(x for axis, x in named if axis.kind == WEIGHT)
    return MergePoint(ratio, strength, weights, own)
