"""The folder of one run: who may write it, what is in it, and which stages are done.

    config.yaml  manifest.json  events.jsonl  results.json  stages/<name>/{result.json, ...}  export/  report/

A folder becomes a run by its marker file. Nothing that lacks the marker is ever deleted or written into.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..config import Config, parse_yaml, to_yaml
from ..errors import RunError
from .atomic import TEMPORARY_SUFFIX, disk_errors, read_json, write_json_atomic, write_text_atomic
from .compare import config_differences, flatten
from .events import EventLog
from .lock import LOCK_FILE, FolderLock

MARKER = ".grasp-run"
FORMAT = 1
FILES = ("config.yaml", "manifest.json", "events.jsonl", "results.json")
TRACKERS = "trackers"
TOKENS = "tokens"
FOLDERS = ("stages", "export", "report", TRACKERS, TOKENS)
RESULT = "result.json"
_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class StageFolder:
    """The folder of one stage; it is done when, and only when, its result is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.path.name

    def done(self) -> dict[str, Any] | None:
        """Return the stage's result, or None while it is not finished; a damaged file is a `RunError`."""
        if not (self.path / RESULT).exists():
            return None
        result = read_json(self.path / RESULT)
        if not isinstance(result, dict):
            raise RunError(
                f"{self.path / RESULT}: a result is a JSON object. Run the stage again after removing {self.path}."
            )
        return result

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the result, last of all, and return it as a resumed run will read it (tuples as lists)."""
        write_json_atomic(self.path / RESULT, dict(result))
        return read_json(self.path / RESULT)  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Remove everything in the folder, the result first, so that the stage starts anew."""
        with disk_errors(self.path, kept="Other stages are untouched"):
            (self.path / RESULT).unlink(missing_ok=True)
            _remove(self.path)
            self.path.mkdir(parents=True)


