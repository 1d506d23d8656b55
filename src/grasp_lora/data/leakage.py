"""Checks between splits: no text in two of them, and a micro-dev set that is what it claims to be."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence, Sized
from itertools import combinations

from ..errors import DataError
from .examples import Example


def text_key(text: str) -> bytes:
    """Return a digest that is equal for texts that differ in Unicode form or white space only."""
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    return hashlib.sha256(plain.encode("utf-8")).digest()[:16]


def check_leakage(splits: Mapping[str, Sequence[Example]], allow: bool = False) -> list[str]:
    """Raise `DataError` when a document is in two splits; with `allow`, return one warning per pair.

    Question answering shares contexts, summarization articles; another question on the same context is
    leakage too.
    """
    documents = {name: _by_document(examples) for name, examples in splits.items()}
    found = []
    for first, second in combinations(documents, 2):
        shared = [key for key in documents[first] if key in documents[second]]
        if shared:
            here, there = documents[first][shared[0]], documents[second][shared[0]]
            found.append(
                f"splits {first} and {second} share {len(shared)} document{'s' if len(shared) > 1 else ''} "
                f"(for example '{here}' in {first} and '{there}' in {second})"
            )
    if found and not allow:
        raise DataError(
            f"Leakage: {'; '.join(found)}. Remove them from one split, draw new ones with "
            "`grasp-lora data prepare`, or go on all the same with data.allow_leakage=true."
        )
    return [f"Leakage allowed: {sentence}." for sentence in found]


def _by_document(examples: Sequence[Example]) -> dict[bytes, str]:
    keys: dict[bytes, str] = {}
    for example in examples:
        keys.setdefault(text_key(example.document), example.id)
    return keys


def check_micro_dev(examples: Sized | None, asked: int, origin: str = "data.target.micro_dev") -> None:
    """Raise `DataError` when micro-dev is missing, empty, or larger than `asked` (`data.micro_dev_size`)."""
    if examples is None:
        raise DataError(f"{origin} is not set. Name its file; it is never taken from another split.")
    if not len(examples):
        raise DataError(
            f"{origin} is empty. The controller needs at least one example; it takes none from another split."
        )
    if len(examples) > asked:
        raise DataError(
            f"{origin} has {len(examples)} examples, but data.micro_dev_size is {asked}. "
            f"Set data.micro_dev_size={len(examples)} or cut the file to {asked}."
        )
