"""What a training must keep from one of a trainer's checkpoints on: settings by name, and the micro-dev examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..config import Config
from ..controller.presets import Settings, chosen_policy
from ..data import Encoded
from ..errors import RunError

_NOT_SET = "not recorded"


def searched(config: Config, resolved: Settings) -> dict[str, Any]:
    """Return the settings of a search, presets filled in.

    Not `controller.rounds`, which only says when to end.
    """
    own = config.controller.model_dump(mode="json", exclude={"rounds", "seed"})
    own |= {name: value for name, value in asdict(resolved).items() if name in own}
    own["policy"] = chosen_policy(config.controller)
    beside = {"seed": config.controller_seed, "finalize.adapter": config.finalize.adapter}
    return {f"controller.{name}": value for name, value in own.items()} | beside


def pruned(config: Config) -> dict[str, Any]:
    """Return the settings that say which entries go first."""
    return {f"prune.{name}": value for name, value in config.prune.model_dump(mode="json").items()}


def described(items: Sequence[Encoded] | None) -> str:
    """Return the number of micro-dev examples with the start of a SHA-256 of what they are, in their order."""
    if items is None:
        return "none"
    text = json.dumps([[list(item.input_ids), item.prompt_length] for item in items])
    return f"{len(items)} rows with SHA-256 {hashlib.sha256(text.encode('ascii')).hexdigest()[:16]}"


def check_settings(
    was: Mapping[str, Any], now: Mapping[str, Any], step: int | None = None, but: Collection[str] = ()
) -> None:
    """Raise `RunError` where settings of a checkpoint differ from those now, except for those in `but`.

    `step` is the checkpoint's, None where it is not known yet.
    """
    names = [name for name in dict.fromkeys([*now, *was]) if name not in but]
    changed = [
        f"{name} was {was.get(name, _NOT_SET)}, is {now.get(name, _NOT_SET)}"
        for name in names
        if was.get(name, _NOT_SET) != now.get(name, _NOT_SET)
    ]
    if changed:
        where = "" if step is None else f" at step {step}"
        raise RunError(
            f"the checkpoint{where} is of a training with other settings: {'; '.join(changed)}. Resume with "
            "the settings that it had, or start anew in another output_dir."
        )
