"""A loaded causal language model with merged adapters attached, as a module that any trainer trains.

The only trainable parameter is the bank's flat `values`; the model below stays frozen and keeps its code and tree.
Checkpoints hold the bank and the controller, not the base model, and come and go through `state_dict` and
`load_state_dict`, so that a trainer saves and restores them with its own means.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters.inject import Injection
from ..adapters.peft_load import AdapterFactors
from ..api import AnyAdapter, read_adapters, setup
from ..config import Config
from ..errors import AdapterError, ConfigError, RunError
from ..pipeline.export import Exported, export_adapter, model_card
from ..training import MaskSelector
from ..training.setup import Setup
from .resuming import check_settings

SavedState: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]
_BANK, _SESSION, _PLAIN = "bank.", "session.", "plain"


class MergedModel(nn.Module):
    """`causal_lm` with a bank of merged adapters; made by `merge_into`.

    Whatever a trainer asks for beside the forward pass (`config`, `generate`, gradient checkpointing, ...) is the base
    model's. `bank` holds the adapters, `work` the configuration, `companion` gives what a callback wants
    kept in checkpoints.
    """

    # What is trained here are adapters, so a base in 4 bits is no obstacle; a trainer would refuse it otherwise.
    is_quantized = False
    is_loaded_in_4bit = False
    is_loaded_in_8bit = False

    def __init__(self, work: Setup, adapters: Sequence[AdapterFactors]) -> None:
        super().__init__()
        self.causal_lm = work.base.model
        self.work, self.bank = work, work.bank(adapters)
        self.values = self.bank.values
        self._made_from = {  # in the order of the weights
            f"adapter {index}": f"{adapter.name} with SHA-256 {adapter.sha256[:16]}"
            for index, adapter in enumerate(adapters, start=1)
        }
        self.companion: Callable[[], SavedState] | None = None
        self._training: object | None = None  # what the callback that is at work attends
        self._attended = False  # whether the callback has come by since the last `zero_grad`
        self._saved: SavedState | None = None
        self._update: list[RemovableHandle] = []
        self._passes = ExitStack()
        self.injection = Injection(work.base.model, self.bank.modules)
        self.injection.stand(self.backbone, self.bank.merged)

    @property
    def backbone(self) -> nn.Module:
        """The part below the output head: trainers with a head of their own call it directly."""
        backbone: nn.Module = getattr(self.causal_lm, "base_model", self.causal_lm)
        return backbone

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss can be scaled by the number of tokens of a whole update, as `Trainer` asks."""
        own = getattr(self.causal_lm, "accepts_loss_kwargs", None)
        if own is not None:
            return bool(own)
        parameters = inspect.signature(self.causal_lm.forward).parameters.values()
        return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Return the base model's output with the merged update added; arguments are the base model's."""
        named = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, "labels": labels,
        }  # fmt: skip
        return self.causal_lm(**{key: value for key, value in named.items() if value is not None}, **inputs)

    def begin_training(self, training: object) -> None:
        """Forget the callback of an earlier training.

        Raises `ConfigError` where one attends `training` already: each would prune what the other has committed.
        """
        again = self._training is training
        self.release()
        if again:
            raise ConfigError(
                "callbacks: a training takes one callback of grasp_lora, got two, and the first has pruned already. "
                "Use GraspCallback or HoldRatioCallback, with a model that merge_into has made anew."
            )

    def attend(self, companion: Callable[[], SavedState], training: object) -> None:
        """Keep what `companion` returns in checkpoints; called at every event of the callback that it belongs to.

        `training` is an object of this training and of no other, such as the trainer's state.
        """
        self.companion, self._training, self._attended = companion, training, True

    def begin_update(self, selector: MaskSelector, *, masked: bool) -> None:
        """Let the training passes of one update feed `selector`, and no other, with the input norms that it asks for.

        With `masked`, pruned entries are kept out of the gradient from the backward pass on. `end_update` ends it.
        """
        self.end_update()

        def enter(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
            self._passes.close()  # torch calls `leave` after an Exception, but not after a KeyboardInterrupt
            if module.training and torch.is_grad_enabled():
                self._passes.enter_context(selector.gathering(_token_mask(args, inputs)))

        def leave(_module: nn.Module, _args: object, _output: object) -> None:
            self._passes.close()

        self._update += [
            self.backbone.register_forward_pre_hook(enter, with_kwargs=True),
            self.backbone.register_forward_hook(leave, always_call=True),
        ]
        if masked:
            bank, hook = self.bank, cast(Any, self.bank.values.register_hook)  # torch annotates it in part only
            self._update.append(hook(lambda gradient: gradient.masked_fill(~bank.kept, 0.0)))

    def end_update(self) -> None:
        """Leave passes and gradients alone again."""
        for handle in self._update:
            handle.remove()
        self._update.clear()
        self._passes.close()

    def release(self) -> None:
        """Forget the callback that was at work: passes, gradients and checkpoints are those of a plain module.

        A loop of one's own that goes on after an interrupted training begins with it.
        """
        self.end_update()
        self.companion = self._training = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; who has not come by since they were last dropped, through an update, is let go.

        After an interrupt no event says that its training is over. A training that nobody attends drops the gradients
        of its first update here, before it can write a checkpoint.
        """
        unattended = self.values.grad is not None and not self._attended
        super().zero_grad(set_to_none)
        self._attended = False
        if unattended:
            self.release()

    def detach(self) -> PreTrainedModel:
        """Take the adapters off and return the bare base model; this object must not be used afterwards."""
        self.release()
        self.injection.close()
        return cast(PreTrainedModel, self.causal_lm)

    def export(self, folder: str | Path, *, overwrite: bool = False) -> Exported:
        """Write `folder/adapter`, a plain PEFT folder, and the sparse file of the unsummed factors.

        Raises `RunError` when the folder exists and `overwrite` is not set.
        """
        config, point = self.work.config, self.bank.standing(1.0 - self.bank.density())
        card = model_card(self.work.base.name, {"pruned at": point.describe(), "merge rule": config.merge.rule}, "")
        return export_adapter(
            self.work.base, self.bank, Path(folder), card=card, sparse=config.export.sparse, overwrite=overwrite
        )

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """Raise `AdapterError`: what the base model would write here lacks the adapters."""
        raise AdapterError(
            "save_pretrained would write the base model without its adapters. Use export(folder) for a PEFT folder; a "
            "trainer's checkpoints are written by the trainer."
        )

    # --- as a module --------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "causal_lm":
                raise
            return getattr(self.causal_lm, name)

    def _apply(self, fn: Any, recurse: bool = True) -> MergedModel:
        """Move mask and stash along with the values.

        A trainer moves its model before the first update, and never within one: an update that is open was interrupted.
        """
        self.end_update()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        bank = self.bank
        bank.values = self.values
        bank.kept, bank.stash = bank.kept.to(self.values.device), bank.stash.to(self.values)
        return self

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self, *_args: Any, prefix: str = "", **_kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the bank and, where a callback is at work, its state; the base model is not in it."""
        tensors = {f"{_BANK}{key}": value for key, value in self.bank.state().items()}
        plain: dict[str, Any] = {"made_from": self._origin(), "session": None}
        if self.companion is not None:
            own, plain["session"] = self.companion()
            tensors |= {f"{_SESSION}{key}": value.detach().clone() for key, value in own.items()}
        text = json.dumps(plain, ensure_ascii=False, sort_keys=True).encode("utf-8")
        tensors[_PLAIN] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return {f"{prefix}{key}": value for key, value in tensors.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Put the bank back; the callback takes its part when training begins.

        Raises `RunError` for a checkpoint of something else, with the names of what differs.
        """
        if _PLAIN not in state_dict:
            raise RunError(
                "the checkpoint is not one of merged adapters: it has no entry 'plain'. Give a checkpoint that was "
                "written while a model of merge_into was trained."
            )
        plain = json.loads(bytes(state_dict[_PLAIN].cpu().tolist()).decode("utf-8"))
        check_settings(plain["made_from"], self._origin())
        self.bank.load_state(_part(state_dict, _BANK))
        session = plain["session"]
        self._saved = None if session is None else (_part(state_dict, _SESSION), session)
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def take_saved(self) -> SavedState | None:
        """Return the callback's part of the checkpoint that was loaded last, once."""
        saved, self._saved = self._saved, None
        return saved

    def _origin(self) -> dict[str, Any]:
        """Return what a checkpoint must be made from to be loaded here, by name, as JSON types."""
        settings = self.work.config.merge.model_dump(mode="json") | {"weights": list(self.bank.configured)}
        return self._made_from | {f"merge.{name}": value for name, value in settings.items()}


