"""Training passes recorded as CUDA graphs, one per shape: one example's pass is bound by kernel launches otherwise.

A graph repeats what was recorded on the same memory, so everything that a pass reads lies in buffers that stay: the
batch, the bank's values, their factors in the merge (`AdapterBank.scales`), the gradient, and the sums of channel
norms. Few shapes serve all passes: rows are padded on the right to one of a few widths, which under causal attention
needs no mask, and the answer positions to a fixed number, at weight zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..adapters.bank import AdapterBank
from ..data import Batch, Encoded, collate, moved
from ..errors import first_line
from ..probing.memory import parameters_and_layers, tokens_of_work
from .passes import answer_weights, padded_width

# Relative difference of a recorded gradient from that of the same pass unrecorded. Other kernels and bfloat16 make it
# about 0.01; a buffer that was missed makes it about 1.
_AGREES = 0.1


class Body(Protocol):
    """A pass on fixed buffers, which adds to `gradient` (n,) and returns the loss."""

    def __call__(self, batch: Batch, weights: Tensor, *, gather: bool = True) -> Tensor:
        """Run forward and backward; with `gather` the tokens feed the importance statistics."""

    @property
    def gradient(self) -> Tensor:
        """The tensor that gradients are added to."""

    def replayed(self) -> None:
        """Account for a pass that ran from a recording, whose hooks did not run."""


class Recorder(Protocol):
    """What makes a function on fixed buffers repeatable."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `work` without running it; return what runs it, and the tensor its result will be in."""


@dataclass(frozen=True)
class Sizes:
    """What may be recorded: rows padded to one of `widths`, up to `answer` answer tokens in each, so many `graphs`.

    `tokens` is the most tokens of a pass (see `launch_bound_tokens`).
    """

    widths: tuple[int, ...]
    answer: int
    graphs: int
    tokens: int


@dataclass
class _Shape:
    """The buffers of one shape, and its recording once there is one."""

    batch: Batch
    weights: Tensor
    replay: Callable[[], None] | None = None
    loss: Tensor | None = None


