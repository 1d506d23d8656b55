"""Figures of scores: each method's value with its interval, and differences between methods or runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..labels import OURS, metric_label, system_label
from ..records import Row, RunRecord
from ..tables import digits, interval_text
from .spec import Figure, Intervals

_ROW, _AROUND = 34, 78
_FAR = 2.0
"""A loss this many times the median would press all others together."""


def metrics(record: RunRecord) -> list[str]:
    """Return the names of the scores that any system has, in the order in which they were asked for."""
    names = [row for system in record.systems for row in record.scores(system)]
    return list(dict.fromkeys(names))


def forest(record: RunRecord, metric: str, key: str) -> Figure | None:
    """Return one row per system: its score with its 95 % interval; None without any."""
    rows = {name: record.scores(name).get(metric) for name in record.systems}
    known = {name: row for name, row in rows.items() if row and row["available"] and finite(row)}
    shown, far = _without_far(known) if metric == "loss" else (known, [])
    if not shown:
        return None
    better = "smaller" if metric == "loss" else "larger"
    left_out = (
        f" Not in the picture, since it would press the others together: {', '.join(_said(n, known[n]) for n in far)}."
        if far
        else ""
    )
    first = next(iter(shown.values()))
    return rows_figure(
        key,
        f"Test {metric_label(metric)}, {better} is better",
        f"Value and 95 % interval over {first['n']} test examples, which the methods share: compare them by the table "
        f"of differences and not by whether intervals overlap.{left_out}",
        {name: (system_label(name), row) for name, row in shown.items()},
        metric,
    )


def rows_figure(
    key: str, title: str, caption: str, rows: Mapping[str, tuple[str, Row]], metric: str, colours: Sequence[str] = ()
) -> Figure:
    """Return a figure of labelled scores with intervals; without `colours` ours stands out."""
    labels = [label for label, _ in rows.values()]
    scores = [row for _, row in rows.values()]
    said = [f"{label}: {_value(row)}" for label, row in rows.values()]
    return Figure(
        key=key,
        title=title,
        caption=caption,
        alt="; ".join(said) + ".",
        x_label=f"{metric_label(metric)}, nats" if metric == "loss" else metric_label(metric),
        y_label="",
        layers=[
            Intervals(
                labels,
                [float(row["value"]) for row in scores],
                [float(row["interval"][0]) for row in scores],
                [float(row["interval"][1]) for row in scores],
                list(colours) or ["accent" if name == OURS else "grey" for name in rows],
                said,
            )
        ],
        height=_AROUND + _ROW * len(labels),
    )


def finite(row: Row) -> bool:
    """Return whether a score and its interval are there and can be drawn."""
    return bool(row["interval"]) and bool(np.isfinite([row["value"], *row["interval"]]).all())


def _without_far(rows: Mapping[str, Row]) -> tuple[dict[str, Row], list[str]]:
    if len(rows) < 3:
        return dict(rows), []
    middle = float(np.median([row["value"] for row in rows.values()]))
    far = [name for name, row in rows.items() if row["value"] > _FAR * middle and name != OURS]
    return {name: row for name, row in rows.items() if name not in far}, far


def _said(name: str, row: Row) -> str:
    return f"{system_label(name)} ({_value(row)})"


def _value(row: Row) -> str:
    decimals = digits(row["name"])
    return f"{row['value']:.{decimals}f} {interval_text(row['interval'], decimals)}"
