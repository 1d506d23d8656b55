"""Examples: one document with a question and its answers, or with its summary, from whatever the user has."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import ConfigError, DataError, nearest
from .readers import Row, read_rows

TaskName = Literal["qa", "summarization"]

# Role -> the column names that are looked for, in this order.
_COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "qa": {
        "id": ("id",),
        "document": ("context",),
        "question": ("question",),
        "answers": ("answers", "answer"),
    },
    "summarization": {"id": ("id",), "document": ("text", "article"), "answers": ("summary",)},
}


@dataclass(frozen=True)
class Example:
    """One example; for summarization `document` is the article and `answers` holds the summary alone.

    `document` is the text as it was found; question and answers have lost white space at their ends.
    Training uses `answers[0]`, scoring the best of all.
    """

    id: str
    document: str
    question: str | None
    answers: tuple[str, ...]


def load_examples(
    source: str, task: TaskName, fields: Mapping[str, str] | None = None, *, answered: bool = True
) -> list[Example]:
    """Return the examples of a file or of `hf:NAME[:CONFIG]:SPLIT`.

    `fields` maps this package's field names to the user's columns, e.g. `{"article": "body"}`. Raises
    `DataError` naming file, line or record, field and rule; `MissingExtraError` where the `data` extra is
    needed. With `answered=False`, for generation, answers are not looked at and come back empty.
    """
    return _examples(read_rows(source), task, fields or {}, source, answered)


def examples_from_records(
    records: Iterable[Mapping[str, Any]],
    task: TaskName,
    fields: Mapping[str, str] | None = None,
    origin: str = "records",
) -> list[Example]:
    """Return the examples of a list of dicts or a `datasets.Dataset`; `origin` names them in errors.

    Answers may be one string, a list of strings (also as JSON in a string), or SQuAD's
    `{"text": [...], "answer_start": [...]}`.
    """
    rows = ((f"{origin}, record {number}", record) for number, record in enumerate(records, start=1))
    return _examples(rows, task, fields or {}, origin)


def to_record(example: Example) -> dict[str, Any]:
    """Return an example as the record that `load_examples` reads back."""
    if example.question is None:
        return {"id": example.id, "text": example.document, "summary": example.answers[0]}
    return {
        "id": example.id,
        "context": example.document,
        "question": example.question,
        "answers": list(example.answers),
    }


def with_unique_ids(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with `#2`, `#3`, ... behind an id that an earlier one already has."""
    taken = {example.id for example in examples}
    seen: Counter[str] = Counter()
    unique = []
    for example in examples:
        seen[example.id] += 1
        number, name = seen[example.id], example.id
        while number > 1 and (name == example.id or name in taken):
            name = f"{example.id}#{number}"
            number += 1
        taken.add(name)
        unique.append(example if name == example.id else replace(example, id=name))
    return unique


def _examples(
    rows: Iterable[Row], task: TaskName, fields: Mapping[str, str], origin: str, answered: bool = True
) -> list[Example]:
    columns = _columns(task, fields)
    if not answered:
        columns["answers"] = ()
    examples = [_example(where, record, columns) for where, record in rows]
    if not examples:
        raise DataError(f"{origin}: there is no example in it. Give at least one.")
    return with_unique_ids(examples)


def _columns(task: TaskName, fields: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the columns of every role, the user's own in place of the usual ones; raises `ConfigError`."""
    columns = dict(_COLUMNS[task])
    role_of = {name: role for role, names in columns.items() for name in names}
    for name, column in fields.items():
        if name not in role_of:
            raise ConfigError(
                f"data.fields: '{name}' is no field of task {task}.{nearest(name, role_of)} "
                f"Map one of {', '.join(role_of)} to your own column's name."
            )
        columns[role_of[name]] = (column,)
    return columns


def _example(where: str, record: Mapping[str, Any], columns: Mapping[str, tuple[str, ...]]) -> Example:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a record must be a mapping of field names to values, got {type(record).__name__}.")
    document = _text(where, *_field(where, record, columns["document"]))
    question = None
    if "question" in columns:
        question = _text(where, *_field(where, record, columns["question"])).strip()
    answers: tuple[str, ...] = ()
    if columns["answers"]:
        name, value = _field(where, record, columns["answers"])
        several = question is not None
        answers = _answers(where, name, value) if several else (_text(where, name, value).strip(),)
    return Example(_identity(where, record, columns["id"][0], document, question), document, question, answers)


def _field(where: str, record: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if name in record:
            return name, record[name]
    wanted = " or ".join(f"'{name}'" for name in names)
    found = ", ".join(map(str, record)) or "nothing"
    raise DataError(
        f"{where}: field {wanted} is missing (found: {found}). Add it, or name your own column with "
        f"data.fields.{names[0]}=COLUMN."
    )


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{name}' must be text, got {_shown(value)}. Mend or remove the record.")
    if not value.strip():
        raise DataError(f"{where}: field '{name}' is empty. Fill it or remove the record.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: field '{name}' holds half of a surrogate pair (such as \\ud83d alone). "
            "Write the whole character or remove it."
        ) from None
    return value


def _answers(where: str, name: str, value: Any) -> tuple[str, ...]:
    value = _from_json(value) if isinstance(value, str) else _plain(value)
    if isinstance(value, Mapping):
        name, value = _answer_text(where, name, value)
    texts = value if isinstance(value, (list, tuple)) else [value]
    if not texts:
        raise DataError(
            f"{where}: field '{name}' has no answer. Remove questions without an answer (SQuAD 2.0 has such)."
        )
    found = []
    for text in texts:
        place, content = _answer_text(where, name, text) if isinstance(text, Mapping) else (name, text)
        found.append(_text(where, place, content).strip())
    if any(text.startswith(("{'text'", '{"text"')) for text in found):
        raise DataError(f"{where}: field '{name}' holds a printed dictionary, not an answer. Write the answer's text.")
    return tuple(dict.fromkeys(found))


def _answer_text(where: str, name: str, answer: Mapping[str, Any]) -> tuple[str, Any]:
    field, value = _field(where, answer, ("text",))
    return f"{name}.{field}", _plain(value)


def _from_json(text: str) -> Any:
    """Return a list or object of answers that a table's cell holds as JSON; any other text is one answer."""
    if text.startswith(('["', '{"')):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _plain(value: Any) -> Any:
    """Return arrays (a data frame's list columns) as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _identity(where: str, record: Mapping[str, Any], name: str, document: str, question: str | None) -> str:
    """Return the record's id, or one that its content alone decides."""
    value = record.get(name)
    if value is None:
        content = "\x1f".join([document, question or ""]).encode("utf-8")
        return hashlib.sha256(content).hexdigest()[:16]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{where}: field '{name}' must be text or a whole number, got {_shown(value)}.")
    return _text(where, name, str(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
