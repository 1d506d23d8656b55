"""Files and hub datasets as records; each record carries the words that say where it stands.

Formats: JSON lines, JSON (SQuAD nesting, CMRC's flat list, or a list of records), CSV, TSV, Parquet, and
`hf:NAME[:CONFIG]:SPLIT` through the optional `datasets` package. Nothing is skipped or repaired in silence.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingExtraError, first_line, nearest
from .squad import flatten

Row = tuple[str, Mapping[str, Any]]
"""Where a record stands (file and line or record number), and the record."""

HUB_PREFIX = "hf:"
_HUB = re.compile(r"hf:(?P<name>[^:]+)(?::(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(?:\[[^\]]*\])?)")
_LONGEST_CELL = 2**31 - 1


def read_rows(source: str) -> Iterator[Row]:
    """Yield the records of a file or hub dataset.

    Raises `DataError` when the source does not exist, is empty, cut off, not UTF-8 or of an unknown format,
    and `MissingExtraError` when it needs the `data` extra.
    """
    if source.startswith(HUB_PREFIX):
        yield from _hub_rows(source)
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(
            f"{source}: the format is told by the file's ending, and '{path.suffix}' is not known."
            f"{nearest(path.suffix, _READERS)} Use one of {known}, or hf:NAME[:CONFIG]:SPLIT."
        )
    content = read_bytes(path)
    if not content.strip():
        raise DataError(f"{path}: the file is empty. Give a file with at least one example.")
    yield from reader(path, content)


def read_bytes(path: Path) -> bytes:
    """Return a file's content; raises `DataError` when there is none or it cannot be read."""
    if path.is_dir():
        raise DataError(f"{path} is a folder. Give one file, for example {path / 'train.jsonl'}.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. Check the path; relative ones start at the working directory."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}). Check its permissions.") from None


def _decode(path: Path, content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{path}: the text is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the mark, so look the position up in what it was given.
        line = error.object[: error.start].count(b"\n") + 1
        if error.reason == "unexpected end of data":
            raise DataError(f"{path}, line {line}: the file was cut off inside a character. Fetch it again.") from None
        raise DataError(
            f"{path}, line {line}: the text is not UTF-8 "
            f"(byte 0x{error.object[error.start]:02x}: {error.reason}). "
            f"Convert it: iconv -f ITS-ENCODING -t UTF-8 {path.name} > utf8-{path.name}"
        ) from None


def _parse_json(text: str, where: str, *, last: bool) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = last and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"))
        if cut:
            raise DataError(
                f"{where}: the JSON ends in the middle of a value, so the file was cut off. Fetch it again."
            ) from None
        hint = (
            "If the file is JSON lines, call it .jsonl."
            if error.msg == "Extra data"
            else "Mend the text at that place."
        )
        raise DataError(
            f"{where}: not valid JSON ({error.msg}, line {error.lineno}, column {error.colno}). {hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not usable as JSON ({error}). Mend the file.") from None


def _jsonl_rows(path: Path, content: bytes) -> Iterator[Row]:
    # Not splitlines: U+2028 and friends may stand inside a JSON string.
    lines = _decode(path, content).rstrip().split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _mapping(where, _parse_json(line, where, last=number == len(lines)))


def _json_rows(path: Path, content: bytes) -> Iterator[Row]:
    tree = _parse_json(_decode(path, content), str(path), last=True)
    for where, record in flatten(tree, str(path)):
        yield where, _mapping(where, record)


def _mapping(where: str, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a record must be an object with named fields, got {type(record).__name__}.")
    return record


def _csv_rows(path: Path, content: bytes) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    old_limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield from _table_rows(path, _decode(path, content), delimiter)
    except csv.Error as error:
        cut = "the file was cut off inside a quoted cell" if "end of data" in str(error) else f"not valid CSV ({error})"
        raise DataError(f"{path}: {cut}. Mend the file or fetch it again.") from None
    finally:
        csv.field_size_limit(old_limit)


def _table_rows(path: Path, text: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) < len(header):
        raise DataError(f"{path}: the first row names a column twice ({', '.join(header)}). Rename one of them.")
    rows: list[Row] = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {len(cells)} cells under {len(header)} column names ({', '.join(header)}). "
                "Quote cells that hold the delimiter or a line break; a short last row means the file was "
                "cut off."
            )
        rows.append((where, dict(zip(header, cells, strict=True))))
    return rows


def _parquet_rows(path: Path, content: bytes) -> Iterator[Row]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        arrow_error: type[Exception] = importlib.import_module("pyarrow").ArrowException
    except ImportError:
        raise MissingExtraError("datasets", "data", f"Reading the Parquet file {path}") from None
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (arrow_error, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}). Fetch it again.") from None
    for number, record in enumerate(table.to_pylist(), start=1):
        yield f"{path}, record {number}", record


def _hub_rows(source: str) -> Iterator[Row]:
    match = _HUB.fullmatch(source)
    if match is None:
        raise DataError(
            f"{source}: a hub dataset is written hf:NAME[:CONFIG]:SPLIT, e.g. hf:xquad:xquad.ar:validation."
        )
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError("datasets", "data", f"Loading {source}") from None
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        dataset = datasets.load_dataset(match["name"], match["config"], split=match["split"])
    except failures as error:
        reason = first_line(error)
        raise DataError(
            f"{source}: the dataset cannot be loaded ({reason}). Check name, configuration, split and network."
        ) from None
    for number, record in enumerate(dataset, start=1):
        yield f"{source}, record {number}", record


_READERS: dict[str, Callable[[Path, bytes], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
