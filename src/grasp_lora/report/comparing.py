"""Several runs side by side: one table, the settings that differ, trajectories and curves laid over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..runs import flatten, to_json
from .content import RunContent, evened
from .coordinates import Learned, axes, axis_label, committed, curves, learned, means
from .figures import scores, trajectory
from .figures.spec import Band, Figure, Layer, Line, Rule
from .labels import OURS
from .palette import series
from .provenance import system_passes
from .records import RunRecord
from .tables import Table, digits, interval_text, score_cell
from .verdict import outcome_of, paired

_NOT_COMPARED = ("run",)
"""Settings that say where a run lies and not what it computes."""
_BANDS = 4
"""Runs whose bands can be told apart when laid over one another."""
_PAIRS = 10
"""Pairs of runs that are read at a glance; more are folded."""


@dataclass(frozen=True)
class RunsComparison:
    """What several runs say together."""

    sentence: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


def compare_runs(runs: Sequence[RunContent]) -> RunsComparison:
    """Return the comparison of two or more runs; losses are held against each other on the same test examples only."""
    scored = [run for run in runs if OURS in run.record.systems]
    groups = _same_examples(scored)
    notes = []
    if len(groups) > 1:
        parts = "; ".join(", ".join(f"“{run.label}”" for run in group) for group in groups)
        notes.append(f"These runs were scored on different test examples, so losses of one group say nothing about "
                     f"another: {parts}.")  # fmt: skip
    notes += [f"“{run.label}” has no scores of GRASP." for run in runs if run not in scored]
    figures = [_ratios(runs), _curves(runs), *(_forest(group, n) for n, group in enumerate(groups) if len(group) > 1)]
    differing = _settings(runs)
    return RunsComparison(
        _sentence(groups),
        tuple(notes),
        (_overview(runs, groups), *_pairs(groups), *differing),
        evened(figures),
    )


def _same_examples(runs: Sequence[RunContent]) -> list[list[RunContent]]:
    groups: dict[Any, list[RunContent]] = {}
    for run in runs:
        rows = run.record.predictions.get(OURS, ())
        key = tuple((row["id"], *row["references"]) for row in rows)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _value(run: RunContent) -> float:
    rows = run.record.predictions[OURS]
    return sum(float(row["loss"]) for row in rows) / len(rows)


def _ranked(group: Sequence[RunContent]) -> list[RunContent]:
    return sorted((run for run in group if run.record.predictions.get(OURS)), key=_value)


def _sentence(groups: Sequence[Sequence[RunContent]]) -> str:
    ranked = _ranked(max(groups, key=len)) if groups else []
    if len(ranked) < 2:
        return "No two of these runs were scored on the same test examples, so none can be called better."
    first, second = ranked[:2]
    loss = _loss(first.record, second.record)
    ahead = (
        f"“{first.label}” has the lowest test loss of {len(ranked)} runs, {abs(loss.difference):.3f} nats below "
        f"“{second.label}” "
    )
    if outcome_of(loss) == "wins":
        low, high = sorted(abs(end) for end in loss.interval)
        return f"{ahead}{interval_text((low, high), 3)}."
    return (
        f"{ahead}(difference {loss.difference:+.3f} {interval_text(loss.interval, 3)}): the two cannot be told apart."
    )


def _loss(first: RunRecord, second: RunRecord) -> Any:
    return paired(first, first.predictions[OURS], second.predictions[OURS], "loss")


# --- tables -------------------------------------------------------------------------------------------------------


def _overview(runs: Sequence[RunContent], groups: Sequence[Sequence[RunContent]]) -> Table:
    columns = ["run", "learned", "density", "GRASP's test loss", "best other method", "token passes", "state"]
    columns += ["test set"] if len(groups) > 1 else []
    rows = [_row(run) + ([_set_of(run, groups)] if len(groups) > 1 else []) for run in runs]
    return Table("The runs", columns, rows)


def _row(run: RunContent) -> list[str]:
    record = run.record
    density = record.result("finalize").get("density")
    best = min(run.comparisons, key=lambda c: c.rival_loss, default=None)
    passes = system_passes(record, OURS)
    return [
        run.label,
        "; ".join(_coordinate(one, len(axes(record))) for one in learned(record)) or "-",
        f"{float(density):.1%}" if density is not None else "-",
        score_cell(record.scores(OURS).get("loss") if OURS in record.systems else None),
        f"{best.label} {best.rival_loss:.{digits('loss')}f}" if best else "-",
        f"{passes:,}" if passes is not None else "-",
        "finished" if record.finished else "not finished",
    ]


def _coordinate(one: Learned, count: int) -> str:
    """Return a learned value with its interval, named where there are several."""
    name = f"{one.label} " if count > 1 else ""
    return f"{name}{one.value:.2f}" + (f" {interval_text(one.interval, 2)}" if one.interval else "")


def _set_of(run: RunContent, groups: Sequence[Sequence[RunContent]]) -> str:
    return next((chr(ord("A") + n) for n, group in enumerate(groups) if run in group), "-")


def _pairs(groups: Sequence[Sequence[RunContent]]) -> list[Table]:
    words = {"wins": "the first is better", "ties": "no difference shown", "loses": "the first is worse"}
    rows = []
    for group in groups:
        ranked = _ranked(group)
        for place, first in enumerate(ranked):
            for second in ranked[place + 1 :]:
                loss = _loss(first.record, second.record)
                shown = f"{loss.difference:+.3f} {interval_text(loss.interval, 3)}"
                rows.append([first.label, second.label, shown, f"{loss.p_value:.3f}", words[outcome_of(loss)]])
    if not rows:
        return []
    title = "GRASP's test loss, first run less second, on the same examples (paired bootstrap, 95 %)"
    return [Table(title, ["first", "second", "nats", "p", "so"], rows, folded=len(rows) > _PAIRS)]


def _settings(runs: Sequence[RunContent]) -> list[Table]:
    flats = [flatten(run.record.config) for run in runs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    rows = []
    for name in names:
        shown = [to_json(flat[name]) if name in flat else "(not set)" for flat in flats]
        if len(set(shown)) > 1 and name.partition(".")[0] not in _NOT_COMPARED:
            rows.append([name, *shown])
    return [Table("Settings that differ", ["setting", *(run.label for run in runs)], rows)] if rows else []


# --- figures ------------------------------------------------------------------------------------------------------


def _ratios(runs: Sequence[RunContent]) -> Figure | None:
    layers: list[Layer] = []
    said = []
    for index, run in enumerate(runs):
        history = run.record.history
        if not history:
            continue
        x, colour = trajectory.steps(history), series(index)
        held = [point[0] for point in committed(history)[1:]]
        layers.append(Line(x, [means(row)[0] for row in history], colour, faint=True, dashed=True))
        layers.append(Line(x, held, colour, run.label, step=True))
        said.append(f"{run.label}: committed at {held[-1]:.2f} after {len(history)} rounds")
    if not layers:
        return None
    return Figure(
        "runs-trajectories", f"Committed {_first(runs)} of each run",
        "Solid: the value at which the mask is committed. Dashed: the mean of the policy.", "; ".join(said) + ".",
        "optimizer step", _first(runs), layers, wide=True, height=340,
    )  # fmt: skip


def _first(runs: Sequence[RunContent]) -> str:
    """Return what the runs' first axis is called; runs with different ones share the general word."""
    names = {axis_label(axes(run.record)[0]) for run in runs}
    return names.pop() if len(names) == 1 else axis_label("ratio")


