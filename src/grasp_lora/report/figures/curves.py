"""Figures of the settled loss: what each value of a coordinate costs, with the evaluations behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..coordinates import Curve, Learned, axes, axis_label, committed, curves, learned, points
from ..records import Row, RunRecord
from .spec import Band, Figure, Layer, Line, Points
from .trajectory import answer

Vector = NDArray[np.float64]
_SHOWN = 0.97
"""Share of the evaluations that the picture of the curve must hold at either end."""
_NEAR = 0.1
"""How far, as a share of its range, another coordinate may be from the learned one for an evaluation to be drawn."""


def settled(record: RunRecord, prefix: str) -> list[Figure]:
    """Return the settled loss curve along every axis, with its band and evaluations; empty where none is recorded."""
    found = zip(axes(record), curves(record), strict=False)
    return [_figure(record, place, name, curve, f"{prefix}-curve-{place + 1}")
            for place, (name, curve) in enumerate(found)]  # fmt: skip


def _figure(record: RunRecord, place: int, name: str, curve: Curve, key: str) -> Figure:
    label, several = axis_label(name), len(axes(record)) > 1
    level = float(record.result("search")["estimate"].get("level", 0.9))
    layers: list[Layer] = list(answer(record, place, "x"))
    if curve.low:
        layers.append(Band(curve.grid, curve.low, curve.high, "accent", f"{level:.0%} band"))
    layers.append(Line(curve.grid, curve.mean, "accent", "settled loss"))
    seen = _evaluations(record, place)
    if seen is not None:
        layers.append(seen)
    y_range, beyond = _view(curve, seen)
    return Figure(
        key=key,
        title=f"Settled loss by {label}",
        caption=_caption(several) + beyond,
        alt=f"The fitted curve is {max(curve.mean) - min(curve.mean):.3f} nats deep for {label} from "
        f"{min(curve.grid):.2f} to {max(curve.grid):.2f}; the learned value is {learned(record)[place].value:.2f}.",
        x_label=label,
        y_label="loss above the minimum, nats",
        layers=layers,
        wide=not several,
        height=340,
        y_range=y_range,
    )


def _caption(several: bool) -> str:
    through = " through the learned point" if several else ""
    which = (
        "those evaluations whose other coordinates are close to the learned ones" if several else "single evaluations"
    )
    return (
        f"The curve is the controller's estimate from all rounds together{through}, less its minimum. Points are "
        f"{which}: orange from the first quarter of the run, when the landscape is still deep, grey later. A round has "
        "a level of its own (training goes on), so its points are moved up or down together to fit the curve; only "
        "differences within a round carry meaning."
    )


def _evaluations(record: RunRecord, place: int) -> Points | None:
    history = record.history
    curve, best = curves(record)[place], learned(record)
    grid, mean = np.asarray(curve.grid, float), np.asarray(curve.mean, float)
    spans = [max(c.grid) - min(c.grid) for c in curves(record)]
    x: list[float] = []
    y: list[float] = []
    colours: list[str] = []
    tips: list[str] = []
    first = max((int(row["round"]) for row in history), default=0) / 4
    label = axis_label(axes(record)[place])
    for row, held in zip(history, committed(history), strict=False):
        at, losses = _near(row, held, place, best, spans)
        inside = (at >= grid[0]) & (at <= grid[-1])
        if not inside.any():
            continue
        level = float(np.mean(losses[inside] - np.interp(at[inside], grid, mean)))
        for value, loss in zip(at[inside], losses[inside], strict=True):
            x.append(float(value))
            y.append(float(loss) - level)
            colours.append("orange" if row["round"] <= first else "grey")
            tips.append(f"round {row['round']}: {label} {value:.3f}, micro-dev loss {loss:.4f} nats")
    return Points(x, y, colours, tips) if x else None


def _near(
    row: Row, held: Sequence[float], place: int, best: Sequence[Learned], spans: Sequence[float]
) -> tuple[Vector, Vector]:
    """Return one coordinate and the mean loss of a round's evaluations whose other coordinates are near the best."""
    tried = [held, *points(row)]
    losses = [float(np.mean(row["baseline"])), *(float(np.mean(c)) for c in row["candidates"])]
    kept = [
        (point[place], loss)
        for point, loss in zip(tried, losses, strict=True)
        if all(abs(point[d] - best[d].value) <= _NEAR * spans[d] for d in range(len(spans)) if d != place)
    ]
    return np.asarray([value for value, _ in kept]), np.asarray([loss for _, loss in kept])


def _view(curve: Curve, seen: Points | None) -> tuple[tuple[float, float], str]:
    """Return the range of losses to show, so that far evaluations do not flatten the curve, and a word on those."""
    own = [float(value) for part in (curve.mean, curve.low, curve.high) for value in part]
    levels = np.asarray(seen.y if seen is not None else own)
    top = max(max(own), float(np.quantile(levels, _SHOWN)))
    bottom = min(min(own), float(np.quantile(levels, 1 - _SHOWN)))
    pad = 0.06 * (top - bottom) or 1e-3
    outside = int(((levels > top + pad) | (levels < bottom - pad)).sum())
    told = f" {outside} evaluations lie outside the picture." if outside > 1 else " One lies outside the picture."
    return (bottom - pad, top + pad), told if outside else ""
