"""What the text metrics share: the primary language of a code, and which characters are punctuation."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from functools import cache

from ..errors import DataError

_ASCII_PUNCTUATION = frozenset(string.punctuation)


def primary_language(code: str) -> str:
    """Return the primary subtag in lower case: `zh` for `zh-Hans` or `zh_CN`."""
    return code.replace("_", "-").split("-")[0].lower()


@cache
def is_punctuation(character: str) -> bool:
    """Return whether the character is of a Unicode category P* or one of ASCII's (`$+<=>^`|~` too)."""
    return character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")


def check_lengths(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise `ValueError` unless every prediction has references, `DataError` when there is none to score."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but references for {len(references)} examples")
    if not predictions:
        raise DataError("there are no examples to score. Give a split that has some.")
    for index, group in enumerate(references):
        if isinstance(group, str):
            raise ValueError(f"references[{index}] is one string; each example has a sequence of references")
        if not group:
            raise DataError(f"example {index} has no reference to score against. Give it at least one answer.")