def _curves(runs: Sequence[RunContent]) -> Figure | None:
    layers: list[Layer] = []
    said = []
    for index, run in enumerate(runs):
        found, colour = curves(run.record), series(index)
        if not found:
            continue
        if len(runs) <= _BANDS and found[0].low:
            layers.append(Band(found[0].grid, found[0].low, found[0].high, colour))
        layers.append(Line(found[0].grid, found[0].mean, colour, run.label))
        best = learned(run.record)[0].value
        layers.append(Rule("x", best, colour))
        said.append(f"{run.label}: learned {best:.2f}")
    if not layers:
        return None
    return Figure(
        "runs-curves", "Settled loss of each run",
        "Each curve runs through its learned point and is less its own minimum, so depths and shapes compare and "
        "levels do not. Dashed lines are the learned values.", "; ".join(said) + ".",
        _first(runs), "loss above the minimum, nats", layers, wide=True, height=340,
    )  # fmt: skip


def _forest(group: Sequence[RunContent], number: int) -> Figure | None:
    rows = {run.key: (run.label, run.record.scores(OURS).get("loss")) for run in group}
    known = {key: (label, row) for key, (label, row) in rows.items() if row and scores.finite(row)}
    if not known:
        return None
    return scores.rows_figure(
        f"runs-losses-{number}",
        "GRASP's test loss of each run, smaller is better",
        "Value and 95 % interval over the same test examples.",
        known,
        "loss",
        ["accent"] * len(known),
    )
