"""Files that are either the old one or the whole new one, never half of it.

Every write goes to a temporary file in the same folder, is flushed to the disk, and then takes the final
name in one step. A full disk, a missing permission or a vanished folder is a `RunError` that says what to
do; the file that was there before is untouched.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunError

TEMPORARY_SUFFIX = ".tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_counter = itertools.count()


@contextmanager
def disk_errors(path: str | Path, kept: str = "What was saved before is untouched") -> Iterator[None]:
    """Turn an `OSError` of the block into a `RunError` about `path`; `kept` says what the user still has."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunError(
                f"no space left while writing {path}. {kept}. Free space on that disk, or give another "
                "run.dir, "
                "then continue with --resume."
            ) from error
        if error.errno in _FORBIDDEN:
            raise RunError(
                f"{path} may not be written ({error.strerror}). {kept}. Give a folder you may write to."
            ) from error
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}). {kept}. Check the path and the disk."
        ) from error


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` in one step, making its folder if needed; on `RunError` the old file stays."""
    path, temporary = Path(path), _temporary(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_bytes_synced(temporary, data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _temporary(path: str | Path) -> Path:
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}{TEMPORARY_SUFFIX}")


def require_writable(path: str | Path) -> None:
    """Raise `RunError` unless a file could be written at `path`; makes its folder and leaves nothing in it."""
    path, temporary = Path(path), _temporary(path)
    with disk_errors(path, kept="Nothing was written"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is no folder") from None
        try:
            write_bytes_synced(temporary, b"")
        finally:
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` in one step; on `RunError` the old file stays."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as strict JSON in one step, as `to_json` does; the old file stays on `RunError`."""
    write_text_atomic(path, to_json(value, indent=indent) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the JSON value in `path`; raises `RunError` when the file is missing, unreadable or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist. Was the run started, and is the path right?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read as UTF-8 text ({error}). Check the file and its permissions.") from None
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}). The file was changed or damaged "
            "after it was "
            "written; restore it or run that stage again."
        ) from None


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON of plain types, floats exact (shortest form that reads back to the same bits).

    JSON has no word for a number that is not finite: those become the strings "NaN", "Infinity" and
    "-Infinity", which `float()` reads. A key that is not a string raises `TypeError`, since it would come
    back as another type.
    """
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False, indent=indent)


def check_keys(value: Any, where: str = "value") -> None:
    """Raise `TypeError` when a mapping anywhere inside `value` has a key that is not a string."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is {type(key).__name__}; JSON would turn it into a string")
            check_keys(child, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            check_keys(child, f"{where}[{index}]")


def _strict(value: Any) -> Any:
    check_keys(value)
    return _finite(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return value


def write_bytes_synced(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until the disk has it; raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of names; a no-op where folders cannot be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        }:  # some network file systems refuse it
            raise
    finally:
        os.close(descriptor)
