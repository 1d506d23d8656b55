"""What attaches to a training loop: a few hooks, so that the same object can serve other loops later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.masks import CommitReport
from ..adapters.point import MergePoint
from ..errors import ConfigError
from .selector import MaskSelector

# Known states that begin at the values (of schedule-free optimizers and Prodigy) or at a rate (Rprop's steps).
_NOT_FROM_A_CONSTANT = frozenset({"z", "p0", "step_size"})


class Callback(Protocol):
    """Hooks of a training loop, in the order in which an update calls them."""

    def start(self) -> None:
        """Called once before the first update of a run that is not resumed from a checkpoint."""

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Called once, before `start`, and also when a run is resumed."""

    def after_backward(self) -> None:
        """Called when the gradient of an update is complete, before the optimizer step."""

    def after_step(self, step: int, loss: float | Tensor | None) -> bool:
        """Called after optimizer step `step` (from 1), whose training loss was `loss` (None: unknown); True stops.

        A tensor is a loss that lies on a GPU still: who looks at it waits.
        """

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values for a checkpoint."""

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""


@torch.no_grad()
def commit_mask(bank: AdapterBank, kept: Tensor, optimizer: torch.optim.Optimizer | None) -> CommitReport:
    """Commit `kept` to the bank and clear the optimizer's moments of the entries that are newly pruned.

    Cleared moments are what they were before the first step: zero, or Adagrad's `initial_accumulator_value`.

    Raises `ConfigError`, before anything is changed, for an optimizer whose moments cannot be cleared entry by entry.
    """
    moments = [] if optimizer is None else _moments(optimizer, bank.values)
    fresh = 0.0 if optimizer is None else optimizer.param_groups[0].get("initial_accumulator_value", 0.0)
    gone = bank.kept & ~kept
    report = bank.commit(kept)
    for moment in moments:
        moment.masked_fill_(gone, fresh)
    return report


def _moments(optimizer: torch.optim.Optimizer, values: Tensor) -> list[Tensor]:
    """Return what an optimizer knows of each entry of `values`, whatever it calls it; numbers such as steps are not."""
    found: list[Tensor] = []
    for name, state in optimizer.state.get(values, {}).items():
        if not isinstance(state, Tensor) or (state.numel() == 1 and state.shape != values.shape):
            continue
        plain = type(state) is Tensor and state.is_floating_point() and state.shape == values.shape
        if not plain or name in _NOT_FROM_A_CONSTANT:
            kind = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps the trainer's
            raise ConfigError(
                f"optimizer {kind}: its state '{name}' ({state.dtype}, shape {tuple(state.shape)}) cannot be cleared "
                "for pruned entries alone, and would move them when they come back. Use one with plain moments of "
                "every entry, such as AdamW (optim='adamw_torch')."
            )
        found.append(state)
    return found


class FixedRatio:
    """Prune at one point before the first update and hold it: the final run, and pruning baselines.

    `static` keeps the first mask; `dynamic` selects again after every update, pruned entries ranked by their stash.
    """

    def __init__(self, bank: AdapterBank, selector: MaskSelector, point: MergePoint, *, dynamic: bool) -> None:
        self._bank, self._selector, self._point, self._dynamic = bank, selector, point, dynamic
        self._optimizer: torch.optim.Optimizer | None = None
        self._flips: list[float] = []
        self._commits: list[CommitReport] = []  # not looked at yet

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the optimizer, whose moments a commit clears."""
        self._optimizer = optimizer

    def start(self) -> None:
        """Prune at the point."""
        self._select()

    def after_backward(self) -> None:
        """Feed the importance statistics, then keep pruned entries out of the optimizer."""
        self._selector.after_backward()
        self._bank.mask_gradient()

    def after_step(self, step: int, loss: float | Tensor | None) -> bool:
        """Hold pruned entries at zero; select again when the mask is dynamic."""
        self._bank.enforce()
        if self._dynamic:  # a loss that was looked at has made the program wait already
            self._commits.append(self._select(check=not isinstance(loss, Tensor)))
        return False

    def _select(self, *, check: bool = True) -> CommitReport:
        kept = self._selector.kept(self._selector.ranking(check=check), self._point)
        return commit_mask(self._bank, kept, self._optimizer)

    @property
    def flips(self) -> list[float]:
        """Share of the entries that each update's selection pruned or revived.

        Raises `TrainingError` when an importance was not a number.
        """
        self._selector.check()
        self._flips += [commit.flipped for commit in self._commits]
        self._commits.clear()
        return list(self._flips)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the selector's state and the flips so far."""
        tensors, plain = self._selector.state()
        return tensors, {"selector": plain, "flips": self.flips}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self._selector.load_state(tensors, plain["selector"])
        self._flips = [float(value) for value in plain["flips"]]
        self._commits.clear()
