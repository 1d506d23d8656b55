"""Is a controller needed at all? Ratio, strength or both by micro-dev loss right after the merge, then one final run.

A candidate is a ratio and a strength of the merged update. Forward passes only, before any training; the batch of a
pass is shared by the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..adapters.inject import Injection
from ..adapters.point import MergePoint
from ..rng import numpy_generator
from ..training import MaskSelector
from .method import Method, MethodContext, MethodResult, register

RATIOS = tuple(step / 20 for step in range(20))  # 0, 0.05, ..., 0.95
STRENGTHS = tuple(step / 10 for step in range(1, 21))  # 0.1, 0.2, ..., 2.0
COARSE_RATIOS = tuple(step / 10 for step in range(10))  # 0, 0.1, ..., 0.9
COARSE_STRENGTHS = tuple(step / 5 for step in range(1, 11))  # 0.2, 0.4, ..., 2.0
_AT_ONCE = 20  # candidates whose values are held together
_RESAMPLES = 1000
OURS = "docs/comparison.md"


def probe(context: MethodContext, candidates: Sequence[MergePoint]) -> tuple[Tensor, int]:
    """Return micro-dev losses (C, m) of the candidates right after the merge, and the tokens that went forward."""
    setup = context.setup
    bank = setup.bank(context.adapters)
    dense = bank.dense()
    with Injection(setup.base.model, bank.modules) as injection:
        evaluator = setup.evaluator(
            setup.attach(injection, bank), "micro_dev", batch_size=setup.config.search.eval_batch_size
        )
        ranking = MaskSelector(bank, injection, setup.config.prune, evaluator).ranking()
        losses = []
        for start in range(0, len(candidates), _AT_ONCE):
            some = candidates[start : start + _AT_ONCE]
            rows = [torch.where(ranking.kept(point.ratio), dense, torch.zeros_like(dense)) for point in some]
            losses.append(evaluator.flat_losses(torch.stack(rows), some))
    return torch.cat(losses), evaluator.token_passes


def _interval(losses: Tensor, candidates: Sequence[MergePoint], seed: int) -> tuple[float, float]:
    """Return the 90 % interval of the best ratio over resampled micro-dev examples."""
    table = losses.numpy()
    drawn = numpy_generator(seed, "probe").integers(0, table.shape[1], size=(_RESAMPLES, table.shape[1]))
    ratios = np.array([candidate.ratio for candidate in candidates])
    best = ratios[table[:, drawn].mean(axis=2).argmin(axis=0)]
    low, high = np.quantile(best, [0.05, 0.95])
    return float(low), float(high)


def _by_probe(
    context: MethodContext, *, name: str, ratios: Sequence[float], strengths: Sequence[float]
) -> MethodResult:
    candidates = [MergePoint(ratio, strength) for ratio in ratios for strength in strengths]
    losses, tokens = probe(context, candidates)
    best = candidates[int(losses.mean(dim=1).argmin())]
    final = context.bench.finalize(name, context.adapters, best)
    interval = _interval(losses, candidates, context.config.seed) if len(ratios) > 1 else None
    means = losses.mean(dim=1).tolist()
    probed = [[point.ratio, point.strength, mean] for point, mean in zip(candidates, means, strict=True)]
    return MethodResult(final.bank, best.ratio, interval, tokens, {"strength": best.strength, "probed": probed})


def _method(name: str, title: str, formula: str, ratios: Sequence[float], strengths: Sequence[float]) -> Method:
    make = partial(_by_probe, name=name, ratios=ratios, strengths=strengths)
    return Method(
        name, title, formula, OURS, ("train", "dev", "micro_dev"), "all", make, runs=True, prunes=len(ratios) > 1
    )


register(
    _method("ratio_by_probe", "ratio by probe", "best of 20 ratios on micro-dev, then a final run", RATIOS, (1.0,)),
    _method(
        "strength_by_probe", "strength by probe", "best of 20 strengths on micro-dev, no pruning", (0.0,), STRENGTHS
    ),
    _method(
        "both_by_probe", "ratio and strength by probe", "best of 10 x 10 on micro-dev, then a final run",
        COARSE_RATIOS, COARSE_STRENGTHS,
    ),
)  # fmt: skip
