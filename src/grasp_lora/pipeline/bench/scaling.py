"""How the cost of probing and of a training step grows with their sizes, one size at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...data import Encoded
from .clock import Timing
from .measure import Subject
from .pieces import lengthened, opened, probing_seconds, step_seconds
from .workloads import TokenSetup

CANDIDATES = (1, 3, 7)
EXAMPLES = (4, 8, 16)
WIDTHS = (1, 4, 16)
ADAPTERS = (1, 2, 4)
LENGTHS = (0.5, 1.0, 2.0)
BATCHES = (1, 2, 4, 8)
STEPS = 8  # examples of a training that is timed twice over, the second time

Row = tuple[str, float, str, int, Timing]


def scaling(subject: Subject, repeats: int) -> list[dict[str, Any]]:
    """Return rows of what changed, its value, the piece, its seconds and the tokens that went through it."""
    return [
        {
            "what": what, "value": value, "piece": piece, "tokens": tokens,
            "median_s": timing.median, "min_s": min(timing.repeats), "max_s": max(timing.repeats),
        }
        for what, value, piece, tokens, timing in (*_probing(subject, repeats), *_training(subject))
    ]  # fmt: skip


def _tokens(items: Sequence[Encoded]) -> int:
    return sum(len(item.input_ids) for item in items)


def _probing(subject: Subject, repeats: int) -> Iterator[Row]:
    usual, items = subject.setup.config.controller.candidates, subject.setup.items("micro_dev")

    def row(
        what: str, value: float, candidates: int = usual, *,
        setup: TokenSetup = subject.setup, adapters: int | None = None, **evaluator: Any,
    ) -> Row:  # fmt: skip
        with opened(subject.workload, setup, adapters) as bench:
            timing = probing_seconds(bench, repeats, candidates, **evaluator)
        probed = evaluator.get("items") or setup.items("micro_dev")
        return what, value, "probing", (1 + candidates) * _tokens(probed), timing

    for count in CANDIDATES:
        yield row("candidates", count, count)
    for count in EXAMPLES:
        yield row("micro-dev examples", count, items=items[:count])
    for width in WIDTHS:
        yield row("examples in a pass", width, batch_size=width)
    for count in ADAPTERS:
        yield row("adapters", count, adapters=count)
    for factor in LENGTHS:
        yield row("length", factor, setup=_lengthened(subject, factor))


def _training(subject: Subject) -> Iterator[Row]:
    def row(
        what: str, value: float, batch: int = 1, *, setup: TokenSetup = subject.setup, adapters: int | None = None
    ) -> Row:
        few = replace(setup, splits={**setup.splits, "train": setup.items("train")[:STEPS]})
        settings = setup.config.search.model_copy(update={"batch_size": batch, "accumulation": 1})
        with opened(subject.workload, few, adapters) as bench:
            timing = step_seconds(bench, settings)
        return what, value, "training step", _tokens(few.items("train")) * batch // STEPS, timing

    for batch in BATCHES:
        yield row("batch", batch, batch)
    for count in ADAPTERS:
        yield row("adapters", count, adapters=count)
    for factor in LENGTHS:
        yield row("length", factor, setup=_lengthened(subject, factor))


def _lengthened(subject: Subject, factor: float) -> TokenSetup:
    return replace(subject.setup, splits=lengthened(subject.workload, factor).examples())
