"""Examples as token sequences: bos + prompt + answer + eos, cut in the document only.

Prompt and answer are tokenized separately, so the border between them is the same in training and
generation. A sequence that is too long loses the end of its document, never the question, the answer cue or
the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError, ModelError
from .examples import Example
from .prompts import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One more character may save tokens (a merge), so the search looks on until the text is clearly too long.
_LOOK_AHEAD = 16
_SLACK = 8


@dataclass(frozen=True)
class Encoded:
    """One token sequence; the first `prompt_length` tokens (bos included) are given, the rest is learnt."""

    id: str
    input_ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class CutReport:
    """How many of `examples` were cut and, of QA, how many lost every answer span by it.

    `longest` is the longest sequence before any cut, in tokens.
    """

    examples: int
    cut: int
    answer_lost: int
    longest: int

    def sentence(self, split: str, limit: int) -> str | None:
        """Return one line for the user, or None when nothing was cut."""
        if not self.cut:
            return None
        lost = f", {self.answer_lost} of them lost the answer span" if self.answer_lost else ""
        return (
            f"{split}: {self.cut} of {self.examples} documents were cut to {limit} tokens "
            f"(the longest has {self.longest}){lost}."
        )


@dataclass(frozen=True)
class EncodedSet:
    """The sequences of a split, in its order, and what was cut."""

    items: tuple[Encoded, ...]
    report: CutReport


def encode(examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedSet:
    """Return bos + prompt + first answer + eos of each example, at most `max_length` tokens long.

    Raises `DataError` when a sequence is too long even without its document, `ModelError` for a tokenizer
    without an end token.
    """
    eos = end_id(tokenizer)
    answers = _tokenize(tokenizer, [task.answer(example.answers[0]) for example in examples])
    return _encode(examples, task, tokenizer, max_length, [[*answer, eos] for answer in answers])


def encode_prompts(
    examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int
) -> EncodedSet:
    """Return bos + prompt of each example for generation, at most `max_prompt_length` tokens long."""
    return _encode(examples, task, tokenizer, max_prompt_length, [[] for _ in examples])


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the end token; raises `ModelError` when the tokenizer has none."""
    if not isinstance(tokenizer.eos_token_id, int):
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end token, so no answer could "
            "be learnt to end. Set eos_token in its tokenizer_config.json."
        )
    return tokenizer.eos_token_id


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token's id, the end token's where there is none: padding is masked everywhere."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else end_id(tokenizer)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _encode(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    answers: Sequence[Sequence[int]],
) -> EncodedSet:
    bos = [tokenizer.bos_token_id] if isinstance(tokenizer.bos_token_id, int) else []
    prompts = _tokenize(tokenizer, [task.prompt(example) for example in examples])
    items = []
    cut = lost = longest = 0
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        longest = max(longest, len(bos) + len(prompt) + len(answer))
        budget = limit - len(bos) - len(answer)
        kept = prompt
        if len(prompt) > budget:
            length, kept = _cut(example, task, tokenizer, budget)
            cut += 1
            lost += _answer_lost(example, length)
        ids = [*bos, *kept, *answer]
        items.append(Encoded(example.id, tuple(ids), len(bos) + len(kept)))
    return EncodedSet(tuple(items), CutReport(len(items), cut, lost, longest))


def _answer_lost(example: Example, length: int) -> bool:
    if example.question is None:
        return False
    present = [answer for answer in example.answers if answer in example.document]
    return bool(present) and not any(answer in example.document[:length] for answer in present)


def _cut(example: Example, task: Task, tokenizer: PreTrainedTokenizerBase, budget: int) -> tuple[int, list[int]]:
    """Return how many characters of the document stay, and the prompt's tokens with them."""
    head, tail = task.parts(example)

    def prompts(lengths: Sequence[int]) -> list[list[int]]:
        return _tokenize(tokenizer, [head + example.document[:length] + tail for length in lengths])

    empty = prompts([0])[0]
    if len(empty) > budget:
        raise DataError(
            f"example '{example.id}': prompt and answer need more than task.max_length allows even "
            f"without the document ({len(empty)} prompt tokens, {max(budget, 0)} left for them). "
            "Raise task.max_length, shorten task.prompt, or remove the example."
        )
    return longest_prefix(prompts, len(example.document), budget, empty)


def longest_prefix(
    prompts: Callable[[Sequence[int]], list[list[int]]], length: int, budget: int, empty: list[int]
) -> tuple[int, list[int]]:
    """Return the most document characters whose prompt has at most `budget` tokens, and that prompt.

    `prompts` tokenizes the prompt at each of several document lengths, `length` (the whole document) is too
    long, `empty` is the prompt at length 0 and fits. Bisection finds a border; behind it the search goes on
    character by character until `_LOOK_AHEAD` lengths in a row exceed the budget by more than `_SLACK`
    tokens.
    """
    best, kept, too_long = 0, empty, length
    while too_long - best > 1:
        middle = (best + too_long) // 2
        tokens = prompts([middle])[0]
        if len(tokens) <= budget:
            best, kept = middle, tokens
        else:
            too_long = middle
    start = best + 1
    while start < length:
        lengths = range(start, min(start + _LOOK_AHEAD, length))
        found = prompts(lengths)
        fitting = [position for position, tokens in zip(lengths, found, strict=True) if len(tokens) <= budget]
        if fitting:
            best = fitting[-1]
            kept = found[best - start]
        elif min(map(len, found)) > budget + _SLACK:
            break
        start = lengths[-1] + 1
    return best, kept
