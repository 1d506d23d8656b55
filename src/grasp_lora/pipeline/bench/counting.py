"""What a piece of a run has to compute and to move at least: floating-point operations and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from ...data import Encoded
from .clock import Ceilings
from .workloads import Workload, body_parameters


@dataclass(frozen=True)
class Work:
    """Operations of the body's weights alone (`body_flops`, the floor), all operations, and bytes moved at least.

    All operations are those of the body, of causal attention, of the head on answer positions and of the adapters.
    Bytes are the weights once per forward and once per backward, and keys and values of a cache.
    """

    body_flops: float
    flops: float
    bytes: float

    def row(self, ceilings: Ceilings, measured: float) -> dict[str, Any]:
        """Return a row of the roofline table, seconds at either ceiling and as measured."""
        floor = self.body_flops / ceilings.flops
        by_flops, by_bytes = self.flops / ceilings.flops, self.bytes / ceilings.bytes
        return {
            **asdict(self), "flops_s": by_flops, "bytes_s": by_bytes, "floor_s": floor, "measured_s": measured,
            "ratio": measured / floor if floor else None, "bound_by": "FLOP" if by_flops >= by_bytes else "bytes",
            "of_roofline": measured / max(by_flops, by_bytes) if by_flops + by_bytes else None,
        }  # fmt: skip


class Counter:
    """Counts the work of passes of one model with adapters of one shape."""

    def __init__(self, model: PreTrainedModel, trainable: int) -> None:
        settings: Any = model.config
        self._body, self._trainable = body_parameters(model), trainable
        self._width, self._layers = int(model.dtype.itemsize), int(settings.num_hidden_layers)
        self._hidden, self._vocabulary = int(settings.hidden_size), int(settings.vocab_size)
        heads = int(settings.num_attention_heads)
        head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // heads
        self._attention = heads * head_dim
        self._keys = 2 * settings.num_key_value_heads * head_dim * self._layers * self._width  # bytes a token

    @property
    def body(self) -> int:
        """Return the number of body parameters."""
        return self._body

    def forward(self, items: Sequence[Encoded], times: int = 1) -> Work:
        """Return the work of one pass over sequences, each `times` over (one for each candidate)."""
        tokens, answers, squares = self._sizes(items)
        body = 2.0 * self._body * tokens * times
        rest = (
            2.0 * self._head(answers) + 2.0 * self._attention * self._layers * squares + 2.0 * self._trainable * tokens
        )
        return Work(body, body + times * rest, self._weights())

    def training(self, items: Sequence[Encoded]) -> Work:
        """Return the work of one update over sequences, forward and backward.

        Frozen weights need the gradient of their input only, so twice the forward; attention and adapters need three
        times theirs.
        """
        tokens, answers, squares = self._sizes(items)
        body = 4.0 * self._body * tokens
        rest = (
            4.0 * self._head(answers) + 6.0 * self._attention * self._layers * squares + 6.0 * self._trainable * tokens
        )
        return Work(body, body + rest, 2.0 * self._weights())

    def generation(self, size: Workload) -> Work:
        """Return the work of answering one batch: the prompts, and one step per further token."""
        prompts, steps = size.generated * size.prompt, size.new_tokens - 1
        tokens = prompts + size.generated * steps
        body = 2.0 * self._body * tokens
        seen = sum(size.prompt + i for i in range(1, steps + 1))  # tokens a step looks back at, over all steps
        attention = 2.0 * self._attention * self._layers * size.generated * (size.prompt**2 + 2 * seen)
        head = 2.0 * self._head(size.generated * size.new_tokens)
        moved = size.new_tokens * self._weights() + size.generated * self._keys * (size.prompt + seen)
        return Work(body, body + attention + head + 2.0 * self._trainable * tokens, moved)

    def _head(self, tokens: int) -> float:
        return float(self._hidden) * self._vocabulary * tokens

    def _weights(self) -> float:
        return float(self._width) * (self._body + self._hidden * self._vocabulary)

    def _sizes(self, items: Sequence[Encoded]) -> tuple[int, int, int]:
        """Return tokens, answer positions, and the sum of squared lengths (causal attention does half of each)."""
        lengths = [len(item.input_ids) for item in items]
        return (
            sum(lengths),
            sum(n - item.prompt_length for n, item in zip(lengths, items, strict=True)),
            sum(n * n for n in lengths),
        )
