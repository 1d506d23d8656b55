"""Merge rules: several LoRA adapters as one update of a frozen weight (algorithm.md, section 2).

Adapter k has `A_k` of shape (r_k, d_in), `B_k` of shape (d_out, r_k), scaling `s_k` and weight `w_k`. With
`c_k = sqrt(|w_k| s_k)` and a strength `g`:

- `sum_factors` (the paper's rule, and PEFT's `linear`): `dW = g (sum_k c_k B_k) (sum_k sign(w_k) c_k A_k)`. Equal
  ranks; has cross terms `B_i A_j`.
- `sum_deltas`: `dW = g sum_k w_k s_k B_k A_k`. Any ranks, no cross terms; the factors are concatenated.

Either way the result is one pair of factors, so that attaching, probing and exporting know no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..config import MergeRule
from ..errors import AdapterError

Pair: TypeAlias = tuple[Tensor, Tensor]


def constant(weight: float, scaling: float) -> float:
    """Return `c_k = sqrt(|w_k| s_k)`, the factor that stays outside the trainable tensors `A_k` and `B_k`."""
    return math.sqrt(abs(weight) * scaling)


def _sum_factors(scaled: Sequence[Pair]) -> Pair:
    a = sum((pair[0] for pair in scaled[1:]), scaled[0][0])
    b = sum((pair[1] for pair in scaled[1:]), scaled[0][1])
    return a, b


def _sum_deltas(scaled: Sequence[Pair]) -> Pair:
    return torch.cat([pair[0] for pair in scaled], dim=-2), torch.cat([pair[1] for pair in scaled], dim=-1)


@dataclass(frozen=True)
class Rule:
    """One merge rule: `combine` takes the pairs `(sign(w_k) c_k A_k, g c_k B_k)` of one module."""

    name: MergeRule
    formula: str
    source: str
    equal_ranks: bool
    combine: Callable[[Sequence[Pair]], Pair]


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "sum_factors",
            "dW = g (sum_k c_k B_k) (sum_k sign(w_k) c_k A_k)",
            "arXiv 2601.06702, section 3; PEFT add_weighted_adapter(combination_type='linear')",
            True,
            _sum_factors,
        ),
        Rule(
            "sum_deltas",
            "dW = g sum_k w_k s_k B_k A_k",
            "PEFT add_weighted_adapter(combination_type='cat')",
            False,
            _sum_deltas,
        ),
    )
}


def merge_pairs(
    rule: MergeRule,
    pairs: Sequence[Pair],
    constants: Sequence[float | Tensor],
    signs: Sequence[float],
    strength: float | Tensor = 1.0,
) -> Pair:
    """Return the factors `(A, B)` of the merged update of one module, so that `dW = B @ A`.

    `pairs` holds `(A_k, B_k)` of shapes (..., r_k, d_in) and (..., d_out, r_k); leading dimensions (candidates) are
    carried through, and constants and strength may have one value per candidate, shape (C, 1, 1). The result has shapes
    (..., R, d_in) and (..., d_out, R), with R = r for `sum_factors` and R = sum of the r_k for `sum_deltas`.
    """
    terms = zip(constants, signs, pairs, strict=True)
    return RULES[rule].combine([(sign * c * a, strength * c * b) for c, sign, (a, b) in terms])


def check_ranks(rule: MergeRule, module: str, ranks: Sequence[tuple[str, int]]) -> None:
    """Raise `AdapterError` when `rule` needs equal ranks and the adapters of `module` (name, rank) differ."""
    if RULES[rule].equal_ranks and len({rank for _, rank in ranks}) > 1:
        shown = ", ".join(f"{name}: r={rank}" for name, rank in ranks)
        raise AdapterError(
            f"merge.rule: {rule} needs adapters of equal rank, but at {module} they differ ({shown}). "
            "Use --set merge.rule=sum_deltas, which takes any ranks."
        )
