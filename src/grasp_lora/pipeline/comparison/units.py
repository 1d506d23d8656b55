"""What a comparison consists of: adapters, and methods x cells x seeds x learning rates, each a run of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...baselines import METHODS, Method, find_method
from ...config import CellConfig, CompareConfig, Config, DataConfig, SplitFiles, load_config, to_dict
from ...config.compare import SEED
from ...errors import ConfigError, nearest
from ...runs import flatten
from ...runs.folder import TOKENS

Role = Literal["source", "target"]


@dataclass(frozen=True)
class Row:
    """A row of the tables: a method, or a variant of one under other settings.

    `rate_of` names the row whose learning rate it takes: its own, unless it measures or varies another one.
    """

    name: str
    title: str
    method: Method
    settings: Mapping[str, Any]
    rate_of: str


@dataclass(frozen=True)
class Cell:
    """A cell under one seed: its settings, before adapters and learning rates."""

    name: str
    seed: int
    config: Config

    @property
    def key(self) -> str:
        """Name of the cell in folder names."""
        return f"{self.name}.{self.seed}"


@dataclass(frozen=True)
class Unit:
    """One run of the comparison in the folder `path`: training an adapter (`row` None), or a method with one rate.

    `waits` are the keys of the adapters it is made from; `generate` says whether it is scored by generation too; units
    of a lower `rank` come first.
    """

    key: str
    path: Path
    config: Config
    cell: str
    row: str | None = None
    method: str | None = None
    role: Role | None = None
    lr: float | None = None
    waits: tuple[str, ...] = ()
    generate: bool = True
    rank: int = 0

    @property
    def kind(self) -> str:
        """What takes about as long as this: the other units of the row, or of the adapter's role."""
        return self.row or f"{self.role} adapter"

    @property
    def words(self) -> str:
        """The unit in words, for messages."""
        rate = f", lr {self.lr:g}" if self.lr is not None else ""
        return f"{self.cell}, seed {self.config.seed}, {self.kind}{rate}"


def rows_of(config: Config) -> list[Row]:
    """Return the rows of the tables; raises `ConfigError` for an unknown method or reference."""
    rivals = tuple(name for name, method in METHODS.items() if method.rate_of is None)
    chosen = [find_method(name) for name in config.compare.methods or rivals]
    rows = [Row(method.name, method.title, method, {}, method.rate_of or method.name) for method in chosen]
    for variant in config.compare.variants:
        if variant.name in METHODS:
            raise ConfigError(f"compare.variants: '{variant.name}' is the name of a method. Choose another one.")
        shown = ", ".join(f"{key}={value}" for key, value in variant.set.items())
        method = find_method(variant.method)
        title = f"{method.title}, {shown}" if shown else method.title
        rows.append(Row(variant.name, title, method, variant.set, variant.rate_of or variant.name))
    require_known("reference", [config.compare.reference], [row.name for row in rows])
    return rows


