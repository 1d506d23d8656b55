"""How many tokens a training pass may hold, which lengths it is padded to, and what its answer tokens weigh."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..config import SpeedConfig, TrainingConfig
from ..data import Encoded, joined_chunks, packed

# Most tokens of a packed pass on a GPU, where no setting says so and memory allows: by then the matrix products of a
# large model are bound by arithmetic, and more would only need more memory.
GPU_TOKENS = 4096
# Most places of a joined pass inside attention, where its sequences are padded, for each token of its budget.
PLACES = 2


def pass_tokens(
    speed: SpeedConfig, training: TrainingConfig, items: Sequence[Encoded], *, on_gpu: bool = False
) -> int | None:
    """Return the most tokens of a packed pass, padding included; None where passes hold `batch_size` examples.

    Without `speed.tokens_per_pass`, it is what `batch_size` of the longest example hold: `batch_size` says what fits
    into memory, and packing must not need more. Activations follow the tokens, those inside attention the places, of
    which joined passes may have PLACES times as many; logits, of answer positions only, follow the number of examples,
    so that a pass of many short examples needs more for those. On a GPU a pass may hold up to
    GPU_TOKENS; the trainer lowers that to what its memory holds (`TrainingPass.settle`).
    """
    if not speed.pack_accumulation:
        return None
    if speed.tokens_per_pass is not None:
        return speed.tokens_per_pass
    if training.accumulation == 1:
        return None
    sure = training.batch_size * max((len(item.input_ids) for item in items), default=1)
    return max(sure, GPU_TOKENS) if on_gpu else sure


def cut_update(
    lengths: Sequence[int],
    training: TrainingConfig,
    tokens: int | None,
    *,
    padded: bool = True,
    places: int = PLACES,
) -> list[list[int]]:
    """Return the passes of an update's examples, as positions; `tokens` is what `pass_tokens` says.

    Passes that are not `padded` have at most so many `places` inside attention for each token of it.
    """
    if tokens is not None:
        return packed(lengths, tokens) if padded else joined_chunks(lengths, tokens, places * tokens)
    width = training.batch_size
    return [list(range(start, min(start + width, len(lengths)))) for start in range(0, len(lengths), width)]


def typical_tokens(training: TrainingConfig, items: Sequence[Encoded], budget: int | None) -> float:
    """Return how many tokens a pass under a budget holds (None: of `batch_size` examples), for those of mean length."""
    tokens = _together(training, items, budget) * sum(len(item.input_ids) for item in items) / max(1, len(items))
    return tokens if budget is None else min(tokens, budget)


def most_tokens(training: TrainingConfig, items: Sequence[Encoded], budget: int | None) -> int:
    """Return the most tokens, padding included, that a pass under a budget can hold (None: of `batch_size` examples).

    An example that is longer than the budget makes a pass by itself.
    """
    longest = max((len(item.input_ids) for item in items), default=0)
    most = _together(training, items, budget) * longest
    return most if budget is None else max(longest, min(budget, most))


def _together(training: TrainingConfig, items: Sequence[Encoded], budget: int | None) -> int:
    """Return how many examples may be in one pass, as far as their number says."""
    return min(len(items), training.batch_size * (training.accumulation if budget is not None else 1))


def largest_pass(
    speed: SpeedConfig, training: TrainingConfig, items: Sequence[Encoded], *, on_gpu: bool = False
) -> tuple[int, int]:
    """Return the most tokens, padding included, and the most answer positions that one training pass can hold."""
    if not items:
        return 0, 0
    budget = pass_tokens(speed, training, items, on_gpu=on_gpu)
    count = _together(training, items, budget)
    if budget is not None:
        shortest = sorted(len(item.input_ids) for item in items)[:count]
        count = min(count, max(1, sum(tokens <= budget for tokens in accumulate(shortest))))
    answer = max(len(item.input_ids) - item.prompt_length for item in items)
    return most_tokens(training, items, budget), count * answer


def most_places(training: TrainingConfig, lengths: Sequence[int], budget: int) -> int:
    """Return the most places inside attention of a joined pass under a budget: its sequences times the longest."""
    ascending, most = sorted(lengths), training.batch_size * training.accumulation
    below, found = [0, *accumulate(ascending)], 0
    for shorter, longest in enumerate(ascending):  # with as many of the shortest as may be
        room = max(0, bisect_right(below, budget - longest, 1, shorter + 1) - 1)
        count = max(1, min(most, room + 1, PLACES * budget // longest))
        found = max(found, count * longest)
    return found


def answer_tokens(item: Encoded) -> int:
    """Return how many tokens of an example count in its loss; the first of all has no predecessor."""
    return len(item.input_ids) - max(item.prompt_length, 1)


def answer_weights(items: Sequence[Encoded], count: int, dtype: torch.dtype) -> Tensor:
    """Return what each answer token of `items` weighs, shape (N,), when an example counts 1 / `count`."""
    sizes = torch.tensor([answer_tokens(item) for item in items])
    return torch.repeat_interleave(1.0 / (sizes.to(dtype) * count), sizes)


def padded_width(widths: Sequence[int], length: int) -> int:
    """Return the first of ascending `widths` that holds `length`, or `length` itself where none does."""
    return next((width for width in widths if width >= length), length)


def row_multiple(tokens: int, budget: int | None) -> int:
    """Return what the length of a row of `tokens` joined tokens is rounded up to a multiple of.

    It is a power of two, a sixteenth of them or less, so that rows have few lengths; or `budget`, which the row then
    fills, where it would be longer otherwise.
    """
    step = 1 << max(0, (tokens // 16).bit_length() - 1)
    rounded = -(-tokens // step) * step
    return budget if budget is not None and tokens <= budget < rounded else step


def few_widths(lengths: Sequence[int], count: int, multiple: int = 8) -> list[int]:
    """Return at most `count` lengths to which padding `lengths` costs the fewest tokens.

    They are multiples of `multiple`, or the longest of all.
    """
    longest = max(lengths, default=0)  # a model may have no positions beyond
    found = Counter(min(longest, -(-length // multiple) * multiple) for length in lengths)
    sizes = sorted(found)
    below = [0, *accumulate(found[size] for size in sizes)]  # how many sequences the k shortest sizes have
    # best[k]: tokens with padding, and widths, of the k shortest sizes; every turn allows one width more.
    best: list[tuple[int, list[int]]] = [(0, [])]
    best += [(below[k] * sizes[k - 1], [sizes[k - 1]]) for k in range(1, len(sizes) + 1)]
    for _ in range(count - 1):
        best = [(0, [])] + [
            min(
                (best[j][0] + (below[k] - below[j]) * sizes[k - 1], [*best[j][1], sizes[k - 1]])
                for j in range(k)
            )
            for k in range(1, len(sizes) + 1)
        ]  # fmt: skip
    return best[-1][1]
