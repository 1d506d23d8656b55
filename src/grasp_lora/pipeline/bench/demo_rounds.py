"""The demo's rounds: in one pass, in one batched forward per candidate, and one example at a time as released."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ...adapters.bank import AdapterBank
from ...adapters.inject import Injection
from ...adapters.masks import rank
from ...data import Encoded, collate, examples_from_records
from ...data.world import demo_splits
from ...probing import Attached, Evaluator, example_losses
from ...training.setup import Setup
from ..demo import demo_config
from ..models import load_base
from .clock import in_turn
from .pieces import probed_ratios
from .workloads import random_adapters

NAME = "demo"


def measure_rounds(repeats: int, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Time the losses of a baseline and C candidates on the demo's micro-dev examples in three ways, in turn.

    The model, the examples and the shape of the adapters are the demo's; their values are random. `gain` is the ratio
    of medians by the wall clock and `gain_cpu` by the processor's, which counts no time that other programs had;
    `largest_difference` is that of the losses, in nats.
    """
    config = demo_config(sets)
    base, task = load_base(config.model), config.task
    rows = demo_splits(task.name, cast(Literal["en", "ar", "zh"], task.language), config.seed)["micro_dev"]
    examples = examples_from_records(cast(Any, rows), task.name, {}, "demo")
    setup = Setup(config, base, {"micro_dev": examples})
    model: Any = base.model
    bank = setup.bank(random_adapters(model, 2, config.lora))
    ranking = rank(bank.dense().abs(), bank.segments(config.prune.scope))
    masks = [bank.kept, *(ranking.kept(ratio) for ratio in probed_ratios(config.controller.candidates))]
    with Injection(model, bank.modules) as injection:
        attached = setup.attach(injection, bank)
        probe = setup.evaluator(attached, "micro_dev", batch_size=config.search.eval_batch_size)
        items = setup.items("micro_dev")
        calls: dict[str, Callable[[], Tensor]] = {
            "one_pass": lambda: probe.candidate_losses(masks),
            "per_candidate": lambda: per_candidate(bank, probe, masks),
            "per_example": lambda: per_example(attached, items, masks),
        }
        losses = [call() for call in calls.values()]
        timings = in_turn(list(calls.values()), repeats, bank.values.device)
    seconds = dict(zip(calls, timings, strict=True))
    first, others = seconds["one_pass"], ("per_candidate", "per_example")
    used = statistics.median(first.cpu)
    return {
        "workload": NAME,
        "examples": len(items),
        "tokens": sum(len(item.input_ids) for item in items),
        "candidates": len(masks) - 1,
        "seconds": {name: timing.to_dict() for name, timing in seconds.items()},
        "gain": {name: seconds[name].median / first.median for name in others},
        "gain_cpu": {name: statistics.median(seconds[name].cpu) / used for name in others},
        "largest_difference": max(float((other - losses[0]).abs().max()) for other in losses[1:]),
    }


def per_candidate(bank: AdapterBank, probe: Evaluator, masks: Sequence[Tensor]) -> Tensor:
    """Return the losses (C, m) by one batched forward per mask, which is committed and taken back."""
    before, rows = bank.state(), []
    for kept in masks:
        bank.commit(kept)
        rows.append(probe.losses())
        bank.load_state(before)
    return torch.stack(rows)


@torch.no_grad()
def per_example(attached: Attached, items: Sequence[Encoded], masks: Sequence[Tensor]) -> Tensor:
    """Return the losses (C, m) as released: a forward per mask and example, with the logits of all tokens."""
    bank, device = attached.bank, attached.bank.values.device
    before, rows = bank.state(), []
    for kept in masks:
        bank.commit(kept)
        row = []
        for item in items:
            batch = collate([item], attached.pad_id).to(device)
            with attached.injection.active(bank.merged()):
                row.append(example_losses(attached.model, batch, trim=False).double().cpu())
        rows.append(torch.cat(row))
        bank.load_state(before)
    return torch.stack(rows)
