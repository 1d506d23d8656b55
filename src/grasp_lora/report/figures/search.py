"""Figures of the controller run: its trajectory, the settled loss curve, and what commits did to the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..palette import GAINS
from ..records import Row, RunRecord
from .spec import Band, Bars, Figure, Layer, Legend, Line, Points, Rule

Vector = NDArray[np.float64]
_SHADES = 3
_MARGIN = 0.03
_SHOWN = 0.97
"""Share of the evaluations that the picture of the curve must hold at either end."""


def ratio_of(sample: Any) -> float:
    """Return the ratio of a probed candidate; where several things are learned at once the ratio comes first."""
    if isinstance(sample, Mapping):
        return float(sample.get("p", sample.get("ratio", next(iter(sample.values())))))
    return float(sample[0]) if isinstance(sample, (list, tuple)) else float(sample)


def steps(history: Sequence[Row]) -> list[float]:
    """Return the optimizer step of every round; the round's number where an older log has no steps."""
    return [float(row.get("step", row["round"])) for row in history]


def trajectory(record: RunRecord, key: str) -> Figure | None:
    """Return mean, spread, committed ratio and candidates over the run, candidates coloured by reward."""
    history = record.history
    if not history:
        return None
    x = steps(history)
    mean = [float(row["after"]["mean"]) for row in history]
    spread = [float(row["after"]["std"]) for row in history]
    ratios = [ratio_of(s) for row in history for s in row["samples"]]
    bottom, top = min([*mean, *ratios]), max([*mean, *ratios])
    low, high = (np.clip(np.asarray(mean) + side * np.asarray(spread), bottom, top).tolist() for side in (-1, 1))
    layers: list[Layer] = [
        *_answer(record, "y"),
        Band(x, low, high, "accent", "spread (one sigma)"),
        Line(x, mean, "accent", "mean of the policy"),
        Line(x, committed(history), "ink", "committed ratio", step=True),
    ]
    points, legend = _candidates(history, record)
    return Figure(
        key=key,
        title="How the ratio was learned",
        caption="Each point is a probed ratio, coloured by its reward: the micro-dev loss under the committed mask "
        "less the loss under the candidate, in nats. The policy moves towards ratios with better rewards; the "
        "committed ratio follows in small steps.",
        alt=f"{len(points.x)} candidates in {len(history)} rounds; the policy's mean went from "
        f"{float(history[0]['before']['mean']):.2f} to {mean[-1]:.2f}, its spread ended at {spread[-1]:.3f}, the "
        f"committed ratio at {committed(history)[-1]:.2f}.",
        x_label="optimizer step",
        y_label="prune ratio",
        layers=[*layers, points],
        wide=True,
        height=360,
        legend=legend,
        y_range=(min(bottom, 0.0) - _MARGIN, max(top, *committed(history)) + _MARGIN),
    )


def committed(history: Sequence[Row]) -> list[float]:
    """Return the ratio of the mask after each round; nothing is pruned before the first commit."""
    held, found = 0.0, []
    for row in history:
        if row.get("mask_ratio") is not None:
            held = ratio_of(row["mask_ratio"])
        found.append(held)
    return found


def _answer(record: RunRecord, axis: Any) -> list[Layer]:
    found = record.result("search")
    if "p_star" not in found:
        return []
    low, high = found["interval"] or (None, None)
    return [Rule(axis, float(found["p_star"]), "green", "learned ratio and interval", low, high)]


def _candidates(history: Sequence[Row], record: RunRecord) -> tuple[Points, Legend]:
    rewards = np.asarray([float(r) for row in history for r in row["rewards"]])
    noise = float((record.result("search").get("estimate") or {}).get("noise", 0.0))
    bounds = shade_bounds(rewards, noise)
    x, y, colours, tips = [], [], [], []
    for step, row in zip(steps(history), history, strict=True):
        for sample, reward in zip(row["samples"], row["rewards"], strict=True):
            x.append(step)
            y.append(ratio_of(sample))
            colours.append(shade(float(reward), bounds))
            tips.append(f"round {row['round']}, step {step:.0f}: ratio {y[-1]:.3f}, reward {float(reward):+.4f} nats")
    return Points(x, y, colours, tips), _legend(bounds, noise)


def shade_bounds(rewards: Vector, noise: float) -> Sequence[float]:
    """Return the sizes of a reward at which its shade changes: the noise, then thirds of what lies above it."""
    sizes = np.abs(rewards)[np.abs(rewards) > noise]
    if not len(sizes):
        return (noise, noise, noise)
    return (noise, *(float(q) for q in np.quantile(sizes, [1 / 3, 2 / 3])))


def shade(reward: float, bounds: Sequence[float]) -> str:
    """Return the colour of a reward."""
    step = sum(abs(reward) > bound for bound in bounds)
    return GAINS[_SHADES + step] if reward > 0 else GAINS[_SHADES - step]


def _legend(bounds: Sequence[float], noise: float) -> Legend:
    low, middle, high = bounds
    within = f"within the noise (±{low:.3f})" if noise else "no difference"
    entries = [
        ("worse-3", f"below −{high:.3f}"),
        ("worse-2", f"−{high:.3f} to −{middle:.3f}"),
        ("worse-1", f"−{middle:.3f} to −{low:.3f}"),
        ("noise", within),
        ("better-1", f"{low:.3f} to {middle:.3f}"),
        ("better-2", f"{middle:.3f} to {high:.3f}"),
        ("better-3", f"above {high:.3f}"),
    ]
    return Legend("reward of a candidate, nats", entries)


