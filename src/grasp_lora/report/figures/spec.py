"""A figure as data: layers in named colours. `svg` draws it as a still picture, `interactive` for hover and zoom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Line:
    """A curve through (x, y); `step` holds each y until the next x."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    label: str | None = None
    step: bool = False
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Band:
    """The area between `low` and `high` over x."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    label: str | None = None


@dataclass(frozen=True)
class Points:
    """Single marks, each in its own colour and with its own words."""

    x: Sequence[float]
    y: Sequence[float]
    colours: Sequence[str]
    tips: Sequence[str]
    label: str | None = None


@dataclass(frozen=True)
class Rule:
    """A line across the figure at one value of an axis, with the range around it that is as likely."""

    axis: Literal["x", "y"]
    at: float
    colour: str
    label: str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """Bars from zero at x."""

    x: Sequence[float]
    heights: Sequence[float]
    width: float
    colour: str
    tips: Sequence[str]
    label: str | None = None


@dataclass(frozen=True)
class Intervals:
    """One row per label: a value and its interval."""

    labels: Sequence[str]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    colours: Sequence[str]
    tips: Sequence[str]


@dataclass(frozen=True)
class Cells:
    """A table of values in [low, high], rows first, each shown by one of the heat colours; None leaves a gap."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float

    def step(self, value: float, steps: int) -> int:
        """Return which of `steps` equal steps from low to high the value falls in."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 1.0
        return min(int(share * steps), steps - 1)


Layer: TypeAlias = Line | Band | Points | Rule | Bars | Intervals | Cells


@dataclass(frozen=True)
class Legend:
    """A key of colours that no layer's label can say."""

    title: str
    entries: Sequence[tuple[str, str]]  # (colour, words)
    mark: Literal["point", "cell"] = "point"


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    `key` is unique on the page; `caption` says how to read it, `alt` what is seen, for those who do not see it. `wide`
    takes the whole width of a large screen, others half of it. `height` is in pixels on a large screen.
    """

    key: str
    title: str
    caption: str
    alt: str
    x_label: str
    y_label: str
    layers: Sequence[Layer]
    wide: bool = False
    height: int = 300
    legend: Legend | None = None
    y_range: tuple[float, float] | None = None

    def labels(self) -> list[tuple[str, str, str]]:
        """Return (mark, colour, words) of every labelled layer: what a reader needs beside the picture."""
        found = []
        for layer in self.layers:
            label = getattr(layer, "label", None)
            if label is not None:
                found.append((_mark(layer), _colour(layer), label))
        return found


def _mark(layer: Layer) -> str:
    if isinstance(layer, Rule) or (isinstance(layer, Line) and layer.dashed):
        return "dashed"
    return "line" if isinstance(layer, Line) else "band" if isinstance(layer, (Band, Bars)) else "point"


def _colour(layer: Layer) -> str:
    if isinstance(layer, Points):
        return layer.colours[0] if layer.colours else "grey"
    return str(getattr(layer, "colour", "grey"))
