"""Checkpoints: named tensors and a JSON state, saved as one, without pickle.

A checkpoint is a folder `<serial>-step<step>` with `tensors.safetensors` and `state.json`. It is written
under a temporary name and renamed when whole, so a kill at any moment leaves the previous one in place.
Both parts carry a SHA-256, checked when they are read. Floats keep their bits (JSON holds the shortest text
that reads back equal).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from .atomic import check_keys, disk_errors, sync_folder, write_bytes_synced

if TYPE_CHECKING:  # torch is imported where tensors are: reading records must not wait for it
    from torch import Tensor

FORMAT = 1
_NAME = re.compile(r"(\d{6,})-step(\d+)")
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at `step`; `notices` says which newer checkpoints were damaged and passed over."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    notices: tuple[str, ...] = ()


class _Damaged(Exception):  # noqa: N818 - internal: becomes a notice or a RunError
    """A checkpoint folder whose content is not what was written."""


def save_checkpoint(
    folder: str | Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 1
) -> Path:
    """Save `tensors` (any device, copied) and `state` (JSON types, any float); return the new folder.

    Afterwards only the `keep` latest saved are left. Saving the same step again is allowed; the latest
    saved counts. Raises `RunError` on a full disk (the checkpoint before stays), `TypeError` for a state
    that is not JSON.
    """
    import safetensors.torch

    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder = Path(folder)
    existing = _list(folder)
    serial = existing[-1][0] + 1 if existing else 0
    # Clones: tied tensors share memory, which the format does not take.
    data = safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    document = _document(step, data, state)
    final, temporary = folder / f"{serial:06d}-step{step}", folder / f"tmp-{os.getpid()}-{serial:06d}"
    with disk_errors(final, kept="The checkpoint before it is untouched"):
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        try:
            temporary.mkdir()
            write_bytes_synced(temporary / _TENSORS, data)
            write_bytes_synced(temporary / _STATE, document)
            sync_folder(temporary)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(folder)
        for _, _, old in _list(folder)[:-keep]:
            shutil.rmtree(old)
    return final


def load_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Return the latest whole checkpoint in `folder` (tensors on the CPU), or None when none was ever saved.

    A damaged one is passed over with a notice; raises `RunError` when there are checkpoints and all are
    damaged.
    """
    folder = Path(folder)
    notices: list[str] = []
    for _, _, path in reversed(_list(folder)):
        try:
            return _read(path, tuple(notices))
        except _Damaged as problem:
            notices.append(f"checkpoint {path} is damaged ({problem}) and was passed over")
    if notices:
        raise RunError(
            f"no checkpoint in {folder} can be used: {'; '.join(notices)}. Restore the files, or remove "
            "that folder "
            "to run the stage again from its start."
        )
    return None


def clear_checkpoints(folder: str | Path) -> None:
    """Remove every checkpoint in `folder`, once the stage they belong to is done; other files stay."""
    folder = Path(folder)
    with disk_errors(folder):
        for _, _, path in _list(folder):
            shutil.rmtree(path)
        _clear_leftovers(folder)


def _document(step: int, data: bytes, state: Mapping[str, Any]) -> bytes:
    check_keys(state, "state")
    # Strict JSON has no infinity; Python's own reader takes `Infinity`, and nobody else reads this file.
    body = json.dumps(dict(state), ensure_ascii=False, allow_nan=True)
    head = {
        "format": FORMAT,
        "step": step,
        "tensors_sha256": _sha(data),
        "state_sha256": _sha(body.encode("utf-8")),
    }
    return f'{{"head": {json.dumps(head)},\n"state": {body}}}\n'.encode()


def _read(path: Path, notices: tuple[str, ...]) -> Checkpoint:
    try:
        data, text = (path / _TENSORS).read_bytes(), (path / _STATE).read_text(encoding="utf-8")
        document = json.loads(text)
        head, state = document["head"], document["state"]
        expected, expected_state, step = head["tensors_sha256"], head["state_sha256"], int(head["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{type(error).__name__} while reading it") from None
    if head.get("format") != FORMAT:
        raise RunError(
            f"checkpoint {path} has format {head.get('format')}, this version reads {FORMAT}. Use the "
            "version that wrote it."
        )
    if _sha(data) != expected:
        raise _Damaged(f"{_TENSORS} does not match its SHA-256")
    if not isinstance(state, dict) or _sha(json.dumps(state, ensure_ascii=False).encode("utf-8")) != expected_state:
        raise _Damaged(f"{_STATE} does not match its SHA-256")
    import safetensors.torch

    return Checkpoint(step, safetensors.torch.load(data), state, notices)


def _list(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (serial, step, path) of the whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    matches = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return sorted((int(match[1]), int(match[2]), path) for match, path in matches)


def _clear_leftovers(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.glob("tmp-*-*"):
            if path.is_dir():
                shutil.rmtree(path)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
