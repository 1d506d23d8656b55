"""Nested question-answering JSON as flat records.

Shapes: SQuAD (`data` / `paragraphs` / `qas`) as MLQA, XQuAD, CMRC 2018 and ARCD ship it; CMRC's older flat
list (`context_text` / `qas` / `query_text`); and a plain list of records, bare or under `data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import DataError

_OLD_CMRC = {"context_text": "context", "query_text": "question", "query_id": "id"}


def flatten(tree: Any, origin: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, record) for every question, or for every element of a plain list of records.

    Raises `DataError` when a level of the nesting is missing or of another type.
    """
    if isinstance(tree, Mapping):
        tree = _child(tree, "data", origin)
    if not isinstance(tree, list):
        raise DataError(f"{origin}: expected a list of records or SQuAD-format JSON, got {type(tree).__name__}.")
    for number, item in enumerate(tree):
        where = f"{origin}, data[{number}]"
        if isinstance(item, Mapping) and "paragraphs" in item:
            for index, paragraph in enumerate(_child(item, "paragraphs", where)):
                yield from _questions(paragraph, f"{where}.paragraphs[{index}]")
        elif isinstance(item, Mapping) and "qas" in item:
            yield from _questions(item, where)
        else:
            yield f"{origin}, record {number + 1}", item


def _child(node: Any, key: str, where: str) -> list[Any]:
    value = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(value, list):
        found = ", ".join(map(str, node)) if isinstance(node, Mapping) else type(node).__name__
        raise DataError(
            f"{where}: field '{key}' must be a list, as in SQuAD-format JSON (found: {found}). "
            "Give a file in that format, or a list of records."
        )
    return value


def _questions(paragraph: Any, where: str) -> Iterator[tuple[str, Any]]:
    for index, question in enumerate(_child(paragraph, "qas", where)):
        place = f"{where}.qas[{index}]"
        if not isinstance(question, Mapping):
            raise DataError(f"{place}: a question must be an object with named fields, got {type(question).__name__}.")
        context = {key: paragraph[key] for key in ("context", "context_text") if key in paragraph}
        yield place, {_OLD_CMRC.get(key, key): value for key, value in {**question, **context}.items()}
