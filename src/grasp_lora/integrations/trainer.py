"""Callbacks for `transformers.Trainer` and its descendants (TRL's `SFTTrainer`): learn a ratio, or hold one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.point import MergePoint
from ..controller import Controller, Diagnostic
from ..controller.axes import merge_point
from ..controller.presets import resolve
from ..controller.session import RatioSearch
from ..data import Encoded, check_micro_dev
from ..errors import ConfigError, RunError
from ..pipeline.finalize import as_point
from ..pipeline.search import search_axes
from ..probing import Evaluator
from ..training import Callback, FixedRatio, MaskSelector
from .checks import check_processes, check_scaler, processes
from .merged import MergedModel, SavedState
from .probes import SharedEvaluator, encoded_rows
from .resuming import check_settings, described, pruned, searched

Rows: TypeAlias = Iterable[Mapping[str, Any]]
_HALF = "half of the training's steps"  # where a search that keeps its adapter ends at the latest


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
        self._selector: MaskSelector | None = None
        self._kept: dict[str, Any] = {}
        self._final: dict[str, Tensor] | None = None  # the bank of a training that had ended before it was resumed
        self._items: tuple[Encoded, ...] | None = None
        if micro_dev is not None:
            self._items = encoded_rows(micro_dev)
            check_micro_dev(self._items, merged.work.config.data.micro_dev_size, "micro_dev")

    @abstractmethod
    def _make(self, steps: int) -> Callback:
        """Return the callback for a training of so many optimizer steps."""

    def _ended(self) -> bool:
        """Return whether a training that is resumed had come to its end."""
        return False

    @abstractmethod
    def _settings(self, steps: int) -> dict[str, Any]:
        """Return what a training must keep when it is resumed, by its name, as JSON types."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe or prune right after the merge, or go on from the checkpoint that the trainer has loaded.

        Where that training had ended, the trainer still makes one update; `on_optimizer_step` takes it back.
        """
        self.merged.begin_training(state)
        saved = self.merged.take_saved()
        check_processes(args)
        check_scaler(kwargs["optimizer"], self.merged.work.config.prune.importance)
        self._kept, self._final = self._settings(state.max_steps), None
        before = self._saved(saved, state.global_step) if state.global_step else None
        loop = self._loop = self._make(state.max_steps)
        loop.attach(kwargs["optimizer"])
        self.merged.attend(self.checkpoint, state)
        if before is None:
            self.history.clear()
            loop.start()
            return
        tensors, plain = before
        loop.load_state(tensors, plain["loop"])
        self.history = list(plain["history"])
        if self._ended():
            self._final, control.should_training_stop = self.merged.bank.state(), True

    def _saved(self, saved: SavedState | None, step: int) -> SavedState:
        """Return this callback's part of a checkpoint; raises `RunError` for one of another training."""
        if saved is None or saved[1]["callback"] != type(self).__name__:
            raise RunError(
                f"the checkpoint at step {step} was written without {type(self).__name__}, so there is no "
                "state to go on from. Resume with the callbacks of its training, or start anew."
            )
        plain = saved[1]
        check_settings(plain.get("settings", {}), self._kept, step, but=self._free(plain["loop"]))
        return saved

    def _free(self, loop: Mapping[str, Any]) -> set[str]:
        """Return the settings that may change from a checkpoint on, given the state of the loop in it."""
        return set()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave passes, gradients and checkpoints alone again."""
        self.merged.release()
        self.merged.take_saved()  # of the best checkpoint, which the trainer has loaded for its adapters alone

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attend the passes of an update, and keep pruned entries out of the gradient's norm.

        A trainer clips before `on_pre_optimizer_step`. Gradients of pruned entries are left alone where they are
        wanted: by `sensitivity`, and in `preset: released`.
        """
        self.merged.attend(self.checkpoint, state)
        config = self.merged.work.config
        masked = config.prune.importance != "sensitivity" and config.controller.preset != "released"
        if self._selector is not None and self._final is None:
            self.merged.begin_update(self._selector, masked=masked)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stay at work between the passes of an update."""
        self.merged.attend(self.checkpoint, state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep pruned entries out of the optimizer."""
        self.merged.attend(self.checkpoint, state)
        if self._final is None:
            self._running().after_backward()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hold pruned entries at zero; every `controller.interval` steps a round; stop when the answer stands.

        Before `on_step_end`, where other callbacks may write a checkpoint of this step.
        """
        self.merged.end_update()
        self.merged.attend(self.checkpoint, state)
        if self._final is not None:
            self.merged.bank.load_state(self._final)
        elif self._running().after_step(state.global_step + 1, None):  # the trainer counts it later
            control.should_training_stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stay at work: the gradients have been dropped."""
        self.merged.attend(self.checkpoint, state)

    def checkpoint(self) -> SavedState:
        """Return what a checkpoint of the trainer keeps of this callback."""
        tensors, plain = self._running().state()
        own = {"callback": type(self).__name__, "settings": self._kept, "loop": plain, "history": self.history}
        return tensors, own

    def _running(self) -> Callback:
        if self._loop is None:
            raise RunError("no training has begun yet. Call the trainer's train() first.")
        return self._loop

    def _probe(self) -> Evaluator | None:
        if self._items is None:
            return None
        work = self.merged.work
        attached = work.attach(self.merged.injection, self.merged.bank)
        kind = SharedEvaluator if processes() > 1 else Evaluator
        return kind(attached, self._items, batch_size=work.config.search.eval_batch_size)

    def _select(self, probe: Evaluator | None) -> MaskSelector:
        merged, prune = self.merged, self.merged.work.config.prune
        if prune.importance != "magnitude" and (probe is None or processes() > 1):
            lacking = "micro-dev examples" if probe is None else "a single process"
            raise ConfigError(f"prune.importance={prune.importance} needs {lacking} here. Give that, or use magnitude.")
        selector = MaskSelector(merged.bank, merged.injection, prune, probe)
        self._selector = selector
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

    def _settings(self, steps: int) -> dict[str, Any]:
        config = self.merged.work.config
        settings = searched(config, resolve(config.controller)) | pruned(config)
        half = {} if config.finalize.adapter == "fresh" else {_HALF: steps // 2}
        return settings | half | {"micro_dev": described(self._items)}

    def _free(self, loop: Mapping[str, Any]) -> set[str]:
        return {_HALF} if loop["held"] else set()

    def _make(self, steps: int) -> Callback:
        config, probe = self.merged.work.config, self._probe()
        assert probe is not None  # micro_dev is required
        bank = self.merged.bank
        axes = search_axes(config, bank.names, bank.modules)
        controller = Controller(config.controller, config.controller_seed, steps_total=steps, axes=axes)
        search = RatioSearch(
            bank, self._select(probe), probe, controller, config.controller, lambda row: self.history.append(row),
            axes=controller.settings.axes, hold_from=steps // 2 if config.finalize.adapter == "reuse" else None,
        )  # fmt: skip
        self._search = search, probe
        return search

    def _ended(self) -> bool:
        return self._search is not None and self._search[0].ended

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

    def _settings(self, steps: int) -> dict[str, Any]:
        config = self.merged.work.config
        items = None if config.prune.importance == "magnitude" else self._items
        own = {"finalize.mask": config.finalize.mask, "micro_dev": described(items)}
        return self.point.to_dict() | pruned(config) | own

    def _make(self, steps: int) -> Callback:
        dynamic = self.merged.work.config.finalize.mask == "dynamic"
        self.merged.bank.stand_at(self.point)
        return FixedRatio(self.merged.bank, self._select(self._probe()), self.point, dynamic=dynamic)
