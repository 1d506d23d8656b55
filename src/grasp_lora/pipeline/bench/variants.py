"""What each trick gains: the same pieces under other settings, such as one switch of `speed` off at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from ...config import Config, SpeedConfig
from ...errors import ConfigError
from .measure import Subject
from .pieces import FINAL, generation_seconds, opened, probing_seconds
from .sizes import QUICK_EPOCHS, check_timed
from .stages import clocked_final, clocked_search
from .workloads import Workload

EXAMPLES = 16  # of training: two updates of eight, one round in an epoch
_OFF = ("off", "none")
_IDLE = {"cudnn_from": 1, "read_losses_every": 1}  # numbers at which a setting does nothing
PIECES = ("training step", "probing alone", "final update", "generation of a batch")
_REPEATS = 3


def switches(config: Config) -> dict[str, Any]:
    """Return every switch of `speed` that is on, with the value that turns it off."""
    found: dict[str, Any] = {}
    for name, field in SpeedConfig.model_fields.items():
        now = getattr(config.speed, name)
        if now is True:
            found[name] = False
        elif get_origin(field.annotation) is Literal and now not in _OFF:
            offs = [word for word in get_args(field.annotation) if word in _OFF]
            if offs:
                found[name] = offs[0]
        elif name in _IDLE and now != _IDLE[name]:
            found[name] = _IDLE[name]
    return found


def planned(
    config: Config, given: Sequence[str], sets: Sequence[str], workload: Workload, *, off: bool = False
) -> dict[str, Config]:
    """Return the variants by name: with `off` every switch that is on turned off alone, then those that are given.

    One that is given is one or more `section.key=value`, with blanks in between. Raises `ConfigError` for a bad one.
    """
    plans = _switched_off(config) if off else {}
    for words in given:
        if not words.split() or not all("=" in word for word in words.split()):
            raise ConfigError(
                f"--variant: needs settings to compare, such as 'speed.tokens_per_pass=4096' (got '{words}')."
            )
        plans[words] = other = workload.config([*sets, *words.split()])
        if (other.model, other.lora) != (config.model, config.lora):
            raise ConfigError(f"--variant '{words}': model and adapters are made once. Use --set in a call of its own.")
    few = min(EXAMPLES, workload.train)
    for name, plan in {"as configured": config, **plans}.items() if plans else ():
        check_timed(plan, few, quick=True, rounds=False, what=f"variant '{name}', over {few} examples: ")
    return plans


def _switched_off(config: Config) -> dict[str, Config]:
    off = switches(config)
    if not off:
        raise ConfigError("--variants: every switch of `speed` is off already. Leave it out.")
    changed = {f"speed.{name}={str(value).lower()}": {name: value} for name, value in off.items()}
    if len(off) > 1:
        changed["all of these off"] = off
    return {
        name: config.model_copy(update={"speed": config.speed.model_copy(update=changes)})
        for name, changes in changed.items()
    }


def variants(subject: Subject, plans: Mapping[str, Config], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the seconds of every piece as configured, under each variant, and as configured again.

    `gained` is how many times the configured time a piece takes, against the mean of the first and the last row.
    """
    usual = subject.setup.config
    rows: list[dict[str, Any]] = []
    for name, config in {"as configured": usual, **plans, "as configured, again": usual}.items():
        say(f"{subject.workload.name}: {name}")
        rows.append({"variant": name, "seconds": _seconds(subject, config)})
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
        probing = probing_seconds(bench, _REPEATS, config.controller.candidates)
        answers = generation_seconds(bench, 1, static=config.speed.static_cache).timing
    values = (searching.step().mean, probing.median, finishing.step().mean, answers.median)
    return dict(zip(PIECES, values, strict=True)) | {"warm_up": searching.warm_up() + finishing.warm_up()}
