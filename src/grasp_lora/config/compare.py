"""Settings of `compare`: which methods, on which cells, with which seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .base import Positive, PositiveInt, Ratio, Section

SEED = "{seed}"  # in a file's name
Files = dict[Literal["train", "dev", "micro_dev", "test"], str]


def _is_name(value: str) -> str:
    if not value or not all(c.islower() or c.isdigit() or c in "-_" for c in value) or not value[0].isalnum():
        raise ValueError("a name is made of lower-case letters, digits, '-' and '_'")
    return value


Name = Annotated[str, AfterValidator(_is_name)]


class CellConfig(Section):
    """One task in one language; what is absent is taken from the sections `task` and `data`.

    `{seed}` in a file's name, source or target, stands for the seed: each has data of its own, all but the target's
    test file, whose examples are compared one by one over the seeds.
    """

    name: Name
    task: Literal["qa", "summarization"] | None = None
    language: str | None = None
    source: Files = Field(
        default_factory=dict, description="files of data.source, by split; `{seed}` stands for the seed"
    )
    target: Files = Field(
        default_factory=dict, description="files of data.target, by split; `{seed}` stands for the seed"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="further settings, e.g. {task.max_new_tokens: 32}")

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if SEED in self.target.get("test", ""):
            raise ValueError(f"compare.cells: {self.name}: one test file for all seeds, without {SEED}")
        return self


class VariantConfig(Section):
    """A method under other settings, as a row of its own: an ablation."""

    name: Name
    method: str
    set: dict[str, Any] = Field(default_factory=dict, description="settings, e.g. {controller.anchor: 0}")
    rate_of: str | None = Field(None, description="row whose learning rate it takes; default: it has one of its own")


class PartConfig(Section):
    """A further table over the same runs: its own rows, and cells where they differ."""

    name: Name
    methods: tuple[str, ...] = Field(min_length=1)
    variants: tuple[VariantConfig, ...] = ()
    cells: tuple[CellConfig, ...] = Field((), description="default: those of compare.cells")
    reference: str | None = Field(None, description="default: compare.reference")

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _require_unique(f"compare.parts: {self.name}: ", self)
        return self


def _require_unique(where: str, section: CompareConfig | PartConfig) -> None:
    rows = (*section.methods, *(variant.name for variant in section.variants))
    for what, names in (("rows", rows), ("cells", [cell.name for cell in section.cells])):
        twice = sorted({str(name) for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"{where}{what} are named twice: {', '.join(twice)}")


class CompareConfig(Section):
    """Methods x cells x seeds."""

    methods: tuple[str, ...] = Field((), description="default: every method there is")
    variants: tuple[VariantConfig, ...] = Field(
        (), description="methods under other settings, compared with all others"
    )
    cells: tuple[CellConfig, ...] = Field((), description="default: one, from the sections task and data")
    root: str | None = Field(None, description="folder in front of the cells' relative paths")
    seeds: tuple[int, ...] = Field((42,), min_length=1)
    jobs: PositiveInt = Field(1, description="how many runs at once, each in a process of its own")
    reference: str = Field("merged", description="method that all others are compared with, example by example")
    lrs: tuple[Positive, ...] = Field(
        (1e-3, 2e-3), min_length=1,
        description="each method that trains takes the one with the better dev loss, per task, on the first seed",
    )  # fmt: skip
    ratio: Ratio = Field(0.5, description="the given prune ratio of the method adaptive")
    generate: tuple[str, ...] | None = Field(
        None, description="methods scored by generation too; the others by loss only; default: all"
    )

    parts: tuple[PartConfig, ...] = Field((), description="further tables over the same runs, in order of importance")
    time_limit: Positive | None = Field(
        None, description="seconds after which no run is started any more; what is done is kept and shown"
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _require_unique("", self)
        for what, names in (("seeds", self.seeds), ("parts", [part.name for part in self.parts])):
            twice = sorted({str(name) for name in names if list(names).count(name) > 1})
            if twice:
                raise ValueError(f"{what} are named twice: {', '.join(twice)}")
        return self
