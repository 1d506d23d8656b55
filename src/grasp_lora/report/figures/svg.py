"""Figures as SVG by matplotlib: no script, colours of the page's theme, words that stay words.

matplotlib is given a stand-in colour per role, which is replaced by the page's CSS variable afterwards: one picture
serves light and dark.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtraError
from ..palette import HEAT, LIGHT
from .spec import Band, Bars, Cells, Figure, Intervals, Layer, Line, Points, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, HALF, NARROW = 1016, 500, 332
"""Widths in pixels: the whole page, half of it, and a phone of 380 pixels less its margins."""
_TEXT = 12.0
_MOST_CELL_TEXTS = 96
_TICKS = {WIDE: 8, HALF: 5, NARROW: 4}
_SHORT, _LONG = 20, 34
"""Letters of a row's label in one line, on a phone and elsewhere."""
_COARSE = 0.1
"""Cells that differ by less than this are written with three decimals."""
_STAND_IN = {name: f"#0a0{index:03x}" for index, name in enumerate(LIGHT, start=1)}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": _TEXT,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "axes.edgecolor": _STAND_IN["line"],
    "axes.labelcolor": _STAND_IN["muted"],
    "xtick.color": _STAND_IN["line"],
    "ytick.color": _STAND_IN["line"],
    "xtick.labelcolor": _STAND_IN["muted"],
    "ytick.labelcolor": _STAND_IN["muted"],
    "grid.color": _STAND_IN["line"],
    "grid.linewidth": 0.6,
    "text.color": _STAND_IN["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.0,
}


def check_installed() -> None:
    """Raise `MissingExtraError` when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "drawing the figures of a report") from None


def draw(figure: Figure, width: int) -> str:
    """Return the figure as an `<svg>` element of `width` pixels; the same figure always gives the same text."""
    check_installed()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    prefix = f"{figure.key}-{width}"
    narrow = width == NARROW
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": prefix}), warnings.catch_warnings():
        # The browser has the letters that the measuring font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        canvas = Canvas(figsize=(width / 72, _height(figure, narrow) / 72), layout="constrained", facecolor="none")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot(facecolor="none")
        tips: dict[str, Sequence[str]] = {}
        for index, layer in enumerate(figure.layers):
            found = _draw_layer(axes, layer, f"tips{index}", narrow)
            tips |= {f"tips{index}": found} if found else {}
        _finish(axes, figure, width)
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return _clean(stream.getvalue(), prefix, figure, tips)


def _height(figure: Figure, narrow: bool) -> int:
    return figure.height if not narrow or _has_rows(figure) else min(figure.height, 270)


def _has_rows(figure: Figure) -> bool:
    return any(isinstance(layer, (Intervals, Cells)) for layer in figure.layers)


# --- layers -------------------------------------------------------------------------------------------------------


def _draw_layer(axes: Axes, layer: Layer, gid: str, narrow: bool) -> Sequence[str]:
    """Draw one layer and return what its marks say, in the order in which they are drawn."""
    match layer:
        case Line():
            axes.plot(
                layer.x, layer.y, color=_STAND_IN[layer.colour],
                linestyle="--" if layer.dashed else "-", linewidth=1.0 if layer.faint else 2.0,
                alpha=0.55 if layer.faint else 1.0, drawstyle="steps-post" if layer.step else "default",
            )  # fmt: skip
        case Band():
            colour = _STAND_IN[layer.colour]
            axes.fill_between(layer.x, layer.low, layer.high, color=colour, alpha=0.16, lw=0)
        case Points():
            marks = axes.scatter(
                layer.x, layer.y, s=30 if narrow else 38, c=[_STAND_IN[name] for name in layer.colours],
                edgecolors=_STAND_IN["surface"], linewidths=0.8, zorder=3,
            )  # fmt: skip
            marks.set_gid(gid)
            return layer.tips
        case Rule():
            _draw_rule(axes, layer)
        case Bars():
            bars = axes.bar(layer.x, layer.heights, width=layer.width, color=_STAND_IN[layer.colour])
            for index, bar in enumerate(bars):
                bar.set_gid(f"{gid}-{index}")
            return layer.tips
        case Intervals():
            return _draw_intervals(axes, layer, gid, narrow)
        case Cells():
            return _draw_cells(axes, layer, gid, narrow)
    return ()


def _draw_rule(axes: Axes, rule: Rule) -> None:
    line, span = (axes.axvline, axes.axvspan) if rule.axis == "x" else (axes.axhline, axes.axhspan)
    colour = _STAND_IN[rule.colour]
    if rule.low is not None and rule.high is not None:
        span(rule.low, rule.high, color=colour, alpha=0.10, lw=0)
    line(rule.at, color=colour, linestyle=(0, (5, 3)), linewidth=1.6)


def _draw_intervals(axes: Axes, layer: Intervals, gid: str, narrow: bool) -> Sequence[str]:
    places = range(len(layer.labels))
    for place, low, high, name in zip(places, layer.lows, layer.highs, layer.colours, strict=True):
        axes.plot([low, high], [place, place], color=_STAND_IN[name], linewidth=2.4, solid_capstyle="butt")
    marks = axes.scatter(layer.values, places, s=46, c=[_STAND_IN[name] for name in layer.colours], zorder=3)
    marks.set_gid(gid)
    axes.set_yticks(list(places), [_short(label, narrow) for label in layer.labels])
    axes.set_ylim(len(layer.labels) - 0.5, -0.5)
    return layer.tips


def _short(label: str, narrow: bool) -> str:
    """Return a label in at most two lines; what is cut off stands in the picture's description."""
    return "\n".join(textwrap.wrap(label, _SHORT if narrow else _LONG, max_lines=2, placeholder="…"))


