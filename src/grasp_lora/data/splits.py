"""The splits that a configuration names, loaded; a missing one is never replaced by another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..config import Config, SplitFiles
from ..errors import DataError
from .examples import Example, load_examples


@dataclass(frozen=True)
class Splits:
    """Loaded splits by name (`train`, `dev`, `micro_dev`, `test`); those not configured are absent."""

    source: Mapping[str, list[Example]]
    target: Mapping[str, list[Example]]

    def named(self) -> dict[str, list[Example]]:
        """Return every split under its full name, e.g. `target.micro_dev`."""
        sides = {"source": self.source, "target": self.target}
        return {f"{side}.{name}": examples for side, splits in sides.items() for name, examples in splits.items()}


def require_splits(config: Config, require: Iterable[str]) -> None:
    """Raise `DataError` when a needed split, e.g. `target.micro_dev`, is not configured; reads no file."""
    for name in require:
        side, split = name.split(".")
        if getattr(getattr(config.data, side), split) is None:
            instead = ", or give a source adapter with --set adapters.source=FOLDER" if name == "source.train" else ""
            raise DataError(
                f"data.{name} is not set, and this stage needs it; it is never taken from another split. "
                f"Name its file with --set data.{name}=FILE{instead}; `grasp-lora data prepare` deals one file into "
                "splits."
            )


def load_splits(config: Config, require: Iterable[str] = ()) -> Splits:
    """Load every split that `config.data` names.

    `require` lists what the caller cannot do without, e.g. `("target.train", "target.micro_dev")`. Raises
    `DataError` when one of these is not configured (before any file is read) or a file cannot be used.
    """
    require_splits(config, require)
    return Splits(_load(config, config.data.source), _load(config, config.data.target))


def _load(config: Config, files: SplitFiles) -> dict[str, list[Example]]:
    named = {name: getattr(files, name) for name in SplitFiles.model_fields}
    return {
        name: load_examples(source, config.task.name, config.data.fields)
        for name, source in named.items()
        if source is not None
    }
