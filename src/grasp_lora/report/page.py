"""The report as one HTML page that needs nothing from outside: figures, styles and script are in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .comparing import RunsComparison
from .content import RunContent
from .figures import interactive, svg
from .figures.spec import Figure
from .labels import sentence_case
from .palette import DARK, LIGHT, variables

if TYPE_CHECKING:
    from jinja2 import Environment

GENERATOR = "grasp-lora report"
_TEMPLATES = "templates"


def render_page(runs: Sequence[RunContent], comparison: RunsComparison | None, *, zoom: bool = True) -> str:
    """Return the page of one run, or of several with their comparison first.

    Text from files is escaped wherever it stands. Without `zoom` the page has still figures only and is smaller by 2
    MB. Raises `MissingExtraError` when jinja2, matplotlib or plotly is not installed.
    """
    svg.check_installed()
    template = _environment().get_template("report.html.j2")
    return template.render(
        generator=GENERATOR,
        runs=runs,
        comparison=comparison,
        light=variables(LIGHT),
        dark=variables(DARK),
        style=_asset("report.css"),
        script=_asset("report.js"),
        plotly=interactive.plotly_script() if zoom else None,
        zoom=zoom,
    )


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "report", "writing a report") from None
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "still": _still,
        "zoomed": interactive.describe,
        "tone": _TONES.__getitem__,
        "sentence": sentence_case,
    }
    return environment


_TONES = {"good": "GRASP wins", "even": "No difference shown", "bad": "Use another method", "none": "Not judged"}


@cache
def _asset(name: str) -> str:
    return (files(__package__) / _TEMPLATES / name).read_text(encoding="utf-8")


def _still(figure: Figure) -> dict[str, Any]:
    """Return the figure's pictures for large screens and for phones, as markup of our own making."""
    from markupsafe import Markup

    large = svg.draw(figure, svg.WIDE if figure.wide else svg.HALF)
    return {"large": Markup(large), "small": Markup(svg.draw(figure, svg.NARROW))}
