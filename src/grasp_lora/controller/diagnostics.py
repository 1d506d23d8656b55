"""What can go wrong in a controller run, seen in its own numbers (algorithm: the paper's failure modes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import check_fields
from .axes import RATIO

if TYPE_CHECKING:
    from .answer import Estimate
    from .controller import Decision
    from .presets import Settings

RECENT = 5
"""Rounds that make a habit."""
NEAR = 0.02
FLIPPED = 0.1
ALIKE = 1.5
CLEARED = 0.05
MISFIT_ERRORS = 3.0
WIDE_INTERVAL = 0.5


@dataclass(frozen=True)
class Diagnostic:
    """One finding: what was seen, why it matters, which setting to change."""

    code: str
    severity: Literal["info", "warning"]
    seen: str
    why: str
    advice: str


@dataclass(frozen=True)
class Observations:
    """What only the training loop knows, one number per call and kind.

    `flips`: share of mask entries that a commit changed. `cleared`: share of entries whose optimizer state it cleared.
    `start`, `micro`: mean micro-dev losses (nats) before any training and in the later rounds; `train`: of the steps
    since the last round, each seen before its update; `dev`: of the epochs' ends on both sides of the last of `micro`.
    `micro_error`, `train_error` and `dev_error` are the standard errors of such means over examples.
    """

    flips: tuple[float, ...] = ()
    cleared: tuple[float, ...] = ()
    start: tuple[float, ...] = ()
    micro: tuple[float, ...] = ()
    micro_error: tuple[float, ...] = ()
    train: tuple[float, ...] = ()
    train_error: tuple[float, ...] = ()
    dev: tuple[float, ...] = ()
    dev_error: tuple[float, ...] = ()

    def add(self, **seen: float | None) -> Observations:
        """Append the given values; raises `TypeError` for a kind that does not exist."""
        known = {f.name for f in fields(self)}
        unknown = set(seen) - known
        if unknown:
            raise TypeError(f"unknown observations {sorted(unknown)}; known: {sorted(known)}")
        grown = {k: (*getattr(self, k), float(v)) for k, v in seen.items() if v is not None}
        return replace(self, **grown)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Observations:
        """Rebuild from `dataclasses.asdict`; raises `RunError` for the fields of another version."""
        check_fields(saved, cls)
        return cls(**{k: tuple(float(x) for x in v) for k, v in saved.items()})


def diagnose(
    settings: Settings,
    decisions: Sequence[Decision],
    estimate: Estimate | None,
    seen: Observations,
) -> list[Diagnostic]:
    """Return every finding.

    Args:
        settings: bounds and steps of the run.
        decisions: all rounds so far.
        estimate: the present answer, None before the first round.
        seen: what the training loop reported.

    """
    found = [
        _stuck(settings, decisions),
        _p_star_at_bound(settings, estimate),
        _alike(settings, decisions, estimate),
        _thrashing(seen),
        _clearing(seen),
        _unrepresentative(seen),
        _uncertain(settings, estimate),
    ]
    return [diagnostic for diagnostic in found if diagnostic is not None]


def _stuck(settings: Settings, decisions: Sequence[Decision]) -> Diagnostic | None:
    recent = [d.state_after.mean for d in decisions[-RECENT:]]
    margin = NEAR * (settings.p_max - settings.p_min)
    if len(recent) < RECENT or settings.p_min == settings.p_max:
        return None
    high = all(mean >= settings.p_max - margin for mean in recent)
    low = all(mean <= settings.p_min + margin for mean in recent)
    if not (high or low):
        return None
    side, bound, key = ("upper", settings.p_max, "p_max") if high else ("lower", settings.p_min, "p_min")
    return Diagnostic(
        "over_pruning" if high else "stuck_at_bound",
        "warning",
        f"the policy's mean stayed at its {side} bound {bound:g} for the last {RECENT} rounds",
        "a policy at a bound no longer weighs ratios against each other; at the upper one it over-prunes",
        f"move controller.{key} if the fitted loss still falls there, else raise controller.anchor "
        "or, in the released preset, lower controller.entropy_bonus",
    )


def _p_star_at_bound(settings: Settings, estimate: Estimate | None) -> Diagnostic | None:
    if estimate is None:
        return None
    for axis, best in zip(settings.axes, estimate.best, strict=True):
        prefix = "p" if axis.kind == RATIO else "strength"
        margin = 0.01 * (axis.high - axis.low)
        for bound, key in ((axis.low, f"{prefix}_min"), (axis.high, f"{prefix}_max")):
            natural = axis.kind == RATIO and bound in (0.0, 1.0)
            if abs(best - bound) > margin or natural or axis.low == axis.high:
                continue
            return Diagnostic(
                "p_star_at_bound",
                "warning",
                f"{'p_star' if axis.name == RATIO else axis.name} {best:.3f} lies at controller.{key}={bound:g}",
                "the best value may lie outside the bounds",
                f"move controller.{key} outwards and search again",
            )
    return None


def importance_differs(searched: str, final: str) -> Diagnostic | None:
    """Return a finding when the final run ranks entries by another importance than the search did (error 8)."""
    if searched == final:
        return None
    return Diagnostic(
        "importance_differs",
        "warning",
        f"the ratio was learned under importance {searched} and is used under {final}",
        "each rule removes other entries first, so the best ratio of one need not be the best of the other",
        "leave finalize.importance unset, or search with the same prune.importance",
    )


def _alike(settings: Settings, decisions: Sequence[Decision], estimate: Estimate | None) -> Diagnostic | None:
    if settings.candidates == 1 and decisions:
        return Diagnostic(
            "candidates_alike",
            "warning",
            "every round has a single candidate",
            "advantages are relative to the group, and a group of one teaches the policy nothing",
            "raise controller.candidates",
        )
    recent = [d.rewards for d in decisions[-RECENT:] if len(d.rewards) > 1]
    if len(recent) < RECENT:
        return None
    spread = math.sqrt(float(np.mean([np.var(r, ddof=1) for r in recent])))
    noise = 0.0 if estimate is None else estimate.noise
    if spread > max(ALIKE * noise, 1e-12):
        return None
    return Diagnostic(
        "candidates_alike",
        "info",
        f"rewards of one round differ by {spread:.1e} nats over the last {RECENT} rounds; the noise is {noise:.1e}",
        "a group whose members do not differ teaches the policy nothing",
        "more spread: raise controller.entropy_bonus or controller.candidates; or stop, the landscape may be flat here",
    )


def _thrashing(seen: Observations) -> Diagnostic | None:
    recent = seen.flips[-RECENT:]
    if len(recent) < RECENT or float(np.mean(recent)) <= FLIPPED:
        return None
    return Diagnostic(
        "mask_thrashing",
        "warning",
        f"commits flipped {np.mean(recent):.0%} of the mask entries on average over the last {len(recent)}",
        "entries that come and go are trained for nothing and shake the loss",
        "lower controller.max_step, raise controller.interval, or use an importance rule that changes less",
    )


def _clearing(seen: Observations) -> Diagnostic | None:
    recent = seen.cleared[-2 * RECENT :]
    if len(recent) < RECENT or float(np.mean(recent)) <= CLEARED:
        return None
    return Diagnostic(
        "optimizer_cleared",
        "warning",
        f"each of the last {len(recent)} commits cleared the optimizer state of {np.mean(recent):.0%} of all entries",
        "Adam has to gather the moments anew each time, so training slows down",
        "raise controller.interval or lower controller.max_step",
    )


def _unrepresentative(seen: Observations) -> Diagnostic | None:
    """Hold micro-dev against dev, and against the first training losses, in units of the difference's standard error.

    Losses of the same state are never at hand, so micro-dev has to lie outside of what the other split had on both
    sides of it. The adapters may know the training examples by heart from before the merge, so only a micro-dev that is
    easier than they are says anything.
    """
    if not seen.micro or not seen.micro_error:
        return None
    if seen.dev and seen.dev_error:
        micro, error = seen.micro[-1], math.hypot(seen.micro_error[-1], seen.dev_error[-1])
        nearest = min(max(micro, min(seen.dev)), max(seen.dev))
        if abs(micro - nearest) > MISFIT_ERRORS * error:
            return _unlike("dev", micro, nearest, error)
    if seen.start and seen.train and seen.train_error:
        micro, error = max(seen.start[0], seen.micro[0]), math.hypot(seen.micro_error[0], seen.train_error[0])
        if seen.train[0] - micro > MISFIT_ERRORS * error:
            return _unlike("first training", micro, seen.train[0], error)
    return None


def _unlike(other: str, micro: float, loss: float, error: float) -> Diagnostic:
    return Diagnostic(
        "micro_dev_unrepresentative",
        "warning",
        f"the micro-dev loss {micro:.3f} is {abs(micro - loss) / error:.1f} standard errors of the difference from the "
        f"{other} loss {loss:.3f}",
        "a slice unlike the rest of the data points to its own best ratio, not to the task's",
        "draw another micro-dev slice, or a larger one with data.micro_dev_size",
    )


def _uncertain(settings: Settings, estimate: Estimate | None) -> Diagnostic | None:
    if estimate is None or estimate.interval is None:
        return None
    low, high = estimate.interval
    if high - low <= WIDE_INTERVAL * (settings.p_max - settings.p_min):
        return None
    return Diagnostic(
        "p_star_uncertain",
        "info",
        f"the {estimate.level:.0%} interval of p_star is [{low:.2f}, {high:.2f}]; the choice of examples and noise "
        f"are expected to cost {estimate.slice_regret:.1e} nats",
        "either the loss is flat over a wide range, and the choice matters little, or the examples disagree",
        "compare the curve's depth with the noise; more micro-dev examples (data.micro_dev_size) narrow the interval",
    )
