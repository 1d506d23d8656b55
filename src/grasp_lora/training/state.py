"""Where a training loop stands, what it reports to, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Log = Callable[[str, dict[str, Any]], None]
Save = Callable[[dict[str, Tensor], dict[str, Any]], None]
BEFORE = -1
"""The best epoch of a run that did not get better than what it began with."""


@dataclass
class Position:
    """Where a run stands. Everything in it is JSON; tensors are kept beside it."""

    epoch: int = 0
    update: int = 0  # within the epoch
    step: int = 0
    stopped: bool = False
    best_epoch: int | None = None
    epochs_since_best: int = 0
    dev_losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    trained_tokens: int = 0
    dev_tokens: int = 0
    start_dev_loss: float | None = None

    def outcome(self) -> Outcome:
        """Return how a run that ends here has ended."""
        epochs = self.epoch + (1 if self.update else 0)
        return Outcome(
            self.step, epochs, self.best_epoch, tuple(self.dev_losses), tuple(self.epoch_losses), self.stopped,
            self.trained_tokens, self.dev_tokens, self.start_dev_loss,
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a run ended. Losses are means over examples of the mean cross-entropy of answer tokens (nats).

    `trained_tokens` went forward and backward, `dev_tokens` forward only; padding is not counted. `start_dev_loss` is
    that before the first update, where dev may choose it too; `best_epoch` is BEFORE when it did.
    """

    steps: int
    epochs: int
    best_epoch: int | None
    dev_losses: tuple[float, ...]
    train_losses: tuple[float, ...]
    stopped_early: bool
    trained_tokens: int
    dev_tokens: int
    start_dev_loss: float | None = None

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Outcome:
        """Rebuild from JSON values."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return cls(**values)


@dataclass(frozen=True)
class Plumbing:
    """What a loop is called and reports to. `poll` says whether the user asked to stop; `save` keeps a checkpoint.

    `judge` is told every epoch's number (from 0) and dev loss; True ends the run there (an optimizer that prunes).
    """

    name: str = "training"
    log: Log = lambda _kind, _values: None
    save: Save | None = None
    poll: Callable[[], bool] = lambda: False
    show: Callable[..., None] = lambda **_values: None
    judge: Callable[[int, float], bool] = lambda _epoch, _loss: False
    checkpoint_every: int = 50


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
