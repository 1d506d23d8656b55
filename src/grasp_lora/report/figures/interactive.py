"""Figures for hover and zoom: the same layers as data for plotly, whose script the page carries once, compressed.

Colours are written as `var(--name)`; the page's script puts in those of the present theme.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Sequence
from typing import Any

from ...errors import MissingExtraError
from ..palette import HEAT
from .spec import Band, Bars, Cells, Figure, Intervals, Layer, Line, Points, Rule

Trace = dict[str, Any]


def plotly_script() -> str:
    """Return plotly's script, gzipped, in base64; raises `MissingExtraError` when plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("plotly", "report", "the figures of a report that one can zoom") from None
    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), mtime=0)).decode("ascii")


def describe(figure: Figure) -> dict[str, Any]:
    """Return `{"data", "layout"}` as plotly takes them, in plain JSON types."""
    layout: dict[str, Any] = {
        "margin": {"l": 64, "r": 16, "t": 34, "b": 52},
        "height": max(figure.height, 300),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": _var("ink")},
        "hoverlabel": {"bgcolor": _var("surface"), "bordercolor": _var("line"), "font": {"color": _var("ink")}},
        "showlegend": False,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": _var("muted"), "activecolor": _var("accent")},
        "xaxis": _axis(figure.x_label),
        "yaxis": _axis(figure.y_label),
        "shapes": [],
    }
    if figure.y_range is not None:
        layout["yaxis"]["range"] = list(figure.y_range)
    data: list[Trace] = []
    for layer in figure.layers:
        _add(layer, data, layout)
    return {"data": data, "layout": layout}


def _var(name: str) -> str:
    return f"var(--{name})"


def _axis(title: str) -> dict[str, Any]:
    words = {"text": title, "font": {"size": 13, "color": _var("muted")}}
    return {"title": words, "gridcolor": _var("line"), "zerolinecolor": _var("line"), "automargin": True}


def _add(layer: Layer, data: list[Trace], layout: dict[str, Any]) -> None:
    match layer:
        case Line():
            line = {"color": _var(layer.colour), "width": 1 if layer.faint else 2.4}
            line |= {"shape": "hv" if layer.step else "linear", "dash": "dash" if layer.dashed else "solid"}
            data.append(_trace(layer.x, layer.y, layer.label, mode="lines", line=line, opacity=_opacity(layer)))
        case Band():
            edge = {"color": "rgba(0,0,0,0)", "width": 0}
            data.append(_trace(layer.x, layer.low, None, mode="lines", line=edge, hoverinfo="skip"))
            fill = {"fill": "tonexty", "fillcolor": _var(f"{layer.colour}") + "/0.16"}
            data.append(_trace(layer.x, layer.high, layer.label, mode="lines", line=edge, hoverinfo="skip", **fill))
        case Points():
            marker = {"color": [_var(name) for name in layer.colours], "size": 8,
                      "line": {"color": _var("surface"), "width": 1}}  # fmt: skip
            data.append(
                _trace(layer.x, layer.y, layer.label, mode="markers", marker=marker, text=_plain(layer.tips),
                       hoverinfo="text")
            )  # fmt: skip
        case Rule():
            _add_rule(layer, data, layout)
        case Bars():
            data.append(
                {"type": "bar", "x": numbers(layer.x), "y": numbers(layer.heights), "width": layer.width,
                 "marker": {"color": _var(layer.colour)}, "hovertext": _plain(layer.tips), "hoverinfo": "text",
                 "name": _escaped(layer.label or ""), "showlegend": layer.label is not None}
            )  # fmt: skip
        case Intervals():
            _add_intervals(layer, data, layout)
        case Cells():
            _add_cells(layer, data, layout)


def _opacity(line: Line) -> float:
    return 0.55 if line.faint else 1.0


def _trace(x: Sequence[float], y: Sequence[float], label: str | None, **more: Any) -> Trace:
    named = {"name": _escaped(label or ""), "showlegend": label is not None}
    return {"type": "scatter", "x": numbers(x), "y": numbers(y), **named, **more}


def numbers(values: Sequence[float | None]) -> list[float | None]:
    """Return values with six digits, and None for what is not finite: JSON has no word for it."""
    return [float(f"{v:.6g}") if v is not None and math.isfinite(v) else None for v in values]


def _escaped(text: str) -> str:
    """Return text that plotly, which reads a few tags, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(texts: Sequence[str]) -> list[str]:
    return [_escaped(text) for text in texts]


def _add_rule(rule: Rule, data: list[Trace], layout: dict[str, Any]) -> None:
    along, across = ("x", "y") if rule.axis == "x" else ("y", "x")
    ends = {f"{across}ref": "paper", f"{across}0": 0, f"{across}1": 1}
    line = {"color": _var(rule.colour), "width": 1.6, "dash": "dash"}
    layout["shapes"].append({"type": "line", f"{along}0": rule.at, f"{along}1": rule.at, "line": line, **ends})
    if rule.low is not None and rule.high is not None:
        layout["shapes"].append(
            {"type": "rect", f"{along}0": rule.low, f"{along}1": rule.high, "line": {"width": 0}, "layer": "below",
             "fillcolor": _var(rule.colour) + "/0.10", **ends}
        )  # fmt: skip
    if rule.label is not None:
        data.append(_trace([], [], rule.label, mode="lines", line=line))


def _add_intervals(layer: Intervals, data: list[Trace], layout: dict[str, Any]) -> None:
    for place, low, high, name in zip(range(len(layer.labels)), layer.lows, layer.highs, layer.colours, strict=True):
        line = {"color": _var(name), "width": 2.4}
        data.append(_trace([low, high], [place, place], None, mode="lines", line=line, hoverinfo="skip"))
    marker = {"color": [_var(name) for name in layer.colours], "size": 10}
    places = list(range(len(layer.labels)))
    data.append(_trace(layer.values, places, None, mode="markers", marker=marker, text=_plain(layer.tips),
                       hoverinfo="text"))  # fmt: skip
    layout["yaxis"] |= {
        "tickvals": list(range(len(layer.labels))), "ticktext": _plain(layer.labels),
        "range": [len(layer.labels) - 0.5, -0.5],
    }  # fmt: skip


def _add_cells(layer: Cells, data: list[Trace], layout: dict[str, Any]) -> None:
    scale = []
    for index, name in enumerate(HEAT):
        scale += [[index / len(HEAT), _var(name)], [(index + 1) / len(HEAT), _var(name)]]
    data.append(
        {"type": "heatmap", "z": [numbers(row) for row in layer.values], "x": _plain(layer.columns),
         "y": _plain(layer.rows), "zmin": layer.low, "zmax": layer.high if layer.high > layer.low else layer.low + 1e-9,
         "colorscale": scale, "xgap": 1, "ygap": 1, "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>"}
    )  # fmt: skip
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "category"
    layout["yaxis"]["autorange"] = "reversed"
