"""Merges by PEFT's own `add_weighted_adapter`, read back as factors.

`add_weighted_adapter` works on the LoRA layers of a `PeftModel` one by one, so each module is merged in a model of one
linear layer: no copy of the base is needed, and quantized or unusual bases cost nothing more. As published, the result
is used without fine-tuning; the `_tuned` methods fine-tune it as one adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
from torch import nn

from ..adapters.peft_load import AdapterFactors, Factor
from ..errors import AdapterError
from ..rng import forked_global_state
from .method import Method, MethodContext, MethodResult, register
from .simple import ALONE, alone

_MERGED = "merged"


@dataclass(frozen=True)
class Combination:
    """One `combination_type` of PEFT with its density (share of entries kept), None where it has none."""

    name: str
    title: str
    formula: str
    source: str
    density: float | None = None
    equal_ranks: bool = True


COMBINATIONS = (
    Combination(
        "cat", "PEFT cat", "dW = sum_k w_k s_k B_k A_k", "https://huggingface.co/docs/peft/developer_guides/model_merging",
        equal_ranks=False,
    ),
    Combination(
        "svd", "PEFT svd", "best rank-r approximation of sum_k w_k s_k B_k A_k",
        "https://huggingface.co/docs/peft/developer_guides/lora", equal_ranks=False,
    ),
    Combination(
        "ties", "TIES", "trim A and B to the largest 20 %, elect signs, mean of the agreeing",
        "https://arxiv.org/abs/2306.01708", density=0.2,
    ),
    Combination(
        "dare_linear", "DARE, linear", "drop half of A and B at random, double the rest, sum",
        "https://arxiv.org/abs/2311.03099", density=0.5,
    ),
    Combination(
        "dare_ties", "DARE, TIES", "drop half of A and B at random, double the rest, elect signs",
        "https://arxiv.org/abs/2311.03099", density=0.5,
    ),
    Combination(
        "magnitude_prune", "PEFT magnitude prune", "keep the largest half of A and B, sum",
        "https://huggingface.co/docs/peft/developer_guides/model_merging", density=0.5,
    ),
)  # fmt: skip


class _OneLayer(nn.Module):
    """A model that is one linear layer."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_in, d_out, bias=False)


def require_equal_ranks(method: str, adapters: Sequence[AdapterFactors]) -> None:
    """Raise `AdapterError` when `method` adds factors and the adapters' ranks differ at a module."""
    for module in sorted({name for adapter in adapters for name in adapter.modules}):
        ranks = {a.name: int(a.modules[module].A.shape[0]) for a in adapters if module in a.modules}
        if len(set(ranks.values())) > 1:
            shown = ", ".join(f"{name}: r={rank}" for name, rank in ranks.items())
            raise AdapterError(
                f"{method} adds the factors of adapters and needs equal ranks, but at {module} they differ ({shown}). "
                "Leave it out of compare.methods, or use svd or cat."
            )


def combine(
    adapters: Sequence[AdapterFactors], combination: Combination, weights: Sequence[float], seed: int,
    device: torch.device | str = "cpu",
) -> AdapterFactors:  # fmt: skip
    """Return the adapter that PEFT makes of `adapters`; random drops come from a stream of `seed` and the module.

    Raises `AdapterError` where the combination needs equal ranks and they differ.
    """
    if combination.equal_ranks:
        require_equal_ranks(combination.name, adapters)
    digest = hashlib.sha256()
    modules: dict[str, Factor] = {}
    for module in sorted({name for adapter in adapters for name in adapter.modules}):
        found = [(a.modules[module], w) for a, w in zip(adapters, weights, strict=True) if module in a.modules]
        with forked_global_state(seed, "peft", combination.name, module):
            modules[module] = _combine_module(found, combination, device)
        for tensor in (modules[module].A, modules[module].B):
            digest.update(tensor.contiguous().numpy().tobytes())
    return AdapterFactors(combination.name, "merged by PEFT", digest.hexdigest(), modules)


@torch.no_grad()
def _combine_module(
    found: Sequence[tuple[Factor, float]], combination: Combination, device: torch.device | str
) -> Factor:
    first = found[0][0]
    model: Any = None
    names = [f"adapter{index}" for index in range(len(found))]
    for name, (factor, _) in zip(names, found, strict=True):
        rank = int(factor.A.shape[0])
        alpha: Any = factor.scaling * rank  # PEFT annotates an int and divides what it gets by the rank
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["linear"])
        if model is None:
            one = _OneLayer(int(first.A.shape[1]), int(first.B.shape[0])).to(device)
            model = peft.get_peft_model(one, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        layer = model.base_model.model.linear
        layer.lora_A[name].weight.copy_(factor.A)
        layer.lora_B[name].weight.copy_(factor.B)
    settings: dict[str, Any] = {} if combination.density is None else {"density": combination.density}
    if combination.name == "svd":
        settings["svd_full_matrices"] = False  # the columns beyond the rank are cut anyway
    model.add_weighted_adapter(
        names, [weight for _, weight in found], _MERGED, combination_type=combination.name, **settings
    )
    a, b = layer.lora_A[_MERGED].weight, layer.lora_B[_MERGED].weight
    return Factor(a.detach().float().cpu(), b.detach().float().cpu(), float(layer.scaling[_MERGED]))


def _combined(context: MethodContext, combination: Combination) -> AdapterFactors:
    weights = context.config.merge.weights or (1.0,) * len(context.adapters)
    return combine(context.adapters, combination, weights, context.config.seed, context.setup.base.device)


def _as_published(context: MethodContext, *, combination: Combination) -> MethodResult:
    return MethodResult(alone(context.setup, _combined(context, combination)))


def _tuned(context: MethodContext, *, combination: Combination) -> MethodResult:
    config = context.config.model_copy(update={"merge": ALONE})
    merged = _combined(context, combination)
    return MethodResult(context.bench.finalize(f"tuned_{combination.name}", [merged], 0.0, config=config).bank)


for _each in COMBINATIONS:
    register(
        Method(
            _each.name, _each.title, _each.formula, _each.source, (), "all", partial(_as_published, combination=_each)
        ),
        Method(
            f"{_each.name}_tuned", f"{_each.title}, fine-tuned", f"{_each.formula}; then a final run", _each.source,
            ("train", "dev"), "all", partial(_tuned, combination=_each), runs=True,
        ),
    )  # fmt: skip
