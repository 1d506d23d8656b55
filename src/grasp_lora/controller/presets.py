"""Presets of the controller, each registered with its formula, its source and its own defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..config import ControllerConfig, Policy
from ..errors import ConfigError, nearest
from .axes import Axis, Vector, ratio_axis

PAPER = "https://arxiv.org/abs/2601.06702"


@dataclass(frozen=True)
class Settings:
    """A `ControllerConfig` with every preset-dependent default filled in; ratios are 0 to 1.

    The policy's first spread is a sixth of each axis (paper, section 3).
    """

    preset: str
    p_min: float
    p_max: float
    p_init: float
    candidates: int
    policy_lr: float
    anchor: float
    entropy_bonus: float
    max_step: float
    early_stop: bool
    tolerance: float
    plateau: float
    axes: tuple[Axis, ...]

    @cached_property
    def lows(self) -> Vector:
        """Return the lower bound of every axis, shape (D,)."""
        return np.array([axis.low for axis in self.axes])

    @cached_property
    def highs(self) -> Vector:
        """Return the upper bound of every axis, shape (D,)."""
        return np.array([axis.high for axis in self.axes])

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Return (low, high) of every axis."""
        return tuple((axis.low, axis.high) for axis in self.axes)


@dataclass(frozen=True)
class Preset:
    """One rule: its name, formula, source and the defaults that only it has."""

    name: str
    formula: str
    source: str
    p_min: float
    p_max: float
    p_init: float
    policy_lr: float
    anchor: float
    entropy_bonus: float
    policy: Policy


PRESETS: dict[str, Preset] = {}


def register(preset: Preset) -> Preset:
    """Add a preset under its name and return it; raises `ValueError` when the name is taken."""
    if preset.name in PRESETS:
        raise ValueError(f"preset {preset.name!r} is registered twice")
    PRESETS[preset.name] = preset
    return preset


RELEASED = register(
    Preset(
        name="released",
        formula="mu += lr (mean a (p - mu) / sigma^2 - beta (mu - p)); sigma += lr g_sigma + bonus; "
        "p* = the ratio of the largest logged value",
        source=f"{PAPER}, section 3, and the authors' released code",
        p_min=0.10,
        p_max=0.80,
        p_init=0.40,
        policy_lr=0.05,
        anchor=0.05,
        entropy_bonus=0.01,
        policy="ratio",
    )
)
DEFAULT = register(
    Preset(
        name="default",
        formula="mu += lr (sigma mean a z - beta (mu - p)); log sigma += lr (mean a (z^2 - 1) / 2 + bonus_t); "
        "p* = argmin of the fitted settled loss",
        source=f"{PAPER}, section 3, repaired; docs/controller.md numbers every deviation",
        p_min=0.0,
        p_max=0.95,
        p_init=0.40,
        policy_lr=0.5,
        anchor=0.05,
        entropy_bonus=0.1,
        policy="ratio_strength",
    )
)


def chosen_policy(config: ControllerConfig) -> Policy:
    """Return what is to be learned: `controller.policy`, or the preset's own."""
    return config.policy or _preset(config).policy


def resolve(config: ControllerConfig, axes: Callable[[Axis], tuple[Axis, ...]] | None = None) -> Settings:
    """Fill in the preset's defaults; raises `ConfigError` for an unknown preset or contradicting bounds.

    `axes` makes all axes from the ratio's own; without it the ratio is the only one.
    """
    preset = _preset(config)
    low, high = _bounds(config, preset)
    start = min(max(preset.p_init, low), high) if config.p_init is None else config.p_init
    if not low <= start <= high:
        raise ConfigError(
            f"controller.p_init: must lie in [p_min, p_max] = [{low:g}, {high:g}] (got {start:g}). "
            "Change p_init or the bounds."
        )
    first = ratio_axis(low, high, start)
    return Settings(
        preset=preset.name,
        p_min=low,
        p_max=high,
        p_init=start,
        candidates=config.candidates,
        policy_lr=_own(config.policy_lr, preset.policy_lr),
        anchor=_own(config.anchor, preset.anchor),
        entropy_bonus=_own(config.entropy_bonus, preset.entropy_bonus),
        max_step=config.max_step,
        early_stop=config.early_stop and preset.name != "released",
        tolerance=config.tolerance,
        plateau=config.plateau,
        axes=(first,) if axes is None else axes(first),
    )


def _preset(config: ControllerConfig) -> Preset:
    preset = PRESETS.get(config.preset)
    if preset is None:
        raise ConfigError(
            f"controller.preset: unknown preset '{config.preset}'.{nearest(config.preset, PRESETS)} "
            f"Known: {', '.join(PRESETS)}. Correct it in the file given to --config or with --set."
        )
    return preset


def _bounds(config: ControllerConfig, preset: Preset) -> tuple[float, float]:
    low, high = _own(config.p_min, preset.p_min), _own(config.p_max, preset.p_max)
    if low > high:
        raise ConfigError(
            f"controller.p_min: must not exceed p_max, and preset '{preset.name}' gives p_min={low:g} and "
            f"p_max={high:g}. Set both bounds."
        )
    return low, high


def _own(value: float | None, default: float) -> float:
    return default if value is None else value
