"""The controller run: learn the prune ratio while the merged adapters are fine-tuned on the target data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters.inject import Injection
from ..adapters.peft_load import AdapterFactors
from ..controller import Controller, Diagnostic, Estimate
from ..controller.session import RatioSearch
from ..training import MaskSelector, Outcome, TrainingLoop
from ..training.setup import Setup
from .stageio import StageIO


@dataclass(frozen=True)
class SearchResult:
    """What the controller found: the ratio with its interval, what it cost and what to beware of.

    `probe_tokens` went forward only; `evaluations` counts micro-dev evaluations, baselines included.
    """

    p_star: float
    interval: tuple[float, float] | None
    estimate: Estimate
    diagnostics: tuple[Diagnostic, ...]
    rounds: int
    evaluations: int
    probe_tokens: int
    stop_reason: str | None
    outcome: Outcome


def search(setup: Setup, adapters: Sequence[AdapterFactors], io: StageIO) -> SearchResult:
    """Run the controller on the merge of `adapters` and return the learned ratio (algorithm.md, section 4).

    Uses the target's train and micro_dev splits; dev only where `search.patience` asks for it.
    """
    config = setup.config
    bank = setup.bank(adapters)
    with Injection(setup.base.model, bank.modules) as injection:
        attached = setup.attach(injection, bank)
        probe = setup.evaluator(attached, "micro_dev", batch_size=config.search.eval_batch_size)
        dev = None
        if config.search.patience is not None:
            dev = setup.evaluator(attached, "dev", batch_size=config.search.eval_batch_size)
        selector = MaskSelector(bank, injection, config.prune, probe)
        items = setup.items("train")
        updates = -(-len(items) // (config.search.batch_size * config.search.accumulation))
        total = config.search.epochs * updates
        seed = config.seed if config.controller.seed is None else config.controller.seed
        controller = Controller(config.controller, seed, steps_total=total)
        session = RatioSearch(bank, selector, probe, controller, config.controller, io.record_round)
        loop = TrainingLoop(
            attached, items, config.search,
            seed=config.seed, dev=dev, callbacks=[session], selector=selector, plumbing=io.plumbing(),
        )  # fmt: skip
        with io.running(loop, total):
            outcome = loop.run()
    estimate = controller.estimate()
    return SearchResult(
        estimate.p_star, estimate.interval, estimate, tuple(controller.diagnostics()), session.rounds,
        session.evaluations, probe.token_passes, session.stop_reason, outcome,
    )  # fmt: skip
