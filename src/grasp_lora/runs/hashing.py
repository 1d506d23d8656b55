"""SHA-256 of files and folders, and paths reduced to names: records speak of content, not of machines."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import RunError

_SKIPPED_FOLDERS = {"__pycache__"}
# A path inside a longer argument: it starts the text or follows one of `=,:;([{"'` or a blank.
_EMBEDDED = re.compile(r"""(?<![^\s=,:;(\[{"'])(?:~[\w.-]*/|/(?!/)|[A-Za-z]:[\\/])[^\s,;:"'()\[\]{}]+""")


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex; raises `RunError` when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read to hash it ({error.strerror}). Check the path and its permissions."
        ) from None


def hash_folder(path: str | Path, suffixes: Sequence[str] | None = None) -> str:
    """Return one SHA-256 over the names and contents of all files below a folder, in hex.

    Names are relative, sorted and with forward slashes, so the folder's own place and name do not count.
    Hidden files and folders and `__pycache__` are left out; with `suffixes` given (such as `.py`), only
    files that end so count. Raises `RunError` when the folder is missing or a file cannot be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise RunError(f"{root} is not a folder, so it cannot be hashed. Check the path.")
    digest = hashlib.sha256()
    for name in sorted(_relative_names(root)):
        if suffixes is None or name.endswith(tuple(suffixes)):
            digest.update(f"{name}\0{hash_file(root / name)}\n".encode())
    return digest.hexdigest()


def hash_path(path: str | Path) -> str | None:
    """Return `hash_file` or `hash_folder` of what is at `path`, or None when nothing is there."""
    path = Path(path)
    if path.is_dir():
        return hash_folder(path)
    return hash_file(path) if path.is_file() else None


def portable(value: Any) -> Any:
    """Return a copy of nested JSON types in which every absolute path is reduced to its last name.

    Texts that merely contain slashes stay: a path must start with `/`, `~` or a drive letter and have two
    parts or exist.
    """
    if isinstance(value, str):
        return _portable_text(value)
    if isinstance(value, Mapping):
        return {str(key): portable(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(child) for child in value]
    return value


def _relative_names(root: Path) -> list[str]:
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS and not name.startswith(".")]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return names


def _portable_text(text: str) -> str:
    if _is_machine_path(text):
        return _last_name(text)
    key, equals, tail = text.partition("=")
    if equals and _is_machine_path(tail):  # a path with blanks after --set name=
        return f"{key}={_last_name(tail)}"
    return _EMBEDDED.sub(lambda match: _last_name(match[0]) if _is_machine_path(match[0]) else match[0], text)


def _is_machine_path(text: str) -> bool:
    text = text.removeprefix("file://")
    if not text or "\n" in text or "://" in text:
        return False
    windows = PureWindowsPath(text)
    if text.startswith(("/", "~")):
        return len(PurePosixPath(text).parts) > 2 or (text != "/" and Path(text).expanduser().exists())
    return bool(windows.drive and windows.root)


def _last_name(text: str) -> str:
    text = text.removeprefix("file://")
    return (PurePosixPath(text) if text.startswith(("/", "~")) else PureWindowsPath(text)).name
