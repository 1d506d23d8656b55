"""Figures of the controller run: how each coordinate was learned, and what commits did to the mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from ..coordinates import axes, axis_label, committed, learned, means, points, spreads
from ..records import Row, RunRecord
from . import rewards
from .spec import Band, Bars, Figure, Layer, Line, Points, Rule

_MARGIN = 0.04
"""Free space above and below, as a share of the range."""


def steps(history: Sequence[Row]) -> list[float]:
    """Return the optimizer step of every round; the round's number where nothing was trained between rounds."""
    trained = any(row.get("step") for row in history)
    return [float(row["step"] if trained else row["round"]) for row in history]


def steps_label(history: Sequence[Row]) -> str:
    """Return what `steps` counts."""
    return "optimizer step" if any(row.get("step") for row in history) else "round"


def answer(record: RunRecord, place: int, axis: Literal["x", "y"]) -> list[Layer]:
    """Return the learned value of one coordinate, with its interval, as a rule across a figure."""
    found = learned(record)
    if place >= len(found):
        return []
    low, high = found[place].interval or (None, None)
    words = "learned value and interval" if found[place].interval else "learned value"
    return [Rule(axis, found[place].value, "green", words, low, high)]


def trajectories(record: RunRecord, prefix: str) -> list[Figure]:
    """Return, per axis, mean, spread, committed value and candidates over the run, coloured by reward.

    Where two or more things are learned at once, a map of the candidates on the first two axes follows.
    """
    if not record.history:
        return []
    names = axes(record)
    made = [_trajectory(record, place, name, f"{prefix}-trajectory-{place + 1}") for place, name in enumerate(names)]
    return [*made, _plane(record, names, f"{prefix}-plane")] if len(names) > 1 else made


def _trajectory(record: RunRecord, place: int, name: str, key: str) -> Figure:
    history, label = record.history, axis_label(name)
    x = steps(history)
    mean, spread = [means(row)[place] for row in history], [spreads(row)[place] for row in history]
    held = [point[place] for point in committed(history)[1:]]
    candidates = _candidates(record, place, label)
    bottom, top = min([*mean, *candidates.y]), max([*mean, *candidates.y])
    low, high = (np.clip(np.asarray(mean) + side * np.asarray(spread), bottom, top).tolist() for side in (-1, 1))
    shown = min([bottom, *held]), max([top, *held])
    pad = _MARGIN * (shown[1] - shown[0]) or _MARGIN
    return Figure(
        key=key,
        title=f"How the {label} was learned",
        caption="Each point is a candidate, coloured by its reward: the micro-dev loss at the committed point less the "
        f"loss at the candidate, in nats. The policy moves towards better rewards; the committed {label} follows in "
        "small steps.",
        alt=f"{len(candidates.x)} candidates in {len(history)} rounds; the policy's mean ended at {mean[-1]:.2f} with "
        f"spread {spread[-1]:.3f}, the committed {label} at {held[-1]:.2f}.",
        x_label=steps_label(history),
        y_label=label,
        layers=[
            *answer(record, place, "y"),
            Band(x, low, high, "accent", "spread (one sigma)"),
            Line(x, mean, "accent", "mean of the policy"),
            Line(x, held, "ink", f"committed {label}", step=True),
            candidates,
        ],
        wide=True,
        height=350,
        legend=rewards.legend(rewards.bounds(record)),
        y_range=(shown[0] - pad, shown[1] + pad),
    )


def _candidates(record: RunRecord, place: int, label: str) -> Points:
    borders = rewards.bounds(record)
    x, y, colours, tips = [], [], [], []
    for step, row in zip(steps(record.history), record.history, strict=True):
        for point, reward in zip(points(row), row["rewards"], strict=True):
            x.append(step)
            y.append(point[place])
            colours.append(rewards.shade(float(reward), borders))
            tips.append(f"round {row['round']}, step {step:.0f}: {label} {y[-1]:.3f}, reward {float(reward):+.4f} nats")
    return Points(x, y, colours, tips)


def _plane(record: RunRecord, names: Sequence[str], key: str) -> Figure:
    """Return every candidate on the first two axes: what was tried together with what."""
    first, second = axis_label(names[0]), axis_label(names[1])
    borders = rewards.bounds(record)
    tried = [(point, float(r), row["round"]) for row in record.history
             for point, r in zip(points(row), row["rewards"], strict=True)]  # fmt: skip
    x, y = [point[0] for point, _, _ in tried], [point[1] for point, _, _ in tried]
    tips = [f"round {n}: {first} {p[0]:.3f}, {second} {p[1]:.3f}, reward {r:+.4f} nats" for p, r, n in tried]
    return Figure(
        key=key,
        title=f"{first[:1].upper()}{first[1:]} and {second} together",
        caption="Every candidate of all rounds. Rewards are held against the point that was committed at the time, so "
        "colours of early and late rounds do not compare exactly. Where the dashed lines meet is the learned point.",
        alt=f"{len(x)} candidates; {first} from {min(x):.2f} to {max(x):.2f}, {second} from {min(y):.2f} to "
        f"{max(y):.2f}.",
        x_label=first,
        y_label=second,
        layers=[
            *answer(record, 0, "x"),
            *(Rule(r.axis, r.at, r.colour, None, r.low, r.high) for r in answer(record, 1, "y") if isinstance(r, Rule)),
            Points(x, y, [rewards.shade(r, borders) for _, r, _ in tried], tips),
        ],
        wide=True,
        height=380,
        legend=rewards.legend(borders),
    )


def flips(record: RunRecord, key: str) -> Figure | None:
    """Return the share of mask entries that every commit of the search changed."""
    rows = [row for row in record.history if row.get("mask_ratio") is not None]
    if not rows:
        return None
    x, shares = steps(rows), [float(row["flipped"]) for row in rows]
    unit = steps_label(record.history)
    tips = [
        f"{unit} {step:.0f}: {share:.2%} flipped ({row['pruned']:,} pruned, {row['revived']:,} revived), "
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
        x_label=unit,
        y_label="share of entries flipped",
        layers=[Bars(x, shares, width, "accent", tips)],
    )
