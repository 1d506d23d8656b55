"""The plain path: one forward per example, full logits, the merged update added to the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.inject import ChannelNorms
from grasp_lora.adapters.point import MergePoint
from grasp_lora.data import Encoded
from grasp_lora.probing import Evaluator
from grasp_lora.training import TrainingLoop


def written(model: nn.Module, bank: AdapterBank) -> dict[str, Tensor]:
    """The weights W + B A of every adapted module, differentiable with respect to the bank's values."""
    weights = {}
    for module, (a, b) in bank.merged().items():
        layer: Any = model.get_submodule(module)
        delta = (b @ a).to(layer.weight.dtype)
        weights[f"{module}.weight"] = layer.weight + (delta.T if isinstance(layer, Conv1D) else delta)
    return weights


def example_loss(model: nn.Module, weights: dict[str, Tensor], item: Encoded) -> Tensor:
    """The mean cross-entropy of an example's answer, from the logits of every position."""
    ids = torch.tensor([item.input_ids])
    logits = functional_call(model, weights, kwargs={"input_ids": ids, "use_cache": False}).logits
    start = item.prompt_length
    return nn.functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:])


@torch.no_grad()
def committed_losses(self: Evaluator, *, norms: ChannelNorms | None = None) -> Tensor:
    """`Evaluator.losses`, one example after the other."""
    weights, mode, out = written(self._model, self._bank), self._model.training, []
    self._model.eval()
    for item in self._items:
        self.token_passes += len(item.input_ids)
        mask = torch.ones(1, len(item.input_ids), dtype=torch.int64)
        with self._injection.gathering(norms if norms is not None else ChannelNorms(), mask):
            out.append(example_loss(self._model, weights, item))
    self._model.train(mode)
    return torch.stack(out).double()


def candidate_losses(self: Evaluator, masks: Sequence[Tensor]) -> Tensor:
    """`Evaluator.candidate_losses`: commit each mask to the bank, measure, and put everything back."""
    bank, before, rows = self._bank, self._bank.state(), []
    for kept in masks:
        bank.commit(kept)
        rows.append(committed_losses(self))
        bank.load_state(before)
    return torch.stack(rows)


@torch.no_grad()
def flat_losses(self: Evaluator, flat: Tensor, points: Sequence[MergePoint] | None = None) -> Tensor:
    """`Evaluator.flat_losses`: write each row to the bank, measure, and put everything back."""
    bank, before, rows = self._bank, self._bank.state(), []
    for index, row in enumerate(flat):
        bank.values.copy_(row)
        if points is not None:
            bank.stand_at(points[index])
        rows.append(committed_losses(self))
        bank.load_state(before)
    return torch.stack(rows)


def accumulate(self: TrainingLoop, chosen: Sequence[int]) -> float:
    """`TrainingLoop._accumulate`: one forward and one backward per example."""
    self._model.train()
    total = 0.0
    for index in chosen:
        item = self._items[index]
        self.position.trained_tokens += len(item.input_ids)
        norms, mask = ChannelNorms(), torch.ones(1, len(item.input_ids), dtype=torch.int64)
        gathering = self._injection.gathering(norms, mask) if self._selector is None else self._selector.gathering(mask)
        with gathering:
            loss = example_loss(self._model, written(self._model, self.bank), item) / len(chosen)
        loss.backward()
        total += loss.item()
    return total


def patch(monkeypatch: Any) -> None:
    """Let every loss and every gradient come from the plain path."""
    monkeypatch.setattr(Evaluator, "losses", committed_losses)
    monkeypatch.setattr(Evaluator, "candidate_losses", candidate_losses)
    monkeypatch.setattr(Evaluator, "flat_losses", flat_losses)
    monkeypatch.setattr(TrainingLoop, "_accumulate", accumulate)
