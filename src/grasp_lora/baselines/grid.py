"""The paper's grid: eight whole final runs, p = 0.1 to 0.8, the best dev loss decides.

`curve` adds the ratios that the grid leaves out, at the grid's learning rate: together they are the true curve of the
final loss over the ratio. It measures and is no rival.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..adapters.bank import AdapterBank
from ..errors import DataError
from .method import FinalRun, Method, MethodContext, MethodResult, register

PAPER = "https://arxiv.org/abs/2601.06702"
RATIOS = tuple(step / 10 for step in range(1, 9))
BEYOND = (0.0, 0.9, 0.95)  # what the grid leaves out of the curve


def best_dev(final: FinalRun) -> float:
    """Return the dev loss of a run's best epoch; raises `DataError` when it had no dev data."""
    if not final.outcome.dev_losses:
        raise DataError("data.target.dev: no examples, and this method compares runs by dev loss. Give the file.")
    return min(final.outcome.dev_losses)


def _run(context: MethodContext, ratio: float) -> FinalRun:
    return context.bench.finalize(f"grid_{ratio:g}", context.adapters, ratio)


def _bank(context: MethodContext, ratio: float) -> AdapterBank:
    return _run(context, ratio).bank


def _grid(context: MethodContext, *, ratios: Sequence[float]) -> MethodResult:
    losses = {ratio: best_dev(_run(context, ratio)) for ratio in ratios}
    chosen = min(ratios, key=lambda ratio: losses[ratio])
    return MethodResult(
        _bank(context, chosen),
        chosen,
        details={"dev_losses": {f"{ratio:g}": loss for ratio, loss in losses.items()}},
        alternatives={f"p={ratio:g}": partial(_bank, context, ratio) for ratio in ratios},
    )


register(
    Method(
        "grid", "grid of 8", "eight final runs at p = 0.1, ..., 0.8; the best dev loss decides", f"{PAPER}, section 4",
        ("train", "dev"), "all", partial(_grid, ratios=RATIOS), runs=True, prunes=True,
    ),
    Method(
        "curve", "the curve beyond the grid", "final runs at p = 0, 0.9 and 0.95 with the learning rate of `grid`; "
        "measures, and is compared only when named", f"{PAPER}, section 4",
        ("train", "dev"), "all", partial(_grid, ratios=BEYOND), runs=True, prunes=True, rate_of="grid",
    ),
)  # fmt: skip
