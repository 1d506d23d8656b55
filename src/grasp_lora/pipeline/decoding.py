"""Greedy decoding with a cache of fixed size: on a GPU the step of one token is captured once and replayed.

A step of one token is bound by launches, some hundreds of small kernels each. Everything a step reads lies in buffers
that keep their place (tokens, positions, mask, keys and values), so that one CUDA graph serves every token of every
batch. The same steps run without a graph elsewhere, which is how they are tested.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from ..errors import first_line
from ..probing.attention import unmasked
from ..probing.loss import gatherable_head, gathered, keeps_logits
from ..training.recorder import CudaRecorder

LOOK_EVERY = 4  # tokens between looks whether all rows have ended; each look waits for the device
_ALIGN = 64  # widths of masks that attention kernels take as they are
_ATTENTION = ("sdpa", "eager")


def obstacle(model: nn.Module) -> str | None:
    """Return why a model cannot decode with a cache of fixed size here, or None when it can."""
    base = bare(model)
    if next(base.parameters()).device.type != "cuda":
        return "not on a GPU"
    return unsuited(base)


def unsuited(model: nn.Module) -> str | None:
    """Return what in the model's own make keeps it from it, whatever the device: its attention or its cache."""
    base: Any = bare(model)
    kind = base.config._attn_implementation
    if kind not in _ATTENTION:
        return f"attention {kind} takes no mask of its own"
    layers: list[Any] = StaticCache(config=base.config, max_cache_len=1).layers
    if not all(type(layer) is StaticLayer for layer in layers):
        return f"{type(base).__name__} has layers that do not attend to all tokens"
    if not all(isinstance(layer.cumulative_length, Tensor) for layer in layers):
        return "the cache of this transformers version keeps its length on the host; 5.17 and later do not"
    return None


def bare(model: nn.Module) -> nn.Module:
    """Return the model below a PEFT wrapper, whose layers stay in place; any other model as it is."""
    below: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return below


