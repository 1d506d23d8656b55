"""In which way training passes run, by settings, lengths and the model's shape: for a training and for its plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from ..adapters.discover import output_head
from ..config import SpeedConfig, TrainingConfig
from ..data import Encoded
from ..probing.attention import maskless_width
from ..probing.loss import gatherable_head
from .graphs import checkpoints, launch_bound_tokens
from .passes import pass_tokens, typical_tokens

COMPUTES = "its passes compute for longer than they take to launch"
_OTHER_HEADS = ("classifier_", "summary_")  # dropouts of heads that a language model does not have


@dataclass(frozen=True)
class Way:
    """Whether passes draw (dropout), whether their sequences may be joined, and why none is recorded, if so.

    Whether the layers leave joined sequences apart is for a trial to say (`probing.joined.joins`).
    """

    draws: bool
    joins: bool
    not_recorded: str | None

    @property
    def padded(self) -> bool:
        """Return whether sequences of a pass are padded to one length: those that are recorded are."""
        return self.not_recorded is None or not self.joins


def way_of(
    model: nn.Module, modules: Collection[str], items: Sequence[Encoded], tokens: int | None, *,
    speed: SpeedConfig, training: TrainingConfig, on_gpu: bool,
) -> Way:  # fmt: skip
    """Return how passes of up to `tokens` tokens over `items` run (None: of `batch_size` examples).

    `modules` carry adapters. Where passes draw, nothing is joined, which would change what they draw.
    """
    longest = max((len(item.input_ids) for item in items), default=0)
    draws = training.dropout > 0.0 or _has_dropout(model)
    joins = not draws and _could_join(speed, training, model, longest)
    reason = _why_not_recorded(model, modules, longest, speed=speed, on_gpu=on_gpu)
    if reason is None and typical_tokens(training, items, tokens) > launch_bound_tokens(model):
        reason = COMPUTES
    return Way(draws, joins, reason)


def planned_way(
    model: nn.Module, modules: Collection[str], items: Sequence[Encoded], *,
    speed: SpeedConfig, training: TrainingConfig, on_gpu: bool,
) -> Way:  # fmt: skip
    """Return how passes run as far as settings say, before a GPU's memory is known: `way_of` for `pass_tokens`."""
    tokens = pass_tokens(speed, training, items, on_gpu=on_gpu)
    return way_of(model, modules, items, tokens, speed=speed, training=training, on_gpu=on_gpu)


def _could_join(speed: SpeedConfig, training: TrainingConfig, model: nn.Module, longest: int) -> bool:
    """Return whether settings and lengths let the sequences of a pass follow each other in one row.

    Not where layers are compiled, which would be done again for every pass, nor where they run again in the backward
    pass, outside of what tells sequences apart.
    """
    wanted = speed.join_rows and speed.skip_mask and speed.compile_layers != "all" and not checkpoints(model)
    return wanted and training.batch_size * training.accumulation > 1 and maskless_width(model) >= longest


def _why_not_recorded(
    model: nn.Module, modules: Collection[str], longest: int, *, speed: SpeedConfig, on_gpu: bool
) -> str | None:
    """Return why training passes over sequences of up to `longest` tokens cannot be recorded; None: they can."""
    reasons = {
        "there is no GPU": not on_gpu,
        "speed.cuda_graphs=false": not speed.cuda_graphs,
        "building an attention mask cannot be recorded": not speed.skip_mask or maskless_width(model) < longest,
        "gradient checkpointing sets the random state anew": checkpoints(model),
        "the output head carries an adapter": gatherable_head(model) is None or output_head(model) in modules,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _has_dropout(model: nn.Module) -> bool:
    """Return whether any dropout of the base model can be active, so that the global random state matters."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    settings = getattr(model, "config", None)
    nested = [settings, getattr(settings, "text_config", None)]
    values = [pair for part in nested if part is not None for pair in vars(part).items()]
    own = [(key, value) for key, value in values if "drop" in key and not key.startswith(_OTHER_HEADS)]
    return any(isinstance(value, float) and value > 0 for _, value in own)
