"""Test loss against token passes, one panel per cell: what a method's quality costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import MissingExtraError
from ..runs import disk_errors

_WIDTH, _HEIGHT = 7.0, 4.5  # inches of a panel
_LINEAR_BELOW = 1e4  # token passes drawn on a linear scale, so that free methods have a place


def cost_quality_plot(records: Mapping[str, Any], path: Path) -> None:
    """Draw the plot into `path` (its suffix gives the format: svg, png, pdf).

    Raises `MissingExtraError` without matplotlib and `RunError` when the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "the cost-quality plot") from None
    # No window, no global figure state, and the same bytes for the same records.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [cell for cell in records["cells"] if any("loss" in row["scores"] for row in cell["rows"])]
    with matplotlib.rc_context({"svg.hashsalt": "grasp-lora", "svg.fonttype": "none"}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * max(1, len(cells))), layout="constrained")
        FigureCanvasAgg(figure)
        for place, cell in enumerate(cells, start=1):
            _panel(figure.add_subplot(len(cells), 1, place), cell)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def _panel(axes: Any, cell: Mapping[str, Any]) -> None:
    """Draw one cell: a point per method, its loss interval over test examples, and its name."""
    for row in cell["rows"]:
        loss = row["scores"].get("loss")
        if loss is None:
            continue
        passes = fmean(seed["cost"]["token_passes"] for seed in row["seeds"])
        colour = "tab:red" if row["method"].startswith("grasp") else "tab:blue"
        if loss["interval"] is not None:
            axes.plot([passes, passes], loss["interval"], color=colour, alpha=0.3, linewidth=1)
        axes.plot([passes], [loss["mean"]], "o", color=colour, markersize=4)
        axes.annotate(row["title"], (passes, loss["mean"]), textcoords="offset points", xytext=(4, 3), fontsize=6)
    axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
    axes.set_xlabel("token passes (2 per token forward, 4 forward and backward), adapters not counted")
    axes.set_ylabel("test loss (nats)")
    axes.set_title(f"{cell['name']} (n = {cell['examples']})", fontsize=9)