class RunFolder:
    """One run on the disk. Made by `create`, `resume` (both lock it for this process) or `open` (to read).

    A context manager: leaving it releases the lock.
    """

    def __init__(self, path: Path, lock: FolderLock | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: str | Path, config_yaml: str, overwrite: bool = False) -> RunFolder:
        """Make a new run with its resolved configuration.

        Raises `RunError` when the folder is not empty: an earlier run needs `overwrite` (its files are then
        removed), anything else is refused always.
        """
        path = Path(path)
        parse_yaml(config_yaml, "configuration")
        _refuse_unless_free(path, overwrite)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
        try:
            _refuse_unless_free(path, overwrite)  # again: another process may have come first
            _clear(path)
            write_json_atomic(path / MARKER, {"format": FORMAT, "what": "run folder of grasp-lora"})
            write_text_atomic(path / "config.yaml", config_yaml)
        except BaseException:
            lock.release()
            raise
        return cls(path, lock)

    @classmethod
    def resume(cls, path: str | Path, config_yaml: str, ignore: Sequence[str] = ("run", "compare")) -> RunFolder:
        """Go on with an earlier run, with the same configuration.

        Settings at or below a dotted name in `ignore` may differ; one that the run's version did not know yet must
        stand at its default. Raises `RunError` when there is no run,
        another process works in it, or other settings differ (all of them are listed).
        """
        folder = cls.open(path)
        differences = config_differences(folder.config_yaml(), config_yaml, ignore, _defaults())
        if differences:
            raise RunError(
                f"run folder {path} was started with another configuration:\n  " + "\n  ".join(differences) + "\n"
                "Resume with the settings it was started with, add --overwrite to replace it, or give "
                "another run.dir."
            )
        folder._lock = FolderLock(folder.path)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open a run to read it, also while it is being written; raises `RunError` when it is none."""
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"run folder {path} does not exist. Check the path; a run is started without --resume.")
        if not (path / MARKER).is_file():
            raise RunError(f"{path} is not a run folder (it has no {MARKER}). Give the folder that a run printed.")
        found = read_json(path / MARKER)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            shown = found.get("format") if isinstance(found, dict) else found
            raise RunError(
                f"run folder {path} has format {shown!r}, this version reads {FORMAT}. Use the version that wrote it."
            )
        return cls(path)

    def config_yaml(self) -> str:
        """Return the resolved configuration as it was saved; raises `RunError` when it is missing."""
        try:
            return (self.path / "config.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise RunError(
                f"{self.path / 'config.yaml'} cannot be read: the run was never started fully. Add --overwrite."
            ) from None

    def stage(self, name: str) -> StageFolder:
        """Return the folder of the stage `name` (made if this object may write)."""
        if not _STAGE_NAME.fullmatch(name):
            raise ValueError(f"stage name {name!r} must be lower-case letters, digits, '.', '-' and '_'")
        folder = self.path / "stages" / name
        if self._lock is not None and self._lock.held:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return StageFolder(folder)

    def stages_done(self) -> dict[str, dict[str, Any]]:
        """Return the results of all finished stages by name, in alphabetical order."""
        folder = self.path / "stages"
        names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        results = {name: StageFolder(folder / name).done() for name in names}
        return {name: result for name, result in results.items() if result is not None}

    def event_log(self) -> EventLog:
        """Open the run's event log to append to it."""
        return EventLog(self.path / "events.jsonl")

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Save `manifest.json` in one step."""
        write_json_atomic(self.path / "manifest.json", dict(manifest))

    def manifest(self) -> dict[str, Any]:
        """Return `manifest.json`; raises `RunError` when it is missing or damaged."""
        return read_json(self.path / "manifest.json")  # type: ignore[no-any-return]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Save `results.json` in one step."""
        write_json_atomic(self.path / "results.json", dict(results))

    def results(self) -> dict[str, Any]:
        """Return `results.json`; raises `RunError` while the run is not finished."""
        return read_json(self.path / "results.json")  # type: ignore[no-any-return]

    def close(self) -> None:
        """Release the lock; closing twice is allowed."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@lru_cache(maxsize=1)
def _defaults() -> Mapping[str, Any]:
    """Return every setting's default as a saved configuration would show it, by dotted name."""
    return flatten(parse_yaml(to_yaml(Config()), "defaults"))


def _content(path: Path) -> list[Path]:
    """Return what is in the folder beside the lock and the leftovers of a start that was killed."""
    if not path.exists():
        return []
    own = "|".join(map(re.escape, (MARKER, *FILES)))
    leftover = re.compile(rf"\.({own})\.\d+-\d+{re.escape(TEMPORARY_SUFFIX)}")
    return sorted(p for p in path.iterdir() if p.name != LOCK_FILE and not leftover.fullmatch(p.name))


def _refuse_unless_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a folder. Give another run.dir.")
    content = _content(path)
    if not content:
        return
    if not (path / MARKER).is_file():
        raise RunError(
            f"{path} holds files (such as {content[0].name}) and is not a run folder, so nothing in it is "
            "touched, "
            "with or without --overwrite. Give another run.dir."
        )
    if not overwrite:
        raise RunError(
            f"run folder {path} already holds a run. Add --resume to go on with it, --overwrite to replace "
            "it, "
            "or give another run.dir."
        )
    unknown = [p.name for p in content if p.name not in {MARKER, *FILES, *FOLDERS}]
    if unknown:
        raise RunError(
            f"run folder {path} also holds files that are not the run's: {', '.join(unknown)}. Move them "
            "elsewhere or "
            "give another run.dir; nothing was removed."
        )


def _clear(path: Path) -> None:
    with disk_errors(path, kept="What is left of the earlier run is still there"):
        for child in path.iterdir():
            if child.name not in {MARKER, LOCK_FILE}:
                _remove(child)
        (path / MARKER).unlink(missing_ok=True)  # last: until here a kill leaves a folder that is still a run


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
