"""All trainable tensors of the merged adapters in one flat parameter, with their mask and stash.

One buffer keeps the hot path short: the optimizer, the gradient mask, commits and enforcement are single operations
over it, whatever the number of modules. The order is canonical (module name, adapter, A before B), so that flat
indices, ties and saved files agree on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..config import MergeConfig, Scope
from ..data import moved
from ..errors import AdapterError
from .masks import CommitReport
from .merge import RULES, Pair, check_ranks, constant
from .peft_load import AdapterFactors
from .point import MergePoint


@dataclass(frozen=True)
class Slot:
    """One prunable tensor: where it lies in the flat buffer and the constant `c_k` it is multiplied by."""

    module: str
    adapter: int
    part: Literal["A", "B"]
    shape: tuple[int, int]
    start: int
    constant: float

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def key(self) -> str:
        """Name of the tensor in saved files: `<module>.<adapter index>.<A or B>`."""
        return f"{self.module}.{self.adapter}.{self.part}"


class AdapterBank:
    """Trainable values, mask and stash of several adapters, and the merged factors they give.

    `values` is an `nn.Parameter` of shape (n,); `kept` a bool mask of shape (n,); `stash` of shape (n,) holds what
    pruned entries were when they were pruned, and zero elsewhere. `configured` are the weights of the
    configuration, one per adapter; `strength` and `weights` are factors on those and on its strength, which a search
    may move (`stand_at`).
    """

    def __init__(
        self, adapters: Sequence[AdapterFactors], merge: MergeConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        weights = (1.0,) * len(adapters) if merge.weights is None else merge.weights
        if len(weights) != len(adapters):
            raise AdapterError(
                f"merge.weights: needs one number per adapter ({len(adapters)}), got {len(weights)}. Give as many."
            )
        self.merge = merge
        self.configured = tuple(weights)
        self.names = tuple(adapter.name for adapter in adapters)
        self.signs = tuple(-1.0 if weight < 0 else 1.0 for weight in weights)
        slots: list[Slot] = []
        pieces: list[Tensor] = []
        start = 0
        for module in sorted({name for adapter in adapters for name in adapter.modules}):
            check_ranks(
                merge.rule,
                module,
                [(a.name, int(a.modules[module].A.shape[0])) for a in adapters if module in a.modules],
            )
            for index, adapter in enumerate(adapters):
                factor = adapter.modules.get(module)
                if factor is None:
                    continue
                scaling = 1.0 if merge.scaling == "ignore" else factor.scaling
                for part, tensor in (("A", factor.A), ("B", factor.B)):
                    shape = (int(tensor.shape[0]), int(tensor.shape[1]))
                    slots.append(Slot(module, index, part, shape, start, constant(weights[index], scaling)))  # type: ignore[arg-type]
                    pieces.append(tensor.detach().reshape(-1).to(dtype))
                    start += tensor.numel()
        if not slots:
            raise AdapterError("the adapters hold no LoRA tensors. Give at least one adapter with weights.")
        self.slots = tuple(slots)
        self.values = nn.Parameter(torch.cat(pieces))
        self.kept = torch.ones(start, dtype=torch.bool)
        self.stash = torch.zeros(start, dtype=dtype)
        self.strength = 1.0
        self.weights = (1.0,) * len(adapters)
        self._scales: tuple[MergePoint, Tensor] | None = None

    def to(self, device: torch.device | str) -> AdapterBank:
        """Move values, mask and stash to `device`; call before an optimizer is made."""
        self.values = nn.Parameter(self.values.detach().to(device))
        self.kept, self.stash = self.kept.to(device), self.stash.to(device)
        return self

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that any adapter touches, sorted."""
        return tuple(dict.fromkeys(slot.module for slot in self.slots))

    def segments(self, scope: Scope) -> tuple[int, ...]:
        """Return the segment sizes of a scope: one per tensor, or one for all tensors together."""
        return tuple(slot.size for slot in self.slots) if scope == "per_tensor" else (self.values.numel(),)

    def stand_at(self, point: MergePoint) -> None:
        """Add the adapters with the strength and weights of `point` from now on; the mask is committed by itself."""
        self.strength = point.strength
        self.weights = point.weights or (1.0,) * len(self.names)

    def standing(self, ratio: float) -> MergePoint:
        """Return the strength and weights in force, with a ratio."""
        return MergePoint(ratio, self.strength, self.weights)

    def ratios(self, point: MergePoint, scope: Scope) -> float | tuple[float, ...]:
        """Return the ratio of every segment of a scope, or the one that holds for all."""
        if not point.ratios or scope == "global":
            return point.ratio
        return tuple(point.of(self.names[slot.adapter], slot.module.rpartition(".")[2]) for slot in self.slots)

    def constant(self, slot: Slot) -> float:
        """Return `c_k` of a slot under the weights in force."""
        weight = self.weights[slot.adapter]
        return slot.constant if weight == 1.0 else slot.constant * math.sqrt(weight)

    def constants(self) -> Float[Tensor, " n"]:
        """Return `c_k` of every entry, shape (n,)."""
        return self._spread([[self.constant(slot) for slot in self.slots]])[0]

    def dense(self) -> Float[Tensor, " n"]:
        """Return the values with pruned entries at what they were when pruned, shape (n,), detached."""
        return torch.where(self.kept, self.values.detach(), self.stash)

    def split(self, flat: Float[Tensor, "*lead n"]) -> list[Tensor]:
        """Cut (..., n) into one (..., rows, columns) tensor per slot; its backward is a single concatenation."""
        pieces = torch.split(flat, [slot.size for slot in self.slots], dim=-1)
        return [piece.reshape(*piece.shape[:-1], *slot.shape) for slot, piece in zip(self.slots, pieces, strict=True)]

    def merged(
        self,
        flat: Float[Tensor, "*lead n"] | None = None,
        points: Sequence[MergePoint] | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Pair]:
        """Return the merged factors per module, `(A (..., R, d_in), B (..., d_out, R))`, from `flat` or the values.

        With `points`, one per row of `flat` (C, n), every row has its own strength and weights; otherwise those in
        force. The sums are made in the precision of the values and rounded to `dtype`, if it is given.
        """
        scaled = (self.values if flat is None else flat) * self.scales(points)
        if self.merge.rule == "sum_factors":
            scaled = self._summed(scaled)
            scaled = scaled if dtype is None else scaled.to(dtype)
            return dict(zip(self.modules, self._pairs(scaled), strict=True))
        scaled = scaled if dtype is None else scaled.to(dtype)
        grouped: dict[str, list[Pair]] = {}
        tensors = self.split(scaled)
        for index in range(0, len(self.slots), 2):
            grouped.setdefault(self.slots[index].module, []).append((tensors[index], tensors[index + 1]))
        return {module: RULES[self.merge.rule].combine(pairs) for module, pairs in grouped.items()}

    def _summed(self, scaled: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead merged"]:
        """Return the sum over the adapters, tensor by tensor, as few operations on all tensors together.

        An adapter that does not touch a module counts as zeros there.
        """
        if len(self.names) == 1:
            return scaled
        pieces = torch.split(scaled, [slot.size for slot in self.slots], dim=-1)
        found = {slot.key: piece for slot, piece in zip(self.slots, pieces, strict=True)}
        total: Tensor | None = None
        for adapter in range(len(self.names)):
            own = [
                found.get(f"{module}.{adapter}.{part}", scaled.new_zeros(()).expand(*scaled.shape[:-1], rows * columns))
                for module, shapes in self._merged_shapes.items()
                for part, (rows, columns) in zip("AB", shapes, strict=True)
            ]
            joined = torch.cat(own, dim=-1)
            total = joined if total is None else total + joined
        assert total is not None  # a bank has an adapter
        return total

    def _pairs(self, flat: Float[Tensor, "*lead merged"]) -> list[Pair]:
        """Cut merged factors, laid out as `_merged_shapes`, into pairs."""
        shapes = [shape for pair in self._merged_shapes.values() for shape in pair]
        pieces = torch.split(flat, [rows * columns for rows, columns in shapes], dim=-1)
        cut = [piece.reshape(*piece.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return list(zip(cut[::2], cut[1::2], strict=True))

    @cached_property
    def _merged_shapes(self) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """Shapes of A and B of every module where all adapters have one rank."""
        found: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
        for a, b in zip(self.slots[::2], self.slots[1::2], strict=True):
            found.setdefault(a.module, (a.shape, b.shape))
        return found

    def scales(self, points: Sequence[MergePoint] | None = None) -> Float[Tensor, "*lead n"]:
        """Return what every entry is multiplied by in the merge: `sign(w_k) c_k` in A, `g c_k` in B; (n,) or (C, n).

        Without points it is one buffer, which changes in place when strength or weights do: a recorded CUDA graph
        that reads it goes on reading what is in force.
        """
        if points is not None:
            return self._spread([self._slot_scales(point) for point in points])
        standing = self.standing(0.0)
        if self._scales is None or self._scales[1].device != self.values.device:
            self._scales = standing, self._spread([self._slot_scales(standing)])[0]
        elif self._scales[0] != standing:
            self._scales[1].copy_(self._spread([self._slot_scales(standing)])[0])
            self._scales = standing, self._scales[1]
        return self._scales[1]

    def _slot_scales(self, point: MergePoint) -> list[float]:
        """Return the factor of every slot at a point."""
        roots = [math.sqrt(weight) for weight in point.weights or (1.0,) * len(self.names)]
        strength = self.merge.strength * point.strength
        return [
            slot.constant * roots[slot.adapter] * (self.signs[slot.adapter] if slot.part == "A" else strength)
            for slot in self.slots
        ]

    def _spread(self, rows: Sequence[Sequence[float]]) -> Float[Tensor, "rows n"]:
        """Return a value per slot as a value per entry."""
        values = moved(torch.tensor(rows, dtype=self.values.dtype), self.values.device)
        sizes = moved(torch.tensor([slot.size for slot in self.slots]), self.values.device)
        return torch.repeat_interleave(values, sizes, dim=1, output_size=self.values.numel())

    @torch.no_grad()
    def commit(self, kept: Bool[Tensor, " n"]) -> CommitReport:
        """Prune where `kept` is False: newly pruned entries go to the stash, revived ones come back from it."""
        gone, back = self.kept & ~kept, kept & ~self.kept
        dense = self.dense()
        self.stash = torch.where(kept, torch.zeros_like(dense), dense)
        self.values.copy_(torch.where(kept, dense, torch.zeros_like(dense)))
        self.kept = kept.clone()
        return CommitReport(torch.stack([gone.sum(), back.sum(), kept.sum()]), kept.numel())

    @torch.no_grad()
    def enforce(self) -> None:
        """Hold pruned entries at zero."""
        self.values.masked_fill_(~self.kept, 0.0)  # a product would leave -0.0

    def mask_gradient(self) -> None:
        """Zero the gradient of pruned entries, so that no moment gathers noise (algorithm.md, point 7)."""
        if self.values.grad is not None:
            self.values.grad.masked_fill_(~self.kept, 0.0)

    def density(self) -> float:
        """Return the share of entries that the mask keeps, counted on the mask."""
        return int(self.kept.sum()) / self.kept.numel()

    def densities(self) -> dict[str, float]:
        """Return the share of entries kept in every unsummed tensor by `Slot.key`, counted on the mask."""
        return {key: float(mask.double().mean()) for key, mask in self.masks().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return every unsummed tensor by `Slot.key`, masked, detached, on the CPU."""
        flat = torch.where(self.kept, self.values.detach(), torch.zeros_like(self.stash)).cpu()
        return {slot.key: t.clone() for slot, t in zip(self.slots, self.split(flat), strict=True)}

    def masks(self) -> dict[str, Tensor]:
        """Return the mask of every unsummed tensor by `Slot.key` (True: kept), on the CPU."""
        return {slot.key: t.clone() for slot, t in zip(self.slots, self.split(self.kept.cpu()), strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Return values, mask, stash, and strength and weights (1 + K,) in force, as a checkpoint keeps them."""
        return {
            "values": self.values.detach().clone(),
            "kept": self.kept.clone(),
            "stash": self.stash.clone(),
            "standing": torch.tensor([self.strength, *self.weights], dtype=torch.float64),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned; the parameter object stays the same."""
        self.values.copy_(state["values"])
        self.kept = state["kept"].to(self.kept.device, torch.bool).clone()
        self.stash = state["stash"].to(self.stash).clone()
        self.strength, *weights = (float(x) for x in state["standing"])
        self.weights = tuple(weights)
