"""How many tokens a training pass may hold."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import SpeedConfig, TrainingConfig
from ..data import Encoded


def pass_tokens(speed: SpeedConfig, training: TrainingConfig, items: Sequence[Encoded]) -> int | None:
    """Return the most tokens of a packed pass, padding included; None where passes hold `batch_size` examples.

    Without `speed.tokens_per_pass`, it is what `batch_size` of the longest example hold: `batch_size` says what fits
    into memory, and packing must not need more. Activations follow the tokens; logits, of answer positions only, follow
    the number of examples, so that a pass of many short examples needs more for those.
    """
    if not speed.pack_accumulation:
        return None
    if speed.tokens_per_pass is not None:
        return speed.tokens_per_pass
    if training.accumulation == 1:
        return None
    return training.batch_size * max((len(item.input_ids) for item in items), default=1)


def largest_pass(speed: SpeedConfig, training: TrainingConfig, items: Sequence[Encoded]) -> tuple[int, int]:
    """Return the most tokens, padding included, and the most answer positions that one training pass can hold."""
    lengths = sorted(len(item.input_ids) for item in items)
    if not lengths:
        return 0, 0
    answer = max(len(item.input_ids) - item.prompt_length for item in items)
    budget = pass_tokens(speed, training, items)
    if budget is None:
        width = min(training.batch_size, len(lengths))
        return width * lengths[-1], width * answer
    size = min(training.batch_size * training.accumulation, len(lengths))
    fitting = [count for count in range(1, size + 1) if count * lengths[count - 1] <= budget]
    return max(lengths[-1], min(budget, size * lengths[-1])), max(fitting, default=1) * answer
