"""The paper's grid: eight whole final runs, p = 0.1 to 0.8, the best dev loss decides."""

from __future__ import annotations

from functools import partial

from ..adapters.bank import AdapterBank
from ..errors import DataError
from .method import FinalRun, Method, MethodContext, MethodResult, register

PAPER = "https://arxiv.org/abs/2601.06702"
RATIOS = tuple(step / 10 for step in range(1, 9))


def best_dev(final: FinalRun) -> float:
    """Return the dev loss of a run's best epoch; raises `DataError` when it had no dev data."""
    if not final.outcome.dev_losses:
        raise DataError("data.target.dev: no examples, and this method compares runs by dev loss. Give the file.")
    return min(final.outcome.dev_losses)


def _run(context: MethodContext, ratio: float) -> FinalRun:
    return context.bench.finalize(f"grid_{ratio:.1f}", context.adapters, ratio)


def _bank(context: MethodContext, ratio: float) -> AdapterBank:
    return _run(context, ratio).bank


def _grid(context: MethodContext) -> MethodResult:
    losses = {ratio: best_dev(_run(context, ratio)) for ratio in RATIOS}
    chosen = min(RATIOS, key=lambda ratio: losses[ratio])
    return MethodResult(
        _bank(context, chosen),
        chosen,
        details={"dev_losses": {f"{ratio:.1f}": loss for ratio, loss in losses.items()}},
        alternatives={f"p={ratio:.1f}": partial(_bank, context, ratio) for ratio in RATIOS},
    )


register(
    Method(
        "grid", "grid of 8", "eight final runs at p = 0.1, ..., 0.8; the best dev loss decides", f"{PAPER}, section 4",
        ("train", "dev"), "all", _grid, runs=True, prunes=True,
    )
)  # fmt: skip