def require_known(field: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise `ConfigError` for a row that `compare.FIELD` names and nobody compares."""
    for name in names:
        if name not in known:
            raise ConfigError(
                f"compare.{field}: '{name}' is not compared here.{nearest(name, known)} Choose of: {', '.join(known)}."
            )


def cells_of(config: Config, seed: int) -> list[Cell]:
    """Return the cells under one seed; without `compare.cells` there is one, from the configuration itself."""
    named = config.compare.cells or (CellConfig(name=f"{config.task.name}-{config.task.language}"),)
    return [Cell(cell.name, seed, _cell_config(config, cell, seed)) for cell in named]


def changed_config(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return `config` with dotted settings changed; raises `ConfigError` for one that is unknown or out of range."""
    return load_config(None, [f"{key}={json.dumps(value)}" for key, value in settings.items()], to_dict(config))


def _cell_config(config: Config, cell: CellConfig, seed: int) -> Config:
    settings: dict[str, Any] = {"seed": seed}
    if cell.task is not None:
        settings["task.name"] = cell.task
    if cell.language is not None:
        settings["task.language"] = cell.language
    for side, files in (("source", cell.source), ("target", cell.target)):
        settings |= {f"data.{side}.{split}": _rooted(config.compare.root, path, seed) for split, path in files.items()}
    # What is compared beside a unit is none of its settings: more methods can join a comparison later.
    plain = config.model_copy(update={"compare": CompareConfig(ratio=config.compare.ratio)})
    return changed_config(plain, settings | dict(cell.set))


def _rooted(root: str | None, path: str, seed: int) -> str:
    path = path.replace(SEED, str(seed))
    return path if root is None or path.startswith("hf:") else str(Path(root) / path)


def adapter_units(folder: Path, cell: Cell) -> list[Unit]:
    """Return the adapters of a cell that no folder is given for, named by what they are made from.

    Cells with the same source data and settings share the source adapter.
    """
    roles: tuple[Role, ...] = ("source", "target")
    units = []
    for role in roles:
        if getattr(cell.config.adapters, role) is None:
            config = _adapter_config(cell.config, role)
            digest = hashlib.sha256(json.dumps(_own_settings(config)).encode("utf-8")).hexdigest()
            key = f"{role}_adapter.{digest[:12]}.{cell.seed}"
            config = config.model_copy(update={"run": cell.config.run})  # how often it is saved changes no adapter
            units.append(Unit(key, folder / key, _placed(config, folder / key), cell.name, role=role))
    return units


def _adapter_config(config: Config, role: Role) -> Config:
    """Return the settings that an adapter depends on and no others, so that cells with the same ones share it."""
    task, data = config.task, DataConfig(fields=config.data.fields, allow_leakage=config.data.allow_leakage)
    if role == "source":
        task = task.model_copy(update={"language": task.source_language, "prompt": None, "answer_prefix": None})
        data = data.model_copy(update={"source": config.data.source})
    else:
        own = SplitFiles(train=config.data.target.train, dev=config.data.target.dev)
        data = data.model_copy(update={"target": own})
    training = {f"train_{role}": getattr(config, f"train_{role}")}
    return Config(
        seed=config.seed, model=config.model, task=task, data=data, lora=config.lora, speed=config.speed, **training
    )


def _own_settings(config: Config) -> list[list[Any]]:
    """Return the settings that are not defaults: one that a later version adds does not make it another adapter."""
    defaults = flatten(to_dict(Config()))
    return sorted([name, value] for name, value in flatten(to_dict(config)).items() if defaults.get(name) != value)


def method_unit(
    folder: Path, cell: Cell, row: Row, lr: float | None, adapters: Sequence[Unit], *, generate: bool
) -> Unit:
    """Return one method on one cell with one learning rate (None: it trains nothing), made from `adapters`."""
    key = f"{cell.key}.{row.name}" + (f".lr{lr:g}" if lr is not None else "")
    settings = dict(row.settings)
    if lr is not None:
        settings = {"search.lr": lr, "finalize.lr": lr, "train_target.lr": lr} | settings
    for unit in adapters:
        settings[f"adapters.{unit.role}"] = str(unit.path / "stages" / f"{unit.role}_adapter" / "adapter")
    waits = tuple(unit.key for unit in adapters)
    config = _placed(changed_config(cell.config, settings), folder / key)
    # Source data are for the source adapter alone, which is there by now.
    config = config.model_copy(update={"data": config.data.model_copy(update={"source": SplitFiles()})})
    return Unit(key, folder / key, config, cell.name, row.name, row.method.name, None, lr, waits, generate)


def _placed(config: Config, path: Path) -> Config:
    """Give a unit its folder, and one for token sequences that it shares with the others."""
    place = {"dir": str(path), "tokens": config.run.tokens or str(path.parents[1] / TOKENS)}
    return config.model_copy(update={"run": config.run.model_copy(update=place)})


def needed_splits(config: Config, methods: Sequence[Method]) -> list[str]:
    """Return the splits that the methods and the adapters they share cannot do without, as `side.name`."""
    labels = {label for method in methods for label in method.splits(config)}
    needed = [f"target.{split}" for split in ("train", "dev", "micro_dev") if split in labels]
    trains = any(method.uses != "none" for method in methods)
    if config.adapters.source is None and trains:
        needed.append("source.train")
    if config.adapters.target is None and trains and "target.train" not in needed:
        needed.append("target.train")
    return [*needed, "target.test"]
