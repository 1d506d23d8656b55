"""The plain alternatives: the base model, one adapter alone, fine-tuning without pruning, pruning at a given ratio."""

from __future__ import annotations

from dataclasses import replace

from ..adapters.bank import AdapterBank
from ..adapters.peft_load import AdapterFactors
from ..config import MergeConfig
from ..training.setup import Setup
from .method import Method, MethodContext, MethodResult, register
from .recommended import continued_source, with_recommended

# One adapter by itself: its own product, scaling folded in.
ALONE = MergeConfig(rule="sum_deltas")
PAPER = "https://arxiv.org/abs/2601.06702"
LORA = "https://arxiv.org/abs/2106.09685"
SOUPS = "https://arxiv.org/abs/2203.05482"
MIYANO = "https://arxiv.org/abs/2505.24174"


def alone(setup: Setup, adapter: AdapterFactors) -> AdapterBank:
    """Return one adapter used by itself, on the model's device."""
    return AdapterBank([adapter], ALONE).to(setup.base.device)


def _zero_shot(_context: MethodContext) -> MethodResult:
    return MethodResult(None)


def _one(context: MethodContext) -> MethodResult:
    return MethodResult(alone(context.setup, context.adapters[0]))


def _sequential(context: MethodContext) -> MethodResult:
    return MethodResult(alone(context.setup, continued_source(context)))


def _average(context: MethodContext) -> MethodResult:
    setup = replace(context.setup, config=with_recommended(context.config))
    return MethodResult(setup.bank([continued_source(context), *context.adapters[1:]]))


def _merged(context: MethodContext) -> MethodResult:
    return MethodResult(context.bench.finalize("rival_merged", context.adapters, 0.0).bank, 0.0)


def _adaptive(context: MethodContext) -> MethodResult:
    """Merge, then select by activation importance again after every update."""
    config = context.config
    changed = config.model_copy(
        update={
            "prune": config.prune.model_copy(update={"importance": "activation"}),
            "finalize": config.finalize.model_copy(update={"mask": "dynamic"}),
        }
    )
    ratio = config.compare.ratio
    final = context.bench.finalize("adaptive", context.adapters, ratio, config=changed)
    return MethodResult(final.bank, ratio)


register(
    Method("zero_shot", "zero shot", "W", LORA, (), "none", _zero_shot),
    Method("source", "source adapter only", "W + s B_1 A_1", LORA, (), "source", _one),
    Method("target", "target adapter only", "W + s B_2 A_2", LORA, (), "target", _one),
    Method(
        "sequential", "target fine-tuned from source", "the source adapter, trained on with `train_target`", LORA,
        ("train", "dev"), "source", _sequential, runs=True,
    ),
    Method(
        "average", "target and sequential averaged", "mean of the two updates, nothing trained after it", SOUPS,
        ("train", "dev"), "all", _average, runs=True,
    ),
    Method(
        "merged", "merged, not pruned, fine-tuned", "final run at p = 0", f"{PAPER}, section 3",
        ("train", "dev"), "all", _merged, runs=True,
    ),
    Method(
        "adaptive", "adaptive merge with pruning", "final run at `compare.ratio`; activation importance, "
        "selected again after every update", MIYANO, ("train", "dev", "micro_dev"), "all", _adaptive, runs=True,
    ),
)  # fmt: skip
