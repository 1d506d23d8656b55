"""Pieces of a run alone, each made of the objects that the run itself makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ...adapters.bank import AdapterBank
from ...adapters.inject import ChannelNorms, Injection
from ...adapters.point import MergePoint
from ...config import ControllerConfig, TrainingConfig
from ...controller import Controller
from ...controller.session import RatioSearch
from ...data import Encoded
from ...probing import Attached, Evaluator
from ...training import FixedRatio, MaskSelector, TrainingLoop, commit_mask
from ..generation import continuation, generating, greedy_settings
from ..search import search_axes
from .clock import Marks, Timing, in_turn, now, settle, timed
from .stages import ClockedIO, stage_times
from .workloads import TokenSetup, Workload, random_adapters

RATIOS = (0.2, 0.4, 0.6, 0.8, 0.1, 0.3, 0.5, 0.7)
FINAL = MergePoint(0.5)


@dataclass(frozen=True)
class Bench:
    """A workload's model with random adapters attached, and a selector that has its statistics."""

    workload: Workload
    setup: TokenSetup
    attached: Attached
    selector: MaskSelector
    norms: Mapping[str, Tensor]

    @property
    def bank(self) -> AdapterBank:
        """Return the adapters."""
        return self.attached.bank

    @property
    def device(self) -> torch.device:
        """Return where the bank lies."""
        return self.bank.values.device

    def evaluator(self, items: Sequence[Encoded] | None = None, batch_size: int | None = None) -> Evaluator:
        """Return an evaluator of micro-dev, or of other examples."""
        width = batch_size or self.setup.config.search.eval_batch_size
        return Evaluator(self.attached, items or self.setup.items("micro_dev"), batch_size=width)

    def feed(self) -> None:
        """Give the selector channel norms as training passes leave them, so that no ranking makes a pass of its own."""
        norms = self.selector.statistics
        norms.reset()
        for module, squares in self.norms.items():
            norms.add(module, squares.sqrt()[None, None], torch.ones(1, 1, device=squares.device))


@contextmanager
def opened(workload: Workload, setup: TokenSetup, adapters: int | None = None) -> Iterator[Bench]:
    """Attach random adapters to the model for a while."""
    model: Any = setup.base.model
    settle(setup.base.device)
    count = workload.adapters if adapters is None else adapters
    bank = setup.bank(random_adapters(model, count, setup.config.lora))
    with Injection(model, bank.modules) as injection:
        attached = setup.attach(injection, bank)
        probe = setup.evaluator(attached, "micro_dev", batch_size=setup.config.search.eval_batch_size)
        selector = MaskSelector(bank, injection, setup.config.prune, probe)
        norms = ChannelNorms()
        if setup.config.prune.importance == "activation":
            probe.losses(norms=norms)
        made = Bench(workload, setup, attached, selector, dict(norms.squares))
        made.feed()
        selector.ranking()  # the first one makes a pass of its own
        yield made


def probing_seconds(bench: Bench, repeats: int, candidates: int, **evaluator: Any) -> Timing:
    """Time the losses of the committed state and of so many candidates on micro-dev, as a round asks for them."""
    bench.feed()
    probe, flat, points = bench.evaluator(**evaluator), *_candidates(bench, candidates)
    return timed(lambda: probe.flat_losses(flat, points), repeats, bench.device)


def probed_ratios(count: int) -> list[float]:
    """Return the ratios of so many candidates: RATIOS, over and over."""
    return [RATIOS[i % len(RATIOS)] for i in range(count)]


def _candidates(bench: Bench, count: int) -> tuple[Tensor, list[MergePoint]]:
    ranking = bench.selector.ranking()
    points = [MergePoint(ratio, strength=0.9) for ratio in probed_ratios(count)]
    masks = [bench.bank.kept, *(bench.selector.kept(ranking, point) for point in points)]
    dense = bench.bank.dense()
    flat = torch.stack([torch.where(mask, dense, torch.zeros_like(dense)) for mask in masks])
    return flat, [bench.bank.standing(0.0), *points]


class _Instant(Evaluator):
    """An evaluator that knows every loss already, so that what is left of a round is masks, policy and commit."""

    def flat_losses(
        self, flat: Float[Tensor, "c n"], points: Sequence[MergePoint] | None = None
    ) -> Float64[Tensor, "c m"]:
        """Return losses that grow from candidate to candidate and differ between examples."""
        rows = torch.linspace(0.0, 0.1, len(flat), dtype=torch.float64)[:, None]
        return 2.0 + rows + torch.linspace(0.0, 0.3, self.examples, dtype=torch.float64)


