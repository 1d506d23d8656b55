"""One implementation of "which entries go first" for search, final run and baselines.

The selector owns the statistics that an importance rule needs and says when to gather them: channel norms during the
training forward, gradients after the backward. Both cover the passes since the last selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..adapters.bank import AdapterBank
from ..adapters.importance import Sensitivity, activation_of, magnitude
from ..adapters.inject import ChannelNorms, Injection
from ..adapters.masks import Ranking, rank
from ..adapters.point import MergePoint
from ..config import PruneConfig
from ..errors import TrainingError
from ..probing import Evaluator


class MaskSelector:
    """Ranks the entries of a bank by the configured importance and scope.

    `probe` supplies the statistics of the first selection (its micro-dev pass); later ones use the training passes
    since the selection before. Probing and dev passes feed nothing. `magnitude` needs no probe; the others raise
    ValueError without one.
    """

    def __init__(self, bank: AdapterBank, injection: Injection, prune: PruneConfig, probe: Evaluator | None) -> None:
        if probe is None and prune.importance != "magnitude":
            raise ValueError(f"importance {prune.importance} needs an evaluator of the micro-dev examples")
        self._bank, self._injection, self._prune, self._probe = bank, injection, prune, probe
        self._norms = ChannelNorms()
        self._activation = activation_of(bank, fused=probe is not None and probe.speed.fused_kernels)
        self._sensitivity = Sensitivity(bank) if prune.importance == "sensitivity" else None
        self._selections = 0
        self._finite: Tensor | None = None  # whether all importances were numbers since the last look
        self.probe_tokens = 0  # what the first statistics cost, in tokens forward

    @property
    def statistics(self) -> ChannelNorms:
        """Channel norms gathered since the last selection."""
        return self._norms

    def gathering(self, mask: Tensor) -> AbstractContextManager[None]:
        """Wrap a training forward over a batch with attention mask (B, T)."""
        if self._prune.importance != "activation":
            return nullcontext()
        return self._injection.gathering(self._norms, mask)

    def gathered(self) -> None:
        """Say that a recorded pass, which runs no hooks, has added to the statistics."""
        self._norms.filled = self._norms.filled or self._prune.importance == "activation"

    def after_backward(self) -> None:
        """Feed gradients; call before they are masked."""
        if self._sensitivity is not None:
            self._sensitivity.observe()

    def ranking(self, *, check: bool = True) -> Ranking:
        """Return the ranking of all entries now, and start gathering anew.

        Raises `TrainingError` when an importance is not a number, for which it waits for a GPU; without `check`, the
        next `check` does.
        """
        scores = self._scores()
        self._norms.reset()
        self._selections += 1
        finite = torch.isfinite(scores).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if check:
            self.check()
        return rank(scores, self._bank.segments(self._prune.scope), checked=True)

    def check(self) -> None:
        """Raise `TrainingError` when an importance of any ranking since the last look is not a number."""
        if self._finite is not None and not bool(self._finite):
            rule = self._prune.importance
            other = "set max_grad_norm" if rule == "magnitude" else "use --set prune.importance=magnitude"
            raise TrainingError(
                f"prune.importance: {rule} gave values that are not finite. Lower the learning rate or {other}."
            )
        self._finite = None

    def kept(self, ranking: Ranking, point: MergePoint) -> Tensor:
        """Return the mask of a point, shape (n,): True where an entry is kept."""
        return ranking.kept(self._bank.ratios(point, self._prune.scope))

    def _scores(self) -> Tensor:
        if self._prune.importance == "magnitude":
            return magnitude(self._bank)
        assert self._probe is not None  # checked in the constructor
        before = self._probe.token_passes
        scores = self._measured(self._probe)
        self.probe_tokens += self._probe.token_passes - before
        return scores

    def _measured(self, probe: Evaluator) -> Tensor:
        if self._sensitivity is not None:
            if self._sensitivity.observed == 0:
                probe.accumulate_gradient()
                self._sensitivity.observe()
                self._bank.values.grad = None
            return self._sensitivity.scores()
        norms = self._norms
        if self._selections == 0 or not norms.filled:
            norms = ChannelNorms()
            probe.losses(norms=norms)
        return self._activation(norms.norms())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and plain values for a checkpoint."""
        squares = self._norms.squares if self._norms.filled else {}
        tensors = {f"norms.{module}": square.clone() for module, square in squares.items()}
        plain: dict[str, Any] = {"selections": self._selections, "probe_tokens": self.probe_tokens}
        if self._sensitivity is not None:
            tensors |= {"mean": self._sensitivity.mean, "deviation": self._sensitivity.deviation}
            plain["observed"] = self._sensitivity.observed
        return tensors, plain

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        device = self._bank.values.device
        self._norms.squares = {
            key.removeprefix("norms."): value.to(device, copy=True)
            for key, value in tensors.items()
            if key.startswith("norms.")
        }
        self._norms.filled = bool(self._norms.squares)
        self._finite = None
        self._selections, self.probe_tokens = int(plain["selections"]), int(plain["probe_tokens"])
        if self._sensitivity is not None:
            self._sensitivity.mean = tensors["mean"].to(device)
            self._sensitivity.deviation = tensors["deviation"].to(device)
            self._sensitivity.observed = int(plain["observed"])
