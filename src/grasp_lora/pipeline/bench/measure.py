"""Measure one workload: the run's own stages, their pieces alone, generation, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...config import Config, to_dict
from ...data import Encoded
from ..deployment import PeakMemory
from .clock import Timing, measure_ceilings
from .counting import Counter, Work
from .pieces import FINAL, generation_seconds, opened, overhead_seconds, selection_seconds
from .stages import StageTimes, clocked_final, clocked_search
from .workloads import TokenSetup, Workload, mean_tokens, random_adapters, setup_of

# Epochs that are run in place of all of them, the first of which warms up.
QUICK_EPOCHS = 2
Say = Callable[[str], None]


class Subject:
    """A workload's model on the device, with what was measured of the machine."""

    def __init__(self, workload: Workload, config: Config) -> None:
        self.workload = workload
        model = workload.model(config)
        self.setup = setup_of(workload, config, model)
        self.device = self.setup.base.device
        self.adapters = random_adapters(model, workload.adapters, config.lora)
        trainable = sum(f.A.numel() + f.B.numel() for adapter in self.adapters for f in adapter.modules.values())
        self.counter = Counter(model, trainable)
        self.trainable = trainable
        self.ceilings = measure_ceilings(workload.matmul, model.dtype, self.device)
        self.dtype = str(model.dtype).removeprefix("torch.")

    def under(self, config: Config) -> TokenSetup:
        """Return the same model and examples under other settings."""
        return TokenSetup(config, self.setup.base, splits=self.setup.splits)


def measure(subject: Subject, *, repeats: int, quick: bool, say: Say) -> dict[str, Any]:
    """Return the times of a workload's pieces and of the whole run, their floors and the peak memory.

    With `quick`, the stages run for two epochs and the whole run is extrapolated, and said to be so.
    """
    setup, config, workload = subject.setup, subject.setup.config, subject.workload
    say(f"{workload.name}: search")
    memory = PeakMemory(subject.device)
    epochs = QUICK_EPOCHS if quick else config.search.epochs
    found, searching = clocked_search(setup, subject.adapters, epochs)
    peaks = {"search": _peak(memory, subject.device)}
    say(f"{workload.name}: final run")
    memory = PeakMemory(subject.device)
    epochs = QUICK_EPOCHS if quick else config.finalize.epochs
    final, finishing = clocked_final(setup, subject.adapters, FINAL, epochs)
    peaks["finalize"] = _peak(memory, subject.device)
    say(f"{workload.name}: masks, policy, commit; generation")
    memory = PeakMemory(subject.device)
    rounds = config.search.epochs * len(setup.items("train")) // config.controller.interval
    with opened(workload, setup) as bench:
        overheads = overhead_seconds(bench, rounds)
        selection = selection_seconds(bench, max(repeats, 5))
        answers = _generation(subject, bench, repeats)
    peaks["generation"] = _peak(memory, subject.device)
    whole = _whole(config, setup, searching, finishing, quick)
    counted = found.evaluations * mean_tokens(setup.items("micro_dev")) * len(setup.items("micro_dev"))
    beside = rounds * overheads["round"].mean + whole["updates"] * selection.mean
    floors = _floors(subject, whole)
    return {
        "sizes": workload.to_dict(),
        "config": to_dict(config),
        "dtype": subject.dtype,
        "body_parameters": subject.counter.body,
        "trainable": subject.trainable,
        "ceilings": {"flops_per_s": subject.ceilings.flops, "bytes_per_s": subject.ceilings.bytes},
        "mean_tokens": {name: mean_tokens(setup.items(name)) for name in ("train", "micro_dev")},
        "pieces": _pieces(searching, finishing, overheads, selection),
        "roofline": _roofline(subject, searching, finishing, answers),
        "run": whole | floors | {
            "ratio": whole["seconds"] / floors["floor_s"],
            "masks_policy_commit_s": beside, "masks_policy_commit_share": beside / whole["seconds"],
        },
        "counted": {
            "evaluations": found.evaluations, "rounds": found.rounds, "probe_tokens": found.probe_tokens,
            "probe_tokens_expected": counted, "search_trained_tokens": found.outcome.trained_tokens,
            "final_trained_tokens": final.outcome.trained_tokens,
        },
        "generation": answers,
        "peak_memory": peaks,
    }  # fmt: skip


def _peak(memory: PeakMemory, device: torch.device) -> dict[str, Any]:
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return {"bytes": memory.peak(), "reserved_bytes": reserved, "before_bytes": memory.before, "kind": memory.kind}


