"""Measure one workload: the run's own stages, their pieces alone, generation, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...config import Config, TrainingConfig, to_dict
from ...data import Encoded
from ...errors import first_line
from ...probing.memory import parameters_and_layers
from ...training import Outcome
from ...training.way import planned_way
from ..deployment import PeakMemory
from ..footprint import Judged, Trained, judging_pass, largest, peak_bytes, training_pass
from ..search import SearchResult
from .clock import Timing, measure_ceilings
from .counting import Counter, Work
from .pieces import (
    FINAL,
    Bench,
    generation_seconds,
    opened,
    overhead_seconds,
    probing_seconds,
    selection_seconds,
)
from .sizes import QUICK_EPOCHS, Sizes, sizes_of, updates_of
from .stages import StageTimes, clocked_final, clocked_search
from .workloads import TokenSetup, Workload, mean_tokens, random_adapters, setup_of

Say = Callable[[str], None]


class Subject:
    """A workload's model on the device, with random adapters and what was measured of the machine."""

    def __init__(self, workload: Workload, config: Config) -> None:
        self.workload = workload
        model = workload.model(config)
        self.setup = setup_of(workload, config, model)
        self.device = self.setup.base.device
        self.adapters = random_adapters(model, workload.adapters, config.lora)
        factors = [factor for adapter in self.adapters for factor in adapter.modules.values()]
        self.trainable = sum(factor.A.numel() + factor.B.numel() for factor in factors)
        self.counter = Counter(model, self.trainable)
        self.ceilings = measure_ceilings(workload.matmul, model.dtype, self.device)
        self.dtype = str(model.dtype).removeprefix("torch.")

    def under(self, config: Config) -> TokenSetup:
        """Return the same model and examples under other settings."""
        return replace(self.setup, config=config)


@dataclass(frozen=True)
class _Stages:
    """The two stages as they ran."""

    found: SearchResult
    final: Outcome
    searching: StageTimes
    finishing: StageTimes


def measure(subject: Subject, *, repeats: int, quick: bool, say: Say) -> dict[str, Any]:
    """Return the times of a workload's pieces and of the whole run, their floors and the peak memory.

    With `quick`, the stages run for a few epochs and the whole run is extrapolated, and said to be so.
    """
    setup, config, peaks = subject.setup, subject.setup.config, _Peaks(subject.device)
    sizes, name = sizes_of(config, len(setup.items("train"))), subject.workload.name
    say(f"{name}: search")
    found, searching = clocked_search(
        setup, subject.adapters, QUICK_EPOCHS["search"] if quick else config.search.epochs
    )
    peaks.take("search")
    say(f"{name}: final run")
    epochs = QUICK_EPOCHS["finalize"] if quick else config.finalize.epochs
    final, finishing = clocked_final(setup, subject.adapters, FINAL, epochs)
    peaks.take("finalize")
    say(f"{name}: masks, policy, commit, probing, generation")
    with opened(subject.workload, setup) as bench:
        alone = overhead_seconds(bench, sizes.rounds)
        alone["selection of an update"] = selection_seconds(bench, max(repeats, 5))
        alone["probing alone"] = probing_seconds(bench, repeats, config.controller.candidates)
        peaks.take("pieces")
        answers = _generation(subject, bench, repeats)
    peaks.take("generation")
    stages = _Stages(found, final.outcome, searching, finishing)
    timings = {"training step": searching.step(), "round": searching.round(), "final update": finishing.step(), **alone}
    return {
        **_described(subject),
        "pieces": {piece: timing.to_dict() for piece, timing in timings.items()},
        "roofline": _roofline(subject, timings, answers),
        "run": _whole(subject, sizes, stages, timings, quick),
        "counted": _counted(stages),
        "generation": answers,
        "peak_memory": peaks.found,
        "peak_memory_estimate_bytes": _estimate(subject),
    }


class _Peaks:
    """Peak memory of one part after the other."""

    def __init__(self, device: torch.device) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._device, self._memory = device, PeakMemory(device)

    def take(self, name: str) -> None:
        """Note the peak since the last part, and begin anew."""
        reserved = torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None
        memory = self._memory
        self.found[name] = {
            "bytes": memory.peak(), "reserved_bytes": reserved, "before_bytes": memory.before, "kind": memory.kind,
        }  # fmt: skip
        self._memory = PeakMemory(self._device)


def _estimate(subject: Subject) -> int:
    """Return what `run --dry-run` estimates for the peak of these two stages."""
    setup, config, model = subject.setup, subject.setup.config, subject.setup.base.model
    parameters, _ = parameters_and_layers(model)
    probed = Judged(setup.items("micro_dev"), config.search.eval_batch_size, 1 + config.controller.candidates)
    return peak_bytes(
        config, model.config, parameters=parameters, trainable=subject.trainable,
        training=largest(training_pass(config, _trained(subject, part)) for part in (config.search, config.finalize)),
        forward=judging_pass(config, model.config, parameters, probed),
    )  # fmt: skip


def _trained(subject: Subject, training: TrainingConfig) -> Trained:
    """Return a stage's training, whose adapters are on attention alone."""
    setup = subject.setup
    speed, items, on_gpu = setup.config.speed, setup.items("train"), setup.base.device.type == "cuda"
    way = planned_way(setup.base.model, (), items, speed=speed, training=training, on_gpu=on_gpu)
    return Trained(training, items, way.padded)