# --- the settled curve --------------------------------------------------------------------------------------------


def curve(record: RunRecord, key: str) -> Figure | None:
    """Return the settled loss curve with its band and every evaluation, each round set at its own level."""
    estimate = curve_of(record)
    if estimate is None:
        return None
    grid, mean = estimate["grid"], estimate["mean"]
    level = float(estimate.get("level", 0.9))
    layers: list[Layer] = list(_answer(record, "x"))
    if len(estimate.get("low", ())) == len(grid) == len(estimate.get("high", ())):
        layers.append(Band(grid, estimate["low"], estimate["high"], "accent", f"{level:.0%} band"))
    layers.append(Line(grid, mean, "accent", "settled loss curve"))
    points = _evaluations(record.history, np.asarray(grid, float), np.asarray(mean, float))
    if points is not None:
        layers.append(points)
    depth = max(mean) - min(mean)
    y_range, beyond = _view(estimate, points)
    return Figure(
        key=key,
        title="What ratio costs which loss, once training has settled",
        caption="The curve is the controller's estimate from all rounds together, less its minimum. Points are the "
        "single evaluations: orange from the first quarter of the run, when the landscape is still deep, grey later. "
        "A round has a level of its own (training goes on), so each round is moved up or down as a whole to fit the "
        "curve; only differences within a round carry meaning." + beyond,
        alt=f"The fitted curve is {depth:.3f} nats deep between ratios {min(grid):.2f} and {max(grid):.2f}; the "
        f"learned ratio is {float(record.result('search')['p_star']):.2f}.",
        x_label="prune ratio",
        y_label="loss above the minimum, nats",
        layers=layers,
        wide=True,
        height=340,
        y_range=y_range,
    )


def curve_of(record: RunRecord) -> Row | None:
    """Return the recorded estimate when it holds a curve over ratios."""
    estimate = record.result("search").get("estimate") or {}
    grid, mean = estimate.get("grid", ()), estimate.get("mean", ())
    return estimate if len(grid) > 1 and len(grid) == len(mean) else None


def _view(estimate: Row, points: Points | None) -> tuple[tuple[float, float], str]:
    """Return the range of losses to show, so that far evaluations do not flatten the curve, and a word on those."""
    own = [float(value) for name in ("mean", "low", "high") for value in estimate.get(name, ())]
    seen = np.asarray(points.y if points is not None else own)
    top = max(max(own), float(np.quantile(seen, _SHOWN)))
    bottom = min(min(own), float(np.quantile(seen, 1 - _SHOWN)))
    pad = 0.06 * (top - bottom) or 1e-3
    outside = int(((seen > top + pad) | (seen < bottom - pad)).sum())
    told = f" {outside} evaluations lie outside the picture." if outside > 1 else " One lies outside the picture."
    return (bottom - pad, top + pad), told if outside else ""


def _evaluations(history: Sequence[Row], grid: Vector, mean: Vector) -> Points | None:
    x: list[float] = []
    y: list[float] = []
    colours: list[str] = []
    tips: list[str] = []
    first = max((int(row["round"]) for row in history), default=0) / 4
    for row, held in zip(history, [0.0, *committed(history)], strict=False):
        ratios = np.asarray([held, *(ratio_of(s) for s in row["samples"])])
        losses = np.asarray([np.mean(row["baseline"]), *(np.mean(c) for c in row["candidates"])], float)
        inside = (ratios >= grid[0]) & (ratios <= grid[-1])
        if not inside.any():
            continue
        level = float(np.mean(losses[inside] - np.interp(ratios[inside], grid, mean)))
        for ratio, loss in zip(ratios[inside], losses[inside], strict=True):
            x.append(float(ratio))
            y.append(float(loss) - level)
            colours.append("orange" if row["round"] <= first else "grey")
            tips.append(f"round {row['round']}: ratio {ratio:.3f}, micro-dev loss {loss:.4f} nats")
    return Points(x, y, colours, tips) if x else None


# --- commits ------------------------------------------------------------------------------------------------------


def flips(record: RunRecord, key: str) -> Figure | None:
    """Return the share of mask entries that every commit of the search changed."""
    rows = [row for row in record.history if row.get("mask_ratio") is not None]
    if not rows:
        return None
    x, shares = steps(rows), [float(row["flipped"]) for row in rows]
    tips = [
        f"step {step:.0f}: {share:.2%} flipped ({row['pruned']:,} pruned, {row['revived']:,} revived), "
        f"density {float(row['density']):.3f}"
        for step, share, row in zip(x, shares, rows, strict=True)
    ]
    width = 0.7 * min((b - a for a, b in pairwise(x)), default=1.0)
    return Figure(
        key=key,
        title="Mask entries flipped by each commit",
        caption="The first commit makes the first mask. Later ones should change little: entries that come and go are "
        "trained for nothing.",
        alt=f"{len(rows)} commits; the last one flipped {shares[-1]:.2%} of the entries, the largest "
        f"{max(shares):.2%}.",
        x_label="optimizer step",
        y_label="share of entries flipped",
        layers=[Bars(x, shares, width, "accent", tips)],
    )