class StaticDecoder:
    """Continues batches of at most `rows` prompts of at most `longest` tokens by at most `new` tokens.

    Every batch runs as `rows` rows, repeated where there are fewer prompts. The factors of an injection, if any, must
    stay the same objects while this lives. `ends` are the tokens that end an answer (none: every answer has `new`
    tokens). With `capture`, the step is captured as a CUDA graph with the first batch; `note` says why it was not.
    """

    def __init__(
        self, model: nn.Module, rows: int, longest: int, *, new: int, ends: Sequence[int], capture: bool
    ) -> None:
        base: Any = bare(model)
        weight: Tensor = next(base.parameters())
        self._model = base
        device, self._rows, self._new = weight.device, rows, new
        self._width = -(-(longest + new) // _ALIGN) * _ALIGN
        self._shut = torch.finfo(weight.dtype).min
        self._cache: Any = StaticCache(config=base.config, max_cache_len=self._width)
        self._ends = torch.tensor(list(ends), dtype=torch.long, device=device)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._mask = torch.zeros(rows, 1, 1, self._width, dtype=weight.dtype, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)  # where the next token's keys and values go
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._done = torch.zeros(rows, dtype=torch.bool, device=device)
        self._out = torch.zeros(rows, new, dtype=torch.long, device=device)
        self._capture = capture
        self._replay: Callable[[], None] | None = None
        self.note: str | None = None

    @property
    def captured(self) -> bool:
        """Return whether the step runs as a graph."""
        return self._replay is not None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the new token ids of each prompt, (at most `new`); what follows a row's end is of no meaning."""
        self._prefill([prompts[row % len(prompts)] for row in range(self._rows)])
        if self._capture and self._new > 1:
            self._record()
        written = 1
        while written < self._new and not (written % LOOK_EVERY == 0 and len(self._ends) and bool(self._done.all())):
            self._advance()
            written += 1
        rows: list[list[int]] = self._out[: len(prompts), :written].tolist()
        return rows

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts, padded on the right, into the cache and write every row's first token.

        Padding lies behind the prompt, where no token of it looks; later tokens find it masked.
        """
        width, device = max(map(len, prompts)), self._tokens.device
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(list(prompt))
        lengths = torch.tensor([[len(prompt)] for prompt in prompts])
        ids, lengths = ids.to(device), lengths.to(device)
        slots = torch.arange(self._width, device=device)
        self._cache.reset()
        self._mask[:, 0, 0] = torch.zeros_like(self._mask[:, 0, 0]).masked_fill(slots >= lengths, self._shut)
        self._done.zero_()
        self._column.zero_()
        self._slot.fill_(width)
        self._positions.copy_(lengths - 1)
        self._write(self._prompt_logits(ids, lengths[:, 0] - 1))

    def _prompt_logits(self, ids: Tensor, last: Tensor) -> Tensor:
        """Return the logits (B, V) at the token `last` (B,) of each row of `ids` (B, W)."""
        rows, width = torch.arange(len(ids), device=ids.device), ids.shape[1]
        head, low = gatherable_head(self._model), 0
        if head is not None:
            with gathered(head, rows * width + last):
                cut = self._read(ids)
            if cut.shape[:2] == (1, len(ids)):
                return cut[0]
            self._cache.reset()  # the head that the model names is not where its logits come from
        window = {}
        if keeps_logits(self._model):  # whole rows then, as few of their tokens as will do
            low = int(last.min())
            window = {"logits_to_keep": torch.arange(low, width, device=ids.device)}
        return self._read(ids, **window)[rows, last - low]

    def _read(self, ids: Tensor, **window: Tensor) -> Tensor:
        """Read prompts `ids` (B, W) into an empty cache and return the model's logits."""
        width = ids.shape[1]
        with unmasked(self._model, width) as free, _own_keys(self._cache):
            logits: Tensor = self._model(
                input_ids=ids, attention_mask=None if free else self._causal(width),
                position_ids=torch.arange(width, device=ids.device)[None], past_key_values=self._cache, use_cache=True,
                **window,
            ).logits  # fmt: skip
        return logits

    def _causal(self, width: int) -> Tensor:
        """Return the mask (1, 1, W, W) of a prefill."""
        shut = torch.full((width, width), self._shut, dtype=self._mask.dtype, device=self._mask.device)
        return shut.triu(1)[None, None]

    def _write(self, logits: Tensor) -> None:
        """Append every row's likeliest token; all in place, and nothing is read by the host."""
        token = logits.argmax(dim=-1)
        self._out.index_copy_(1, self._column, token[:, None])
        self._done |= (token[:, None] == self._ends).any(dim=1)
        self._tokens.copy_(token[:, None])
        self._positions.add_(1)
        self._column.add_(1)

    def _step(self) -> Tensor:
        """Read every row's newest token and write the next (B, 1)."""
        self._mask.index_fill_(3, self._slot, 0.0)
        self._slot.add_(1)
        out = self._model(
            input_ids=self._tokens, attention_mask=self._mask, position_ids=self._positions,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        self._write(out.logits[:, -1])
        return self._tokens

    def _advance(self) -> None:
        if self._replay is None:
            self._step()
        else:
            self._replay()

    def _record(self) -> None:
        """Capture the step, once; the state is put back, since warming up takes steps of its own."""
        self._capture = False
        moved = [self._tokens, self._positions, self._mask, self._slot, self._column, self._done, self._out]
        moved += [layer.cumulative_length for layer in self._cache.layers]
        saved = [tensor.clone() for tensor in moved]
        try:
            self._replay = self._captured()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what a kernel that may not be captured raises
            self.note = f"one token's step cannot be captured ({first_line(error)})"
            warnings.warn(f"speed.static_cache: {self.note}; it runs as it is, which is slower.", stacklevel=3)
        for tensor, before in zip(moved, saved, strict=True):
            tensor.copy_(before)

    def _captured(self) -> Callable[[], None]:
        """Return what replays the step; one beforehand lets libraries choose kernels and take their memory."""
        with torch.cuda.device(self._tokens.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step()
            torch.cuda.current_stream().wait_stream(side)
        replay, _ = CudaRecorder(self._tokens.device)(self._step)
        return replay


@contextmanager
def _own_keys(cache: Any) -> Iterator[None]:
    """Let a pass attend to its own keys and values alone, which the cache keeps: there are no earlier ones."""

    def kept(update: Callable[..., object]) -> Callable[..., tuple[Tensor, Tensor]]:
        def keep(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            update(keys, values, *args, **kwargs)
            return keys, values

        return keep

    for layer in cache.layers:
        layer.update = kept(layer.update)
    try:
        yield
    finally:
        for layer in cache.layers:
            del layer.update
