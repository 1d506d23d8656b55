"""Importance of every entry: what is pruned first (algorithm.md, section 3).

Each rule gives a flat vector of the bank's length from the dense values (pruned entries at their stashed value) times
`c_k`. Rules that need statistics say which, so that the training loop gathers them during passes that happen anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import Importance
from ..errors import ModelError
from .bank import AdapterBank, Slot
from .kernels import kernels_run

# Rows of B A held at once: the product is (d_out, d_in), 64 MiB in float32 for 4096 x 4096 as a whole.
_ROWS = 2048
_EMA = 0.85  # AdaLoRA, arXiv 2303.10512, both averages


@dataclass(frozen=True)
class ImportanceRule:
    """One rule: formula, source and the statistics it needs beside the values."""

    name: Importance
    formula: str
    source: str
    needs: Literal["nothing", "channel norms", "gradients"]


RULES: dict[Importance, ImportanceRule] = {
    "magnitude": ImportanceRule(
        "magnitude",
        "I = |c w| (a common factor s changes no ranking)",
        "arXiv 2601.06702, section 3",
        "nothing",
    ),
    "activation": ImportanceRule(
        "activation", "G = sign(BA) * x; I_A = |B^T G|, I_B = |G A^T|", "arXiv 2505.24174", "channel norms"
    ),
    "sensitivity": ImportanceRule(
        "sensitivity",
        "EMA(|w g|) * EMA(||w g| - EMA(|w g|)|), both 0.85",
        "arXiv 2303.10512, section 3.2",
        "gradients",
    ),
}


def magnitude(bank: AdapterBank) -> Float[Tensor, " n"]:
    """Return `|c_k w|` of every entry, shape (n,).

    The paper's extra factor, the mean norm of the micro-dev input embeddings, is the same for all entries and left out.
    """
    return (bank.dense() * bank.constants()).abs()


def activation_pair(
    a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], x: Float[Tensor, " d_in"]
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Return `(|dS/dA|, |dS/dB|)` of `S = sum_ij |(B A)_ij| x_j` in closed form (arXiv 2505.24174).

    With `G = sign(B A) * x`: `dS/dA = B^T G`, `dS/dB = G A^T`. Rows of `B A` are made in blocks, so that a full
    (d_out, d_in) product never exists, and `x` goes to the small factors, not to the block.
    """
    grad_a, grad_b, weighted = torch.zeros_like(a), torch.empty_like(b), (a * x).T
    for start in range(0, b.shape[0], _ROWS):
        rows = b[start : start + _ROWS]
        signs = (rows @ a).sign_()
        grad_a.addmm_(rows.T, signs)
        torch.mm(signs, weighted, out=grad_b[start : start + _ROWS])
    return (grad_a * x).abs_(), grad_b.abs_()


def check_norms(bank: AdapterBank, norms: Mapping[str, Float[Tensor, " d_in"]]) -> None:
    """Raise `ModelError` for a module without channel norms."""
    for module in bank.modules:
        if module not in norms:
            raise ModelError(
                f"prune.importance: activation has nothing to go by at {module}: no token passed through it. "
                "Use --set prune.importance=magnitude or leave the module out."
            )


def activation(bank: AdapterBank, norms: Mapping[str, Float[Tensor, " d_in"]]) -> Float[Tensor, " n"]:
    """Return the activation importance of every entry, shape (n,), from channel norms `x` per module.

    `c_k` is that of the weights in force. `B A` is adapter k's own product: with the merged product all adapters would
    get the same importance.
    """
    check_norms(bank, norms)
    values = bank.dense()
    out = torch.empty_like(values)
    activation_into(out, bank, pairs_of(bank), values, norms)
    return out


def pairs_of(bank: AdapterBank) -> list[tuple[Slot, Slot]]:
    """Return the A and the B of every module and adapter."""
    return list(zip(bank.slots[::2], bank.slots[1::2], strict=True))


def activation_into(
    out: Float[Tensor, " n"],
    bank: AdapterBank,
    pairs: Iterable[tuple[Slot, Slot]],
    values: Float[Tensor, " n"],
    norms: Mapping[str, Float[Tensor, " d_in"]],
) -> None:
    """Write the activation importance of some pairs of dense values into their places in `out`."""
    for pair in pairs:
        a, b = (bank.constant(slot) * _of(slot, values) for slot in pair)
        found = activation_pair(a, b, norms[pair[0].module].to(values))
        for slot, part in zip(pair, found, strict=True):
            _of(slot, out).copy_(part)


def _of(slot: Slot, flat: Float[Tensor, " n"]) -> Float[Tensor, "rows columns"]:
    return flat[slot.start : slot.start + slot.size].view(slot.shape)


def activation_of(bank: AdapterBank, *, fused: bool) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return what gives a bank's activation importance from channel norms; `fused`: by kernels, where they run."""
    if not fused or bank.values.dtype != torch.float32 or not kernels_run(bank.values.device):
        return partial(activation, bank)
    from .triton_importance import FusedActivation

    return FusedActivation(bank)


class Sensitivity:
    """AdaLoRA's smoothed sensitivity; `observe` after every backward pass, before gradients are masked."""

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        self.mean = torch.zeros_like(bank.stash)
        self.deviation = torch.zeros_like(bank.stash)
        self.observed = 0

    @torch.no_grad()
    def observe(self) -> None:
        """Feed the bank's current gradient; raises ValueError when there is none."""
        gradient = self._bank.values.grad
        if gradient is None:
            raise ValueError("sensitivity needs a gradient; call it after backward")
        product = (self._bank.dense() * gradient).abs()
        self.mean = _EMA * self.mean + (1 - _EMA) * product
        self.deviation = _EMA * self.deviation + (1 - _EMA) * (product - self.mean).abs()
        self.observed += 1

    def scores(self) -> Float[Tensor, " n"]:
        """Return mean times deviation, shape (n,). `c_k` cancels: it scales w and divides the gradient."""
        return self.mean * self.deviation


Scorer = Callable[[], Tensor]