def _whole(
    config: Config, setup: TokenSetup, searching: StageTimes, finishing: StageTimes, quick: bool
) -> dict[str, Any]:
    """Return the seconds of the whole run: as it was timed, or added up from two epochs of it."""
    count = len(setup.items("train"))
    steps = config.search.epochs * -(-count // (config.search.batch_size * config.search.accumulation))
    updates = config.finalize.epochs * -(-count // (config.finalize.batch_size * config.finalize.accumulation))
    rounds = steps // config.controller.interval
    warm_up = searching.warm_up() + finishing.warm_up()
    added = (
        searching.opening + warm_up
        + steps * searching.step().mean + rounds * searching.round().mean + updates * finishing.step().mean
    )  # fmt: skip
    timed = searching.seconds + finishing.seconds
    return {
        "steps": steps, "rounds": rounds, "updates": updates, "extrapolated": quick,
        "seconds": added if quick else timed, "added_up_s": added, "timed_s": timed,
        "search_s": searching.seconds, "finalize_s": finishing.seconds,
        "opening_s": searching.opening, "compile_capture_warm_up_s": warm_up,
    }  # fmt: skip


def _floors(subject: Subject, whole: dict[str, Any]) -> dict[str, float]:
    """Return the floor of the whole run: its training, its rounds of 1 + C evaluations and its final run."""
    setup, config = subject.setup, subject.setup.config
    train = subject.counter.training(setup.items("train")).body_flops
    probed = subject.counter.forward(setup.items("micro_dev"), 1 + config.controller.candidates).body_flops
    flops = (config.search.epochs + config.finalize.epochs) * train + whole["rounds"] * probed
    return {"floor_s": flops / subject.ceilings.flops}


def _pieces(
    searching: StageTimes, finishing: StageTimes, overheads: dict[str, Timing], selection: Timing
) -> dict[str, Any]:
    pieces = {
        "training step": searching.step(), "round": searching.round(), "final update": finishing.step(),
        "round without probing": overheads["round"], "masks of a round": overheads["masks"],
        "commit": overheads["commit"], "policy": overheads["policy"], "selection of an update": selection,
    }  # fmt: skip
    return {name: timing.to_dict() for name, timing in pieces.items()}


def _roofline(
    subject: Subject, searching: StageTimes, finishing: StageTimes, answers: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the table of where time goes: per piece its work, the seconds it needs at least, and those it took.

    Steps and updates are compared by their means, since each holds other examples.
    """
    setup, counter = subject.setup, subject.counter
    train, config = setup.items("train"), setup.config
    steps = -(-len(train) // (config.search.batch_size * config.search.accumulation))
    updates = -(-len(train) // (config.finalize.batch_size * config.finalize.accumulation))
    probed = counter.forward(setup.items("micro_dev"), 1 + config.controller.candidates)
    rows = {
        "training step": (_mean(counter, train, steps), searching.step().mean),
        "round": (probed, searching.round().median),
        "final update": (_mean(counter, train, updates), finishing.step().mean),
        "generation of a batch": (counter.generation(subject.workload), answers["median_s"]),
    }
    return [{"piece": name, **work.row(subject.ceilings, seconds)} for name, (work, seconds) in rows.items()]


def _mean(counter: Counter, items: Sequence[Encoded], updates: int) -> Work:
    """Return the work of the mean update of an epoch; weights are read in each."""
    whole = counter.training(items)
    return Work(whole.body_flops / updates, whole.flops / updates, whole.bytes)


def _generation(subject: Subject, bench: Any, repeats: int) -> dict[str, Any]:
    """Time generation as configured, and once by transformers' own loop to compare tokens where that is another."""
    size, static = subject.workload, subject.setup.config.speed.static_cache
    ours = generation_seconds(bench, repeats, static=static)
    bare = generation_seconds(bench, 1, static=static, adapted=False)["timing"]
    plain = generation_seconds(bench, 1, static=False)
    pairs = [
        (a, b) for left, right in zip(ours["ids"], plain["ids"], strict=True) for a, b in zip(left, right, strict=True)
    ]
    per = size.generated * size.new_tokens
    timing: Timing = ours["timing"]
    return {
        **timing.to_dict(), "per_new_token_and_example_s": timing.median / per,
        "with_first_call_s": sum(timing.warm_up) / per,
        "without_adapters_s": bare.median / per, "transformers_loop_s": plain["timing"].median / per,
        "same_tokens_share": statistics.fmean(a == b for a, b in pairs), "note": ours["note"],
    }  # fmt: skip
