"""One process at a time in a run folder.

The lock is the operating system's own on an open file, so it ends with the process, however that ends.
Where the file system knows no such lock, the process id in the file decides: a dead owner on this machine
is taken over.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import weakref
from pathlib import Path
from typing import Literal, TypeAlias

from ..errors import RunError
from .atomic import disk_errors

LOCK_FILE = ".lock"
Owner: TypeAlias = Literal["nobody", "here", "elsewhere"]
"""Who works in a run folder: a living process of this machine, one of another machine, or nobody."""


class FolderLock:
    """The lock of a run folder, held until `release`; raises `RunError` when another process has it."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK_FILE
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        # A forgotten object must not keep the folder locked for the rest of the process.
        self._finalizer = weakref.finalize(self, _release, descriptor, os.getpid())

    def _acquire(self, descriptor: int) -> None:
        owner = os.pread(descriptor, 4096, 0) if sys.platform != "win32" else os.read(descriptor, 4096)
        if not _lock_file(descriptor, self.path, owner):
            _refuse_living_owner(self.path, owner)
        with disk_errors(self.path):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "machine": _machine()}).encode())

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock."""
        return self._finalizer.alive

    def release(self) -> None:
        """Give the folder free; releasing twice is allowed."""
        self._finalizer()


def who_works(folder: str | Path) -> Owner:
    """Say whether a process holds the lock of a run folder, by what stands in it; nothing is locked to find out.

    An owner on another machine cannot be asked whether it lives.
    """
    try:
        owner = (Path(folder) / LOCK_FILE).read_bytes()
    except FileNotFoundError:
        return "nobody"
    except OSError as error:
        raise RunError(
            f"{Path(folder) / LOCK_FILE} cannot be read ({error.strerror}). Check its permissions."
        ) from None
    pid, machine = _parse_owner(owner)
    if pid is None:
        return "nobody"
    if machine != _machine():
        return "elsewhere"
    return "nobody" if _is_dead(pid) else "here"


def _machine() -> str:
    return socket.gethostname()


def _lock_file(descriptor: int, path: Path, owner: bytes) -> bool:
    """Take the system's lock; False where there is none to take. Raises `RunError` when another holds it."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(_in_use(path, owner)) from None
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}:
            return False
        raise RunError(f"{path} cannot be locked ({error.strerror}). Check the folder's permissions.") from error
    return True


def _refuse_living_owner(path: Path, owner: bytes) -> None:
    pid, machine = _parse_owner(owner)
    if pid is not None and not (machine == _machine() and _is_dead(pid)):
        raise RunError(f"{_in_use(path, owner)} If no such process runs any more, remove {path}.")


def _parse_owner(owner: bytes) -> tuple[int | None, str]:
    try:
        content = json.loads(owner)
        return int(content["pid"]), str(content["machine"])
    except (ValueError, KeyError, TypeError):
        return None, "unknown"


def _is_dead(pid: int) -> bool:
    if sys.platform == "win32":
        return False  # there, signal 0 would reach the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _in_use(path: Path, owner: bytes) -> str:
    pid, machine = _parse_owner(owner)
    who = f"process {pid} on {machine}" if pid is not None else "another process"
    return f"run folder {path.parent} is in use by {who}. Wait until it ends, stop it, or give another run.dir."


def _release(descriptor: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child shares the lock and must not end it
        os.ftruncate(descriptor, 0)  # no owner any more, for the systems where the content decides
    os.close(descriptor)
