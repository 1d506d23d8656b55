"""Settings of `compare`: which methods, on which cells, with which seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .base import Positive, PositiveInt, Ratio, Section

Files = dict[Literal["train", "dev", "micro_dev", "test"], str]


def _is_name(value: str) -> str:
    if not value or not all(c.islower() or c.isdigit() or c in "-_" for c in value) or not value[0].isalnum():
        raise ValueError("a name is made of lower-case letters, digits, '-' and '_'")
    return value


Name = Annotated[str, AfterValidator(_is_name)]


class CellConfig(Section):
    """One task in one language; what is absent is taken from the sections `task` and `data`."""

    name: Name
    task: Literal["qa", "summarization"] | None = None
    language: str | None = None
    source: Files = Field(default_factory=dict, description="files of data.source, by split")
    target: Files = Field(default_factory=dict, description="files of data.target, by split")
    set: dict[str, Any] = Field(default_factory=dict, description="further settings, e.g. {task.max_new_tokens: 32}")


class VariantConfig(Section):
    """A method under other settings, as a row of its own: an ablation."""

    name: Name
    method: str
    set: dict[str, Any] = Field(default_factory=dict, description="settings, e.g. {controller.anchor: 0}")


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

    @model_validator(mode="after")
    def _unique(self) -> Self:
        rows = (*self.methods, *(variant.name for variant in self.variants))
        for what, names in (("rows", rows), ("cells", [cell.name for cell in self.cells]), ("seeds", self.seeds)):
            twice = sorted({str(name) for name in names if list(names).count(name) > 1})
            if twice:
                raise ValueError(f"{what} are named twice: {', '.join(twice)}")
        return self
