"""What each trick gains: the same pieces with one switch of the `speed` section off at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from ...config import Config, SpeedConfig
from .measure import QUICK_EPOCHS, Subject
from .pieces import FINAL, generation_seconds, opened
from .stages import clocked_final, clocked_search

EXAMPLES = 24  # of training: three updates of eight, two rounds in an epoch
_OFF = ("off", "none")
PIECES = ("training step", "round", "final update", "generation of a batch")


def switches(config: Config) -> dict[str, Any]:
    """Return every switch of `speed` that is on, with the value that turns it off."""
    found = {}
    for name, field in SpeedConfig.model_fields.items():
        now = getattr(config.speed, name)
        if now is True:
            found[name] = False
        elif get_origin(field.annotation) is Literal and now not in _OFF:
            offs = [word for word in get_args(field.annotation) if word in _OFF]
            if offs:
                found[name] = offs[0]
    return found


def variants(subject: Subject, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the seconds of every piece as configured, with each switch off, with all off, and as configured again.

    `gained` is how many times the configured time a piece takes, against the mean of the first and the last row.
    """
    config, off = subject.setup.config, switches(subject.setup.config)
    plans: list[tuple[str, dict[str, Any]]] = [("as configured", {})]
    plans += [(f"speed.{name}={str(value).lower()}", {name: value}) for name, value in off.items()]
    plans += [("all of these off", off)] if len(off) > 1 else []
    plans.append(("as configured, again", {}))
    rows: list[dict[str, Any]] = []
    for name, changes in plans:
        say(f"{subject.workload.name}: {name}")
        changed = config.model_copy(update={"speed": config.speed.model_copy(update=changes)})
        rows.append({"variant": name, "seconds": _seconds(subject, changed)})
    first, last = rows[0]["seconds"], rows[-1]["seconds"]
    for row in rows:
        row["gained"] = {piece: 2 * row["seconds"][piece] / (first[piece] + last[piece]) for piece in PIECES}
    return rows


def _seconds(subject: Subject, config: Config) -> dict[str, float]:
    setup = subject.under(config)
    few = replace(setup, splits={**setup.splits, "train": setup.items("train")[:EXAMPLES]})
    _, searching = clocked_search(few, subject.adapters, QUICK_EPOCHS["search"])
    _, finishing = clocked_final(few, subject.adapters, FINAL, QUICK_EPOCHS["finalize"])
    with opened(subject.workload, few) as bench:
        answers = generation_seconds(bench, 1, static=config.speed.static_cache).timing
    values = (searching.step().mean, searching.round().mean, finishing.step().mean, answers.median)
    return dict(zip(PIECES, values, strict=True)) | {"warm_up": searching.warm_up() + finishing.warm_up()}