def _draw_cells(axes: Axes, layer: Cells, gid: str, narrow: bool) -> Sequence[str]:
    from matplotlib.patches import Rectangle

    tips: list[str] = []
    decimals = 2 if layer.high - layer.low >= _COARSE else 3
    written = not narrow and len(layer.rows) * len(layer.columns) <= _MOST_CELL_TEXTS
    for row, values in enumerate(layer.values):
        for column, value in enumerate(values):
            if value is None:
                continue
            step = layer.step(value, len(HEAT))
            colour = _STAND_IN[HEAT[step]]
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=_STAND_IN["surface"], lw=1)
            cell.set_gid(f"{gid}-{len(tips)}")
            axes.add_patch(cell)
            tips.append(f"{layer.rows[row]}, {layer.columns[column]}: {value:.3f}")
            if written:
                ink = _STAND_IN["heat-low-ink" if step < len(HEAT) // 2 else "heat-high-ink"]
                axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", color=ink, fontsize=_TEXT - 1)
    every = max(1, -(-len(layer.columns) // (12 if narrow else 32)))
    axes.set_xticks(range(0, len(layer.columns), every), list(layer.columns)[::every])
    axes.set_yticks(range(len(layer.rows)), [_short(row, narrow) for row in layer.rows])
    axes.set_xlim(-0.5, len(layer.columns) - 0.5)
    axes.set_ylim(len(layer.rows) - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return tips


def _finish(axes: Axes, figure: Figure, width: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.tick_params(length=3)
    if figure.y_range is not None:
        axes.set_ylim(*figure.y_range)
    rows = _has_rows(figure)
    if not any(isinstance(layer, Cells) for layer in figure.layers):
        axes.xaxis.set_major_locator(MaxNLocator(_TICKS[width]))
        axes.grid(axis="x" if rows else "y")
        axes.set_axisbelow(True)


# --- the text of the picture --------------------------------------------------------------------------------------


def _clean(svg: str, prefix: str, figure: Figure, tips: Mapping[str, Sequence[str]]) -> str:
    """Return the bare element: own ids, the theme's colours and font, and what each mark says as its title."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="(?!tips)[\w.]+">', "<g>", body)  # matplotlib's own names
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{prefix}-", body).replace("xlink:href", "href")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \g<1>px system-ui, sans-serif", body)
    for name, colour in _STAND_IN.items():
        body = body.replace(colour, f"var(--{name})")
    for gid, words in tips.items():
        body = _with_titles(body, f"{prefix}-{gid}", words)
    body = re.sub(r"\n\s*", "\n", body)
    view = re.search(r'viewBox="([^"]+)"', body)
    box = view.group(1) if view else ""
    title = f"<title>{escape(figure.title)}</title><desc>{escape(figure.alt)}</desc>"
    opening = f'<svg viewBox="{box}" role="img" aria-label="{escape(f"{figure.title}. {figure.alt}")}">{title}'
    return re.sub(r"<svg[^>]*>", lambda _found: opening, body, count=1).strip()


def _with_titles(body: str, gid: str, words: Sequence[str]) -> str:
    """Give every mark of a layer its words: `<use>` elements of one group, or groups of their own."""
    group = re.search(rf'<g id="{gid}">(.*?)</g>\s*</g>', body, flags=re.DOTALL)
    if group is not None:
        said = iter(words)
        marks = re.sub(
            r"(<use [^>]*?)/>", lambda found: f"{found[1]}><title>{escape(next(said))}</title></use>", group[0]
        )
        return body.replace(group[0], marks, 1)
    for index, text in enumerate(words):
        body = body.replace(f'<g id="{gid}-{index}">', f"<g><title>{escape(text)}</title>", 1)
    return body
