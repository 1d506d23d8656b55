"""`data prepare` from the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..data import TaskName
from ..data.prepare import PRESETS, prepare
from ..errors import ConfigError, check_choice


def prepare_splits(
    inputs: Sequence[str], task: str, sizes: str, out: Path, seed: int, fields: Sequence[str], overwrite: bool
) -> dict[str, Any]:
    """Draw splits and return the manifest; `sizes` is a preset or `train=50,dev=50`, `fields` are `name=column`.

    Raises `ConfigError` for words that do not parse, `DataError` for the rest.
    """
    check_choice("--task", task, ("qa", "summarization"))
    wanted = (
        sizes
        if sizes in PRESETS or "=" not in sizes
        else {k: _count(k, v) for k, v in _pairs("--sizes", sizes.split(","))}
    )
    return prepare(inputs, cast(TaskName, task), wanted, out, seed, dict(_pairs("--field", fields)), overwrite)


def _pairs(option: str, words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ConfigError(f"{option} takes name=value, got '{word}'.")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _count(name: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"--sizes: '{name}' needs a whole number, got '{value}'.")
    return int(value)
