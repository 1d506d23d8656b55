"""The one interface of everything that is compared: what a method may see, what it gives back, and where it is listed.

A method gets a `MethodContext`: the frozen base with the labelled splits that the method says it uses, the adapters it
says it uses, and a `Workbench` on which it trains. The test split is in none of them, so no method can read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ..adapters.bank import AdapterBank
from ..adapters.peft_load import AdapterFactors
from ..adapters.point import MergePoint
from ..config import Config
from ..errors import ConfigError, nearest
from ..training import Outcome
from ..training.setup import Setup

Label = Literal["train", "dev", "micro_dev"]
Uses = Literal["none", "source", "target", "all"]
# Told each epoch's number (from 0) and dev loss; True ends the run there.
Judge = Callable[[int, float], bool]


class FinalRun(Protocol):
    """A finished final run: the fine-tuned merge, its best epoch in place."""

    @property
    def bank(self) -> AdapterBank:
        """The fine-tuned adapters with their mask."""

    @property
    def outcome(self) -> Outcome:
        """How the run went."""


@dataclass(frozen=True)
class SearchRun:
    """A finished controller run: the learned ratio, its 90 % interval and what the controller did."""

    ratio: float
    interval: tuple[float, float] | None
    details: Mapping[str, Any]


class Workbench(Protocol):
    """Runs that a method may ask for. Each has a name, is kept, and is not done again when a comparison goes on.

    What a run costs is counted by the workbench; a method counts only what it does beside it.
    """

    @property
    def folder(self) -> Path:
        """Folder of the method's own files, such as the storage of an optimizer."""

    def train(self, name: str, start: AdapterFactors, *, config: Config | None = None) -> AdapterFactors:
        """Fine-tune one adapter on the target's train split, from `start`, with `train_target` (of `config`)."""

    def finalize(
        self, name: str, adapters: Sequence[AdapterFactors], where: float | MergePoint,
        *, config: Config | None = None, judge: Judge | None = None,
    ) -> FinalRun:  # fmt: skip
        """Prune the merge at a ratio or point and fine-tune it with the settings of `finalize` (of `config`)."""

    def grasp(self, adapters: Sequence[AdapterFactors], config: Config) -> tuple[SearchRun, FinalRun]:
        """Run the controller with the settings of `config`, and the final run at what it learned."""


@dataclass(frozen=True)
class MethodContext:
    """What a method sees. Raises ValueError when the setup holds a test split."""

    setup: Setup
    adapters: Sequence[AdapterFactors]
    bench: Workbench

    def __post_init__(self) -> None:
        if "test" in self.setup.target or "test" in self.setup.source:
            raise ValueError("a method must not see a test split")

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self.setup.config


@dataclass(frozen=True)
class MethodResult:
    """What a method gives back. `bank` None is the bare base model.

    `interval` (90 %) belongs to a learned ratio; `forward_tokens` went forward outside of the workbench's runs;
    `details` are JSON values; `alternatives` are further systems by name, judged on test as hindsight, never chosen.
    """

    bank: AdapterBank | None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    forward_tokens: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    alternatives: Mapping[str, Callable[[], AdapterBank]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One entry of the comparison.

    `labels` are the splits whose labels it uses, `uses` the adapters it is made from, `runs` whether it trains after
    the adapters are there (and so has a learning rate of its own), `prunes` whether entries are ranked: importances
    other than magnitude then take their first statistics from micro-dev. `extra`: it needs the extra `baselines`.
    `rate_of` names the method that it is a measurement of: it takes that one's learning rate and is no rival.
    """

    name: str
    title: str
    formula: str
    source: str
    labels: tuple[Label, ...]
    uses: Uses
    make: Callable[[MethodContext], MethodResult]
    runs: bool = False
    prunes: bool = False
    extra: bool = False
    rate_of: str | None = None

    def splits(self, config: Config) -> tuple[Label, ...]:
        """Return the target's splits that the method is given under `config`."""
        if self.prunes and config.prune.importance != "magnitude" and "micro_dev" not in self.labels:
            return (*self.labels, "micro_dev")
        return self.labels

    def of(self, adapters: Sequence[AdapterFactors]) -> Sequence[AdapterFactors]:
        """Return those of `adapters` (source, target, others) that the method is given."""
        return {"none": (), "source": adapters[:1], "target": adapters[1:2], "all": adapters}[self.uses]


METHODS: dict[str, Method] = {}


def register(*methods: Method) -> None:
    """Add methods under their names; raises ValueError when a name is taken."""
    for method in methods:
        if method.name in METHODS:
            raise ValueError(f"method {method.name!r} is registered twice")
        METHODS[method.name] = method


def find_method(name: str) -> Method:
    """Return a method by name; raises `ConfigError` for an unknown one."""
    if name not in METHODS:
        raise ConfigError(
            f"compare.methods: unknown method '{name}'.{nearest(name, METHODS)} Known here: {', '.join(METHODS)}."
        )
    return METHODS[name]
