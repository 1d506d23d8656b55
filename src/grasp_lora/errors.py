"""What a user can do wrong, one exception type per kind, each with its own exit code.

Every message says four things: which field or file, which rule, the value that was found, and what to do next.
Anything that is not a `GraspError` is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields


class GraspError(Exception):
    """Base of everything a user can mend; the command line prints it as one message and no traceback."""

    exit_code = 1


class ConfigError(GraspError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""

    exit_code = 2


class DataError(GraspError):
    """A data file is missing, unreadable, empty, incomplete, or leaks into another split."""

    exit_code = 3


class AdapterError(GraspError):
    """An adapter folder cannot be used: another base model, another shape, an unsupported variant, a bad file."""

    exit_code = 4


class ModelError(GraspError):
    """The base model or tokenizer cannot be loaded or lacks what the method needs."""

    exit_code = 5


class RunError(GraspError):
    """The run folder cannot be created, resumed or read."""

    exit_code = 6


class TrainingError(GraspError):
    """Training had to stop: a loss that is not finite, or memory that ran out."""

    exit_code = 7


class MissingExtraError(GraspError):
    """An optional dependency is needed and not installed."""

    exit_code = 8

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package `{package}`, which is not installed. Install it with: {self.command(extra)}"
        )

    @staticmethod
    def command(extra: str) -> str:
        """Return what installs an extra."""
        return f"pip install 'grasp-lora[{extra}]'"


class Interrupted(GraspError):  # noqa: N818 - not an error of anybody's: the user pressed Ctrl-C
    """The user asked to stop; everything done so far is kept and can be resumed."""

    exit_code = 130


def exit_codes() -> dict[int, str]:
    """Return every exit code with the name of its kind."""
    return {kind.exit_code: kind.__name__ for kind in GraspError.__subclasses__()}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or what kind it is where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word closest to `word`, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise `ConfigError` when `value` is none of `known`; `name` is the option or setting."""
    choices = list(known)
    if value not in choices:
        raise ConfigError(f"{name} must be {' or '.join(choices)}, got '{value}'.{nearest(value, choices)}")


def check_fields(saved: Iterable[str], kind: type, *, more: bool = False, complete: bool = False) -> None:
    """Raise `RunError` when `saved`, names in a checkpoint, are not the fields of the dataclass `kind`.

    Fields with a default may be missing, unless `complete`; with `more`, there may be others.
    """
    names, known = set(saved), fields(kind)
    needed = {f.name for f in known if complete or (f.default is MISSING and f.default_factory is MISSING)}
    wrong = [f"lacks {name}" for name in sorted(needed - names)]
    if not more:
        wrong += [f"has {name}" for name in sorted(names - {f.name for f in known})]
    if wrong:
        raise RunError(
            f"checkpoint: {kind.__name__} {', '.join(wrong)}, so another version of grasp-lora wrote it. Go on with "
            "that version (manifest.json names it), or start the run anew."
        )