def _described(subject: Subject) -> dict[str, Any]:
    setup = subject.setup
    return {
        "sizes": subject.workload.to_dict(),
        "config": to_dict(setup.config),
        "dtype": subject.dtype,
        "body_parameters": subject.counter.body,
        "trainable": subject.trainable,
        "ceilings": {"flops_per_s": subject.ceilings.flops, "bytes_per_s": subject.ceilings.bytes},
        "mean_tokens": {name: mean_tokens(setup.items(name)) for name in ("train", "micro_dev")},
    }


def _whole(subject: Subject, sizes: Sizes, stages: _Stages, timings: dict[str, Timing], quick: bool) -> dict[str, Any]:
    """Return the seconds of the whole run, as timed or added up, its floor, and the share beside model passes."""
    searching, finishing = stages.searching, stages.finishing
    warm_up = searching.warm_up() + finishing.warm_up()
    opening = searching.opening + finishing.opening
    counts = {"training step": sizes.steps, "round": sizes.rounds, "final update": sizes.updates}
    added = opening + warm_up + sum(count * timings[piece].mean for piece, count in counts.items())
    timed = searching.seconds + finishing.seconds
    seconds = added if quick else timed
    beside = sizes.rounds * timings["round without probing"].mean
    beside += sizes.updates * timings["selection of an update"].mean
    floor = _floor(subject, sizes)
    return {
        "steps": sizes.steps, "rounds": sizes.rounds, "updates": sizes.updates, "extrapolated": quick,
        "seconds": seconds, "floor_s": floor, "ratio": seconds / floor, "added_up_s": added, "timed_s": timed,
        "search_s": searching.seconds, "finalize_s": finishing.seconds, "opening_s": searching.opening,
        "compile_capture_warm_up_s": warm_up, "masks_policy_commit_s": beside,
        "masks_policy_commit_share": beside / seconds,
    }  # fmt: skip


def _floor(subject: Subject, sizes: Sizes) -> float:
    """Return the seconds of the run's training, rounds of 1 + C evaluations and final run at the matrix rate."""
    setup, config = subject.setup, subject.setup.config
    items = setup.items("train")
    train = subject.counter.training(items).body_flops
    probed = subject.counter.forward(setup.items("micro_dev"), 1 + config.controller.candidates).body_flops
    epochs = sizes.steps / updates_of(config.search, len(items)) + config.finalize.epochs
    flops = epochs * train + sizes.rounds * probed
    return flops / subject.ceilings.flops


def _counted(stages: _Stages) -> dict[str, Any]:
    """Return what the stages did, in their own accounts (the opening look included)."""
    found = stages.found
    return {
        "evaluations": found.evaluations, "rounds": found.rounds, "probe_tokens": found.probe_tokens,
        "search_trained_tokens": found.outcome.trained_tokens, "final_trained_tokens": stages.final.trained_tokens,
    }  # fmt: skip


def _roofline(subject: Subject, timings: dict[str, Timing], answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table of where time goes: per piece its work, the seconds it needs at least, and those it took.

    Steps and updates are compared by their means, since each holds other examples.
    """
    setup, counter = subject.setup, subject.counter
    train, config = setup.items("train"), setup.config
    steps, updates = (updates_of(training, len(train)) for training in (config.search, config.finalize))
    probed = counter.forward(setup.items("micro_dev"), 1 + config.controller.candidates)
    rows = {
        "training step": (_mean(counter, train, steps), timings["training step"].mean),
        "round": (probed, timings["round"].median),
        "final update": (_mean(counter, train, updates), timings["final update"].mean),
    }
    if "median_s" in answers:
        rows["generation of a batch"] = counter.generation(subject.workload), float(answers["median_s"])
    return [{"piece": name, **work.row(subject.ceilings, seconds)} for name, (work, seconds) in rows.items()]


def _mean(counter: Counter, items: Sequence[Encoded], updates: int) -> Work:
    """Return the work of the mean update of an epoch; weights are read in each."""
    whole = counter.training(items)
    return Work(whole.body_flops / updates, whole.flops / updates, whole.bytes)


def _generation(subject: Subject, bench: Bench, repeats: int) -> dict[str, Any]:
    """Time generation as configured, without adapters, and by transformers' own loop, and compare the tokens.

    Where a batch does not fit into memory, that is all there is to say.
    """
    try:
        return _generated(subject, bench, repeats)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": first_line(error)}


def _generated(subject: Subject, bench: Bench, repeats: int) -> dict[str, Any]:
    size, static = subject.workload, subject.setup.config.speed.static_cache
    ours = generation_seconds(bench, repeats, static=static)
    bare = generation_seconds(bench, 1, static=static, adapted=False)
    plain = generation_seconds(bench, 1, static=False)
    per = size.generated * size.new_tokens
    rows = list(zip(ours.ids, plain.ids, strict=True))
    return {
        **ours.timing.to_dict(), "per_new_token_and_example_s": ours.timing.median / per,
        "with_first_call_s": sum(ours.timing.warm_up) / per,
        "without_adapters_s": bare.timing.median / per, "transformers_loop_s": plain.timing.median / per,
        "agreeing_tokens": statistics.fmean(_agreement(*pair) for pair in rows), "note": ours.note,
    }  # fmt: skip


def _agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two answers share before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
