"""One training loop for adapter training, controller run and final run; it stops and resumes to the bit on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainingConfig
from ..data import Encoded, epoch_order
from ..errors import Interrupted, RunError, TrainingError, check_fields
from ..probing import Attached, Evaluator
from ..probing.layers import modes_kept
from ..rng import forked_global_state
from .callbacks import Callback
from .selector import MaskSelector
from .state import BEFORE, Outcome, Plumbing, Position, part
from .step import TrainingPass


class TrainingLoop:
    """Trains a bank's values with AdamW; callbacks prune, probe and stop. Dev judges an epoch only while `judging`."""

    def __init__(
        self,
        attached: Attached,
        items: Sequence[Encoded],
        config: TrainingConfig,
        *,
        seed: int,
        dev: Evaluator | None = None,
        callbacks: Sequence[Callback] = (),
        selector: MaskSelector | None = None,
        plumbing: Plumbing | None = None,
    ) -> None:
        self._model, self._injection, self.bank = attached.model, attached.injection, attached.bank
        self._items, self._config, self._seed, self._pad_id = items, config, seed, attached.pad_id
        self._dev, self._callbacks, self._selector = dev, callbacks, selector
        self.judging: Callable[[], bool] = lambda: True
        self.judging_start = False  # whether dev may also choose what there was before the first update
        self._io = plumbing or Plumbing()
        self._name = self._io.name
        on_gpu = self.bank.values.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            [self.bank.values], lr=config.lr, weight_decay=config.weight_decay,
            fused=True if on_gpu and attached.speed.fused_optimizer else None,
        )  # fmt: skip
        self._pass = TrainingPass(attached, items, config, selector)
        self._measures = self._pass.depends_on_memory
        self._unread: list[tuple[int, int, float, float | Tensor]] = []  # step, examples, rate, loss
        self._read_every = attached.speed.read_losses_every if on_gpu else 1
        self.position = Position()
        self._best: dict[str, Tensor] = {}
        for callback in callbacks:
            callback.attach(self.optimizer)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last one of an epoch may hold fewer examples."""
        return math.ceil(len(self._items) / (self._config.batch_size * self._config.accumulation))

    def run(self) -> Outcome:
        """Train to the end, or from where `load` left it, and leave the best epoch's values in the bank.

        Raises `TrainingError` for a loss that is not finite or memory that runs out, `Interrupted` when asked to stop;
        the last checkpoint stays.
        """
        try:
            with modes_kept(self._model):
                self._whole()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of GPU memory at step {self.position.step + 1} of {self._name} ({error}). Lower batch_size (and "
                "raise accumulation), task.max_length or eval_batch_size, set model.gradient_checkpointing=true, or "
                "model.quantization; then go on with --resume."
            ) from None
        if self._best:
            self.bank.load_state(self._best)
        self._require_finite()
        return self.position.outcome()

    def _whole(self) -> None:
        if self.position.step == 0:
            for callback in self._callbacks:
                callback.start()
            if self.judging_start and self._dev is not None:
                self._judge_start(self._dev)
        if self._measures:
            self._measure()
        self._epochs()
        self._read()

    def _measure(self) -> None:
        """Let passes follow what the GPU's memory holds."""
        self._measures = False
        self._zero_gradient()
        self._training_mode()
        with forked_global_state(self._seed, self._name, "measuring"):
            fitting = self._pass.fitting()
        self._pass.settle(fitting)

    def _epochs(self) -> None:
        position, order = self.position, None
        while position.epoch < self._config.epochs and not position.stopped:
            if position.update == self.updates_per_epoch:
                self._end_epoch()
                order = None
                continue
            order = order if order is not None else epoch_order(len(self._items), self._seed, position.epoch)
            self._update(order)
            if self._io.poll():
                self._checkpoint()
                raise Interrupted(f"stopped after step {position.step} of {self._name}. Go on with --resume.")
            if position.step % self._io.checkpoint_every == 0:
                self._checkpoint()

    def _update(self, order: Sequence[int]) -> None:
        position, config = self.position, self._config
        size = config.batch_size * config.accumulation
        chosen = order[position.update * size : (position.update + 1) * size]
        self._zero_gradient()
        loss = self._backward(chosen)
        self._unread.append((position.step + 1, len(chosen), self._rate(), loss))
        if len(self._unread) >= self._read_every:
            loss = self._read()
        for callback in self._callbacks:
            callback.after_backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_([self.bank.values], config.max_grad_norm)
        self.optimizer.param_groups[0]["lr"] = self._rate()
        self.optimizer.step()
        position.step += 1
        position.update += 1
        try:
            stops = [callback.after_step(position.step, loss) for callback in self._callbacks]
        except TrainingError:
            self._read()  # a loss that was no number explains all that came of it
            raise
        position.stopped = any(stops)

    def _training_mode(self) -> None:
        """Let the model train; the parts of one that does already stay in modes of their own."""
        if not self._model.training:
            self._model.train()

    def _zero_gradient(self) -> None:
        """Zero the gradient where it lies: recorded passes add to this very tensor."""
        values = self.bank.values
        if values.grad is None:
            values.grad = torch.zeros_like(values)
        else:
            values.grad.zero_()

    def _backward(self, chosen: Sequence[int]) -> float | Tensor:
        """Accumulate the gradient of the mean loss over `chosen` and return that loss."""
        if not self._pass.random:
            return self._accumulate(chosen)
        with forked_global_state(self._seed, self._name, "dropout", self.position.step):
            return self._accumulate(chosen)

    def _accumulate(self, chosen: Sequence[int]) -> float | Tensor:
        self._training_mode()
        total = torch.zeros((), dtype=torch.float64, device=self.bank.values.device)
        for items in self._pass.cut([self._items[i] for i in chosen]):
            self.position.trained_tokens += sum(len(item.input_ids) for item in items)
            total += self._pass(items, len(chosen))
        return total

    def _read(self) -> float:
        """Look at the losses of the updates since the last look, account for them, and return the newest.

        Every look makes the program wait for a GPU, so that it looks at several together.
        """
        position, unread, self._unread = self.position, self._unread, []
        value = math.nan
        for step, examples, rate, loss in unread:
            value = float(loss)
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} at step {step} of {self._name}. The last checkpoint is kept. "
                    f"Lower the learning rate (now {rate:g}) or set max_grad_norm, and start again."
                )
            position.loss_sum += value * examples
            self._io.log("step", {"step": step, "epoch": position.epoch, "loss": value, "lr": rate})
            self._io.show(loss=value)
        return value

    def _rate(self) -> float:
        return self._config.lr * self._config.lr_decay**self.position.epoch

    def _end_epoch(self) -> None:
        self._read()
        position = self.position
        train_loss = position.loss_sum / len(self._items)
        position.epoch_losses.append(train_loss)
        event: dict[str, Any] = {"epoch": position.epoch, "train_loss": train_loss}
        if self._dev is not None and self.judging():
            event["dev_loss"] = self._judge(self._dev)
        self._io.log("epoch", event)
        position.epoch, position.update, position.loss_sum = position.epoch + 1, 0, 0.0

    def _judge_start(self, dev: Evaluator) -> None:
        """Take what there is before any training as the best so far."""
        loss = self._dev_loss(dev)
        self.position.start_dev_loss, self.position.best_epoch = loss, BEFORE
        self._best = self.bank.state()
        self._io.log("start_dev", {"dev_loss": loss})

    def _dev_loss(self, dev: Evaluator) -> float:
        position, before = self.position, dev.token_passes
        loss = float(dev.losses().mean())
        position.dev_tokens += dev.token_passes - before
        if not math.isfinite(loss):
            raise TrainingError(
                f"the dev loss became {loss} at step {position.step} of {self._name}. The last checkpoint is kept. "
                "Lower the learning rate or set max_grad_norm, and start again."
            )
        return loss

    def _judge(self, dev: Evaluator) -> float:
        position, loss = self.position, self._dev_loss(dev)
        start = math.inf if position.start_dev_loss is None else position.start_dev_loss
        best = min([start, *position.dev_losses])
        position.dev_losses.append(loss)
        if loss < best:
            position.best_epoch, position.epochs_since_best = position.epoch, 0
            self._best = self.bank.state()
        else:
            position.epochs_since_best += 1
            patience = self._config.patience
            position.stopped = patience is not None and position.epochs_since_best >= patience
        position.stopped = self._io.judge(position.epoch, loss) or position.stopped
        return loss

    def _checkpoint(self) -> None:
        self._read()
        if self._io.save is None:
            return
        self._require_finite()
        self._io.save(*self.state())

    def _require_finite(self) -> None:
        if not bool(torch.isfinite(self.bank.values).all()):
            raise TrainingError(
                f"adapter values stopped being finite by step {self.position.step} of {self._name}. The checkpoint "
                "before is kept. Lower the learning rate or set max_grad_norm, and start again."
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values from which `load` goes on to the bit."""
        tensors = {f"bank.{k}": v for k, v in self.bank.state().items()}
        tensors |= {f"best.{k}": v for k, v in self._best.items()}
        tensors |= {f"adam.{k}": v.clone() for k, v in self.optimizer.state.get(self.bank.values, {}).items()}
        plain: dict[str, Any] = {"position": asdict(self.position), "callbacks": []}
        for index, callback in enumerate(self._callbacks):
            own, values = callback.state()
            tensors |= {f"callback{index}.{k}": v for k, v in own.items()}
            plain["callbacks"].append(values)
        return tensors, plain

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `state` returned, made with the same configuration, data and version (else `RunError`)."""
        check_fields(plain["position"], Position, complete=True)
        if len(plain["callbacks"]) != len(self._callbacks):
            raise RunError(
                f"checkpoint: it holds the state of {len(plain['callbacks'])} callback(s), this run has "
                f"{len(self._callbacks)}. Go on with the settings and the version that wrote it, or start anew."
            )
        self.position = Position(**plain["position"])
        self.bank.load_state(part(tensors, "bank."))
        self._best = {k: v.to(self.bank.values.device) for k, v in part(tensors, "best.").items()}
        device = self.bank.values.device
        fused = self.optimizer.defaults["fused"]  # counts its steps where the values are
        adam = {
            k: v.clone() if k == "step" and not fused else v.to(device, copy=True)
            for k, v in part(tensors, "adam.").items()
        }
        if adam:
            self.optimizer.state[self.bank.values] = adam
        for index, callback in enumerate(self._callbacks):
            callback.load_state(part(tensors, f"callback{index}."), plain["callbacks"][index])