class GraphedPasses:
    """Runs a body over a few shapes, each recorded when it first comes up (the very first shape: the second time).

    With `check`, each recording is compared with an unrecorded pass before it is trusted. Once something cannot be
    recorded, nothing is any more (`gave_up`); a warning says why.
    """

    def __init__(
        self, body: Body, bank: AdapterBank, pad_id: int, sizes: Sizes, recorder: Recorder, *, check: bool = True
    ) -> None:
        self._body, self._bank, self._pad_id = body, bank, pad_id
        self._sizes, self._recorder, self._check = sizes, recorder, check
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._room, self._told = sizes.tokens, False
        self.gave_up: str | None = None

    @property
    def recorded(self) -> tuple[tuple[int, ...], ...]:
        """Shapes (rows, width) that are replayed."""
        return tuple(shape for shape, known in self._shapes.items() if known.replay is not None)

    def limit(self, tokens: int) -> None:
        """Record no pass of more than `tokens` tokens from now on: memory has no room for more."""
        self._room = min(self._room, tokens)

    def takes(self, items: Sequence[Encoded]) -> bool:
        """Return whether a pass over `items` is recorded, or is worth it and memory has room; a warning says if not.

        Of none any more once recording has failed, and of no new shape once there are as many as may be.
        """
        shape = len(items), max(map(self.length, items))
        tokens = shape[0] * shape[1]
        known = shape in self._shapes or len(self._shapes) < self._sizes.graphs
        worth = self.gave_up is None and known and tokens <= self._sizes.tokens
        if worth and tokens > self._room and not self._told:
            self._told = True
            warn_of_memory(tokens)
        return worth and tokens <= self._room

    def length(self, item: Encoded) -> int:
        """Return how many tokens an example has once it is padded to one of the few widths."""
        return padded_width(self._sizes.widths, len(item.input_ids))

    def __call__(self, items: Sequence[Encoded], count: int) -> Tensor:
        """Add the gradient of the loss of `items`, each counting 1 / `count`, and return their part of the loss."""
        batch, weights = self._padded(items, count)
        shape = tuple(batch.input_ids.shape)
        known = self._shapes.get(shape)
        if known is None:
            return self._new(shape, _Shape(batch, weights))
        _fill(known, batch, weights)
        return self._first(known) if known.replay is None else self._again(known)

    def _new(self, shape: tuple[int, ...], made: _Shape) -> Tensor:
        """Run a shape that has not been seen, and record it."""
        first = not self._shapes
        self._shapes[shape] = made
        # A pass that is not recorded loads kernels and makes sums; the check is one, of all shapes but the first.
        return self._body(made.batch, made.weights) if first or not self._check else self._first(made)

    def _padded(self, items: Sequence[Encoded], count: int) -> tuple[Batch, Tensor]:
        """Return batch and answer weights in one of the few shapes, on the bank's device."""
        values = self._bank.values
        width = max(map(self.length, items))
        batch = collate(items, self._pad_id, width=width)
        spare = len(items) * min(self._sizes.answer, width - 1) - len(batch.places)  # nothing predicts a first token
        weights = answer_weights(items, count, values.dtype)
        places = torch.cat([batch.places, _unused(batch.places, spare)])
        padded = torch.cat([weights, weights.new_zeros(spare)])
        return replace(batch, places=places).to(values.device), moved(padded, values.device)

    def _first(self, known: _Shape) -> Tensor:
        """Record a shape and run it once."""
        gradient = self._body.gradient
        before, wanted = gradient.clone(), torch.zeros_like(gradient)
        reason = self._record(known, before, wanted)
        if reason is not None:  # out of the handler, whose error holds on to all that the attempt had made
            gradient.copy_(before)
            self._give_up(reason)
            return self._body(known.batch, known.weights)
        ran = not torch.equal(gradient, before)
        gradient.copy_(before)
        loss = self._again(known)
        difference = (gradient - before - wanted).norm()
        if not ran and (not self._check or bool(difference <= _AGREES * wanted.norm())):
            return loss
        known.replay = None
        gradient.copy_(before)
        how = "it ran at once" if ran else f"by {float(difference / wanted.norm()):.2g}"
        self._give_up(f"a recorded pass gave another gradient ({how})")
        return self._body(known.batch, known.weights, gather=False)  # its tokens have been gathered

    def _record(self, known: _Shape, before: Tensor, wanted: Tensor) -> str | None:
        """Record a shape, and put the gradient of a pass as it is into `wanted`; return why that cannot be done."""
        gradient = self._body.gradient
        try:
            if self._check:
                self._body(known.batch, known.weights, gather=False)
            torch.sub(gradient, before, out=wanted)
            gradient.copy_(before)
            self._bank.scales()  # made anew by other means than can be recorded
            known.replay, known.loss = self._recorder(lambda: self._body(known.batch, known.weights))
        except RuntimeError as error:  # whatever the model does that cannot be recorded, memory included
            return first_line(error)
        return None

    def _again(self, known: _Shape) -> Tensor:
        assert known.replay is not None  # the callers have looked
        assert known.loss is not None
        self._bank.scales()  # in place: the strength and weights that are in force by now
        known.replay()
        self._body.replayed()
        return known.loss

    def _give_up(self, reason: str) -> None:
        """Record nothing any more, let go of what was, and say why."""
        self.gave_up = reason
        self._shapes.clear()
        warnings.warn(
            f"training passes are not recorded as CUDA graphs: {reason}. They run unrecorded, which is slower where "
            "passes are short.",
            stacklevel=2,
        )


def _unused(places: Tensor, count: int) -> Tensor:
    """Return the first `count` positions of a batch that are not among `places`."""
    candidates = torch.arange(len(places) + count)
    return candidates[~torch.isin(candidates, places)][:count]


def _fill(known: _Shape, batch: Batch, weights: Tensor) -> None:
    """Copy a batch into the buffers of its shape."""
    for name in ("input_ids", "attention_mask", "labels", "places"):
        getattr(known.batch, name).copy_(getattr(batch, name))
    known.weights.copy_(weights)


def warn_of_memory(tokens: int) -> None:
    """Warn that passes of so many tokens are not recorded for want of memory."""
    warnings.warn(
        f"GPU memory leaves no room to record training passes of {tokens} tokens and more as CUDA graphs. They run "
        "unrecorded, which is slower where passes are short. Lower task.max_length or batch_size, or set "
        "model.quantization.",
        stacklevel=4,
    )


def launch_bound_tokens(model: nn.Module) -> int:
    """Return up to how many tokens a training pass takes longer to launch than to compute.

    A layer's forward and backward take 2.2 ms and more to launch; a large model on an H100 does some 3e11
    multiplications with its weights meanwhile, forward and again backward. Larger passes gain nothing by a recording,
    which costs two passes, keeps their activations' memory and is padded.
    """
    return tokens_of_work(4e11, *parameters_and_layers(model))


def checkpoints(model: nn.Module) -> bool:
    """Return whether any layer recomputes its activations in the backward pass."""
    return any(map(checkpointing, model.modules()))


def checkpointing(module: nn.Module) -> bool:
    """Return whether this layer recomputes its activations in the backward pass."""
    return getattr(module, "gradient_checkpointing", False) is True
