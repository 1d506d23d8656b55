"""Figures of losses: training, micro-dev and dev, one picture per stage that trained something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..labels import sentence_case, stage_label
from ..records import Row, RunRecord
from .spec import Figure, Layer, Line, Points
from .trajectory import steps

_SMOOTHED = 40
"""Points that a smoothed curve of training losses has at most."""
_SINGLE = 1500
"""Single steps that are drawn at most."""


def losses(record: RunRecord, prefix: str) -> list[Figure]:
    """Return one figure per stage that has a log, in the order of the method."""
    made = [_stage(record, name, f"{prefix}-{name.replace('_', '-')}") for name in record.stages]
    return [figure for figure in made if figure is not None]


def _stage(record: RunRecord, name: str, key: str) -> Figure | None:
    events = record.events.get(name, ())
    trained = [event for event in events if event["kind"] == "step"]
    if not trained:
        return None
    epochs = [event for event in events if event["kind"] == "epoch"]
    layers: list[Layer] = [_each(trained), *_smooth(trained)]
    said = [f"training loss from {trained[0]['loss']:.3f} to {trained[-1]['loss']:.3f} in {len(trained)} steps"]
    if name == "search" and record.history:
        micro = [float(np.mean(row["baseline"])) for row in record.history]
        layers.append(Line(steps(record.history), micro, "orange", "micro-dev, committed mask"))
        said.append(f"micro-dev loss from {micro[0]:.3f} to {micro[-1]:.3f}")
    dev = _dev(trained, epochs)
    if dev is not None:
        layers += [Line(dev.x, dev.y, "green", "dev"), dev]
        said.append(f"best dev loss {min(dev.y):.3f}")
    return Figure(
        key=key,
        title=sentence_case(stage_label(name)),
        caption=_caption(record.result(name)),
        alt="; ".join(said) + ".",
        x_label="optimizer step",
        y_label="loss, nats",
        layers=layers,
    )


def _caption(result: Row) -> str:
    outcome = result.get("outcome")
    if outcome is None:
        return "This stage is not done yet."
    best = outcome["best_epoch"]
    if best is None:
        return "There was no dev set to pick an epoch by, or none was asked for: the last state counts."
    if best < 0 and result.get("asked", result.get("point")) != result.get("point"):
        return "The merge as it came, neither pruned nor trained further, had the best dev loss and was kept."
    if best < 0:
        return "No epoch had a better dev loss than the merge before training, which is the one that was kept."
    early = ", and training stopped early" if outcome["stopped_early"] else ""
    return f"Epoch {best + 1} of {outcome['epochs']} had the best dev loss and is the one that was kept{early}."


def _each(trained: Sequence[Row]) -> Line:
    """Return single steps; of a very long stage every k-th."""
    shown = trained[:: -(-len(trained) // _SINGLE)]
    return Line([float(e["step"]) for e in shown], [float(e["loss"]) for e in shown], "accent", faint=True)


def _smooth(trained: Sequence[Row]) -> list[Layer]:
    """Return means of runs of steps, so that the trend is seen through batches of one."""
    size = -(-len(trained) // _SMOOTHED)
    if len(trained) < 2:
        return []
    groups = [trained[i : i + size] for i in range(0, len(trained), size)]
    x = [float(np.mean([e["step"] for e in group])) for group in groups]
    y = [float(np.mean([e["loss"] for e in group])) for group in groups]
    label = "training" if size == 1 else f"training, mean of {size} steps"
    return [Line(x, y, "accent", label)]


def _dev(trained: Sequence[Row], epochs: Sequence[Row]) -> Points | None:
    """Return dev losses at the step that ended their epoch."""
    last = {int(event["epoch"]): float(event["step"]) for event in trained}
    known = [e for e in epochs if e.get("dev_loss") is not None and int(e["epoch"]) in last]
    if not known:
        return None
    x, y = [last[int(e["epoch"])] for e in known], [float(e["dev_loss"]) for e in known]
    tips = [f"epoch {int(e['epoch']) + 1}: dev loss {float(e['dev_loss']):.4f}" for e in known]
    return Points(x, y, ["green"] * len(x), tips)
