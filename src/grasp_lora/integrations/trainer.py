"""Callbacks for `transformers.Trainer` and its descendants (TRL's `SFTTrainer`): learn a ratio, or hold one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch.distributed as dist
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.point import MergePoint
from ..controller import Controller, Diagnostic
from ..controller.axes import merge_point
from ..controller.session import RatioSearch
from ..data import Encoded, check_micro_dev
from ..errors import ConfigError, RunError
from ..pipeline.finalize import as_point
from ..pipeline.search import search_axes
from ..probing import Evaluator
from ..training import Callback, FixedRatio, MaskSelector
from .merged import MergedModel, SavedState
from .probes import SharedEvaluator, encoded_rows

Rows: TypeAlias = Iterable[Mapping[str, Any]]
# Processes with the same parameters, whole, in each; anything else splits the flat parameter.
_REPLICATED = {"NO", "MULTI_CPU", "MULTI_GPU"}


@dataclass(frozen=True)
class LearnedRatio:
    """What the controller found: the ratio (0 to 1) with its interval, what it cost and what to beware of.

    `best` is the whole point (ratio, and strengths where the policy has them), `p_star` its ratio. `density` is the
    share of entries that the mask of the last commit keeps; `probe_tokens` went forward only; `evaluations` counts
    micro-dev evaluations, baselines included.
    """

    p_star: float
    best: MergePoint
    interval: tuple[float, float] | None
    diagnostics: tuple[Diagnostic, ...]
    rounds: int
    evaluations: int
    probe_tokens: int
    density: float
    stop_reason: str | None


class _LoopCallback(TrainerCallback):
    """A callback of our loop, driven by the events of a trainer's."""

    def __init__(self, merged: MergedModel, micro_dev: Rows | None) -> None:
        self.merged = merged
        self.history: list[dict[str, Any]] = []
        self._loop: Callback | None = None
        self._mask: RemovableHandle | None = None
        self._items: tuple[Encoded, ...] | None = None
        if micro_dev is not None:
            self._items = encoded_rows(micro_dev)
            check_micro_dev(self._items, merged.work.config.data.micro_dev_size, "micro_dev")

    @abstractmethod
    def _make(self, steps: int) -> Callback:
        """Return the callback for a training of so many optimizer steps."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe or prune right after the merge, or go on from the checkpoint that the trainer has loaded."""
        _check_processes(args)
        loop = self._loop = self._make(state.max_steps)
        self._mask_before_clipping()
        loop.attach(kwargs["optimizer"])
        saved = self.merged.take_saved()
        self.merged.companion = self.checkpoint
        if not state.global_step:
            self.history.clear()
            loop.start()
            return
        if saved is None or saved[1]["callback"] != type(self).__name__:
            raise RunError(
                f"the checkpoint at step {state.global_step} was written without {type(self).__name__}, so there is no "
                "state to go on from. Resume with the callbacks of its training, or start anew."
            )
        loop.load_state(saved[0], saved[1]["loop"])
        self.history = list(saved[1]["history"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the gradients alone again."""
        self._unmask()

    def _mask_before_clipping(self) -> None:
        """Keep pruned entries out of the gradient's norm: a trainer clips before `on_pre_optimizer_step`.

        Not where the gradients of pruned entries are wanted: by `sensitivity`, and in `preset: released`.
        """
        self._unmask()
        config, bank = self.merged.work.config, self.merged.bank
        if config.prune.importance != "sensitivity" and config.controller.preset != "released":
            hook: Any = bank.values.register_hook  # torch annotates it in part only
            self._mask = hook(lambda gradient: gradient.masked_fill(~bank.kept, 0.0))

    def _unmask(self) -> None:
        if self._mask is not None:
            self._mask.remove()
            self._mask = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep pruned entries out of the optimizer."""
        self._running().after_backward()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hold pruned entries at zero; every `controller.interval` steps a round; stop when the answer stands."""
        if self._running().after_step(state.global_step, None):
            control.should_training_stop = True

    def checkpoint(self) -> SavedState:
        """Return what a checkpoint of the trainer keeps of this callback."""
        tensors, plain = self._running().state()
        return tensors, {"callback": type(self).__name__, "loop": plain, "history": self.history}

    def _running(self) -> Callback:
        if self._loop is None:
            raise RunError("no training has begun yet. Call the trainer's train() first.")
        return self._loop

    def _probe(self) -> Evaluator | None:
        if self._items is None:
            return None
        work = self.merged.work
        attached = work.attach(self.merged.injection, self.merged.bank)
        kind = SharedEvaluator if _processes() > 1 else Evaluator
        return kind(attached, self._items, batch_size=work.config.search.eval_batch_size)

    def _selector(self, probe: Evaluator | None) -> MaskSelector:
        merged, prune = self.merged, self.merged.work.config.prune
        if prune.importance != "magnitude" and (probe is None or _processes() > 1):
            lacking = "micro-dev examples" if probe is None else "a single process"
            raise ConfigError(f"prune.importance={prune.importance} needs {lacking} here. Give that, or use magnitude.")
        selector = MaskSelector(merged.bank, merged.injection, prune, probe)
        merged.feed(selector)
        return selector


class GraspCallback(_LoopCallback):
    """Learns the prune ratio while the trainer trains the merged adapters, as `grasp_lora.search` does.

    Args:
        merged: what the trainer trains, from `merge_into`.
        micro_dev: the controller's examples, tokenized as the training data is (`input_ids` and `labels`); none of
            them may be trained on.

    Training stops when the controller has its answer, or at the trainer's last step. With `finalize.adapter=reuse` it
    goes on instead, held at the answer from then on, at the latest from half of the steps. `history` holds every round:
    samples, losses of each example, rewards, commit and measured density.

    Raises `DataError` for examples that are no use, or too many (`data.micro_dev_size`), and when training begins
    `ConfigError` for a set-up that is not supported: sharded parameters (FSDP, DeepSpeed) or several GPUs in one
    process.
    """

    def __init__(self, merged: MergedModel, micro_dev: Rows) -> None:
        super().__init__(merged, micro_dev)
        self._search: tuple[RatioSearch, Evaluator] | None = None

    def _make(self, steps: int) -> Callback:
        config, probe = self.merged.work.config, self._probe()
        assert probe is not None  # micro_dev is required
        seed = config.seed if config.controller.seed is None else config.controller.seed
        bank = self.merged.bank
        axes = search_axes(config, bank.names, bank.modules)
        controller = Controller(config.controller, seed, steps_total=steps, axes=axes)
        search = RatioSearch(
            bank, self._selector(probe), probe, controller, config.controller, lambda row: self.history.append(row),
            axes=controller.settings.axes, hold_from=steps // 2 if config.finalize.adapter == "reuse" else None,
        )  # fmt: skip
        self._search = search, probe
        return search

    def result(self) -> LearnedRatio:
        """Return what has been learned so far; raises `RunError` before the first round."""
        if self._search is None:
            raise RunError("no training has begun yet. Call the trainer's train() first.")
        search, probe = self._search
        estimate = search.controller.estimate()
        best = merge_point(search.controller.settings.axes, estimate.best)
        return LearnedRatio(
            best.ratio, best, estimate.interval, tuple(search.controller.diagnostics()), search.rounds,
            search.evaluations, probe.token_passes, self.merged.bank.density(), search.stop_reason,
        )  # fmt: skip


class HoldRatioCallback(_LoopCallback):
    """Prunes the merge at one ratio, or a point, before the first step and holds it, as `grasp_lora.finalize` does.

    `micro_dev` is needed by importance rules other than `magnitude`. `finalize.mask=dynamic` selects anew after every
    step. Raises `ConfigError` for a ratio outside [0, 1] and for the set-ups that `GraspCallback` refuses.
    """

    def __init__(self, merged: MergedModel, where: float | MergePoint, micro_dev: Rows | None = None) -> None:
        super().__init__(merged, micro_dev)
        self.point = as_point(where)

    def _make(self, steps: int) -> Callback:
        dynamic = self.merged.work.config.finalize.mask == "dynamic"
        self.merged.bank.stand_at(self.point)
        return FixedRatio(self.merged.bank, self._selector(self._probe()), self.point, dynamic=dynamic)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check_processes(args: TrainingArguments) -> None:
    """Raise `ConfigError` where the flat parameter would be split or copied behind our back."""
    kind = str(getattr(args.distributed_state, "distributed_type", "NO")).rpartition(".")[2]
    if kind not in _REPLICATED:
        raise ConfigError(
            f"training under {kind} splits the parameters, which a bank of merged adapters does not allow. Use one "
            "process, or several with plain data parallelism (accelerate launch --multi_gpu)."
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process would each train a copy. Start with accelerate launch, or show one GPU "
            "with CUDA_VISIBLE_DEVICES."
        )