def _part(tensors: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _token_mask(args: tuple[Any, ...], inputs: Mapping[str, Any]) -> Tensor:
    """Return the attention mask (B, T) of a pass; without one, every token counts."""
    mask: Tensor | None = inputs.get("attention_mask")
    if mask is not None:
        return mask
    tokens: Tensor = (
        inputs["inputs_embeds"][..., 0] if "inputs_embeds" in inputs else inputs.get("input_ids", *args[:1])
    )
    return torch.ones_like(tokens, dtype=torch.int64)


def merge_into(
    model: PreTrainedModel,
    tokenizer: Any,
    adapters: Sequence[AnyAdapter],
    *,
    config: Config | Mapping[str, Any] | None = None,
) -> MergedModel:
    """Attach the merge of `adapters` to a loaded model and return what a trainer trains.

    Args:
        model: a causal language model of transformers; it is frozen.
        tokenizer: its tokenizer, for the padding of probes.
        adapters: two or more PEFT folders, hub ids or adapters trained by this package.
        config: a `Config` or nested mappings; `merge`, `prune`, `controller`, `export`, `seed` and
            `data.micro_dev_size` count here, the trainer's own arguments take the place of the rest.

    Raises:
        AdapterError: a model that has PEFT adapters already, or adapters that do not fit.
        ConfigError: settings that are unknown or contradict each other.

    """
    work = setup(model, tokenizer, config=config)
    factors = read_adapters(work, adapters)
    if work.base.head in {module for adapter in factors for module in adapter.modules}:
        raise AdapterError(
            f"an adapter changes the output head ('{work.base.head}'), which trainers may compute without calling it. "
            "Use adapters of inner modules."
        )
    return MergedModel(work, factors)