def overhead_seconds(bench: Bench, rounds: int) -> dict[str, Timing]:
    """Time what a round is beside its probing, and its parts: masks of all candidates, commit, policy.

    `round without probing` is the session's own round when probing takes no time, over so many rounds of one search.
    """
    config, bank = bench.setup.config, bench.bank
    session, controller = _session(bench), _controller(bench)
    optimizer = torch.optim.AdamW([bank.values], lr=1e-4)
    session.attach(optimizer)
    session.start()
    interval, steps = config.controller.interval, iter(range(1, rounds + 2))

    def whole() -> None:
        session.after_step(next(steps) * interval, 2.0)

    losses = _Instant(bench.attached, bench.setup.items("micro_dev"))
    numbers = iter(range(1, rounds + 2))

    def policy() -> None:
        proposal = controller.ask(next(numbers))
        assert proposal is not None  # early stopping is off
        found = losses.flat_losses(torch.empty(1 + len(proposal.samples), 0))
        controller.tell(proposal, found[0].numpy(), found[1:].numpy())

    def masks() -> None:
        _candidates(bench, config.controller.candidates)

    bench.feed()
    kept = [bench.selector.kept(bench.selector.ranking(), MergePoint(ratio)) for ratio in (0.4, 0.45)]
    turn = iter(range(rounds + 1))

    def commit() -> None:
        commit_mask(bank, kept[next(turn) % 2], optimizer)

    before = bank.state()
    parts = in_turn([whole, masks, commit, policy], rounds, bench.device, before=bench.feed)
    bank.load_state(before)
    return dict(zip(("round without probing", "masks of a round", "commit", "policy"), parts, strict=True))


def _controller(bench: Bench) -> Controller:
    config, bank = bench.setup.config, bench.bank
    axes = search_axes(config, bank.names, bank.modules)
    return Controller(_every_round(config.controller), config.seed, steps_total=500, axes=axes)


def _every_round(config: ControllerConfig) -> ControllerConfig:
    """Return the settings under which no round is left out."""
    return config.model_copy(update={"early_stop": False, "rounds": None})


def _session(bench: Bench) -> RatioSearch:
    controller, instant = _controller(bench), _Instant(bench.attached, bench.setup.items("micro_dev"))
    config = _every_round(bench.setup.config.controller)
    return RatioSearch(
        bench.bank, bench.selector, instant, controller, config, axes=controller.settings.axes
    )  # fmt: skip


def selection_seconds(bench: Bench, repeats: int) -> Timing:
    """Time the selection of a dynamic mask after an update of the final run."""
    callback = FixedRatio(bench.bank, bench.selector, FINAL, dynamic=True)
    before = bench.bank.state()

    (timing,) = in_turn([lambda: callback.after_step(1, 2.0)], repeats, bench.device, before=bench.feed)
    bench.bank.load_state(before)
    return timing


def step_seconds(bench: Bench, training: TrainingConfig, items: Sequence[Encoded] | None = None) -> Timing:
    """Time the updates of a training with channel norms gathered; those of the first of two epochs warm up."""
    marks = Marks(bench.device)
    loop = TrainingLoop(
        bench.attached, items or bench.setup.items("train"), training.model_copy(update={"epochs": 2}),
        seed=0, selector=bench.selector, plumbing=ClockedIO("training", marks).plumbing(),
    )  # fmt: skip
    start = now(bench.device)
    marks.mark("start")
    loop.run()
    return stage_times(now(bench.device) - start, marks.durations(), 1).step()


@dataclass(frozen=True)
class Generated:
    """Seconds of one batch of answers, their token ids, and why nothing was captured, if so."""

    timing: Timing
    ids: list[list[int]]
    note: str | None


def generation_seconds(bench: Bench, repeats: int, *, static: bool, adapted: bool = True) -> Generated:
    """Time exactly `new_tokens` tokens after each prompt of one batch, prefill included, as `evaluate` does it.

    The first call makes the cache and captures what can be captured; it is shown as warm-up.
    """
    size, model = bench.workload, bench.setup.base.model
    settings, prompts = greedy_settings(size.new_tokens, None), size.prompts()
    factors = {name: (a.detach(), b.detach()) for name, (a, b) in bench.bank.merged().items()} if adapted else {}
    ids: list[list[list[int]]] = []
    with generating(model, settings), bench.attached.injection.active(factors):
        proceed = continuation(model, settings, rows=len(prompts), longest=size.prompt, static=static)
        timing = timed(lambda: ids.append(proceed(prompts)), repeats, bench.device)
    return Generated(timing, ids[-1], getattr(proceed, "note", None))


def lengthened(workload: Workload, factor: float) -> Workload:
    """Return the workload with prompts and answers `factor` times as long."""
    low, high, answer = (max(1, round(factor * n)) for n in (workload.low, workload.high, workload.answer))
    return replace(workload, low=low, high=high, answer=answer)
