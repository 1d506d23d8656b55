"""What a report says about one run, as words, tables and figures; how it looks is decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .coordinates import learned
from .examples import SideBySide, side_by_side
from .figures import curves, losses, masks, scores, trajectory
from .figures.spec import Figure
from .labels import OURS, metric_label, system_label
from .provenance import cost_tables, provenance_tables, system_passes
from .records import RunRecord
from .tables import Table, digits, interval_text, score_cell
from .verdict import Comparison, Verdict, compare, verdict

_TOLD = 2
"""Learned coordinates that stand among the first numbers; all are in the table of the search."""
OUTCOMES = {"wins": "GRASP is better", "ties": "no difference shown", "loses": "GRASP is worse"}


@dataclass(frozen=True)
class Fact:
    """One number that stands out, what it is, and what qualifies it."""

    value: str
    what: str
    more: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a report, in the order: notes, tables, figures, examples, findings."""

    key: str
    title: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    examples: tuple[SideBySide, ...] = ()
    diagnostics: tuple[Mapping[str, Any], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.notes or self.tables or self.figures or self.examples or self.diagnostics)


@dataclass(frozen=True)
class RunContent:
    """Everything about one run. `label` is unique among the runs of a report, `key` so on its page."""

    key: str
    label: str
    about: str
    record: RunRecord
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]


def run_content(record: RunRecord, key: str, label: str) -> RunContent:
    """Return what there is to say about a run; parts that it lacks are left out and named."""
    comparisons = compare(record)
    sections = (
        _scores(record, comparisons, key),
        _ratio(record, key),
        _diagnostics(record),
        _masks(record, key),
        Section("losses", "Losses while training", figures=evened(losses.losses(record, f"{key}-losses"))),
        _examples(record, comparisons),
        Section("cost", "Cost", *cost_tables(record)),
        Section("provenance", "Configuration and provenance", tables=provenance_tables(record)),
    )
    return RunContent(
        key,
        label,
        _about(record),
        record,
        comparisons,
        verdict(record, comparisons),
        _facts(record, comparisons),
        tuple(section for section in sections if not section.empty),
    )


def _about(record: RunRecord) -> str:
    task, language = record.setting("task.name"), record.setting("task.language")
    model = record.setting("model.name_or_path") or "the demo's backbone"
    state = "finished" if record.finished else "not finished"
    started = str(record.manifest.get("started", ""))[:10]
    parts = [f"{task}, {language}", str(model), f"seed {record.setting('seed')}", state, started]
    return " · ".join(part for part in parts if part)


def _facts(record: RunRecord, comparisons: Sequence[Comparison]) -> tuple[Fact, ...]:
    facts = []
    found = record.result("search")
    for one in learned(record)[:_TOLD]:
        more = (
            f"{level(found)} interval {interval_text(one.interval, 2)}" if one.interval else "no interval was estimated"
        )
        facts.append(Fact(f"{one.value:.2f}", f"learned {one.label}", more))
    final = record.result("finalize")
    if "density" in final:
        more = f"of the entries are kept at ratio {float(final['ratio']):.2f}"
        facts.append(Fact(f"{float(final['density']):.1%}", "measured density", more))
    loss = record.scores(OURS).get("loss") if OURS in record.systems else None
    if loss and loss["interval"]:
        more = f"nats {interval_text(loss['interval'], digits('loss'))}, n = {loss['n']}"
        facts.append(Fact(f"{loss['value']:.3f}", "GRASP's test loss", more))
    if comparisons:
        best = min(comparisons, key=lambda c: c.rival_loss)
        more = f"nats against “{best.label}” {interval_text(best.loss.interval, 3)}"
        facts.append(Fact(f"{best.loss.difference:+.3f}", "against the best other method", more))
    return tuple(facts)


def evened(figures: Iterable[Figure | None]) -> tuple[Figure, ...]:
    """Return the figures there are; where those of half the width would leave a gap, the first takes the whole."""
    there = [figure for figure in figures if figure is not None]
    halves = [place for place, figure in enumerate(there) if not figure.wide]
    if len(halves) % 2:
        there[halves[0]] = replace(there[halves[0]], wide=True)
    return tuple(there)


# --- sections -----------------------------------------------------------------------------------------------------


def _scores(record: RunRecord, comparisons: Sequence[Comparison], key: str) -> Section:
    names = scores.metrics(record)
    if not names:
        return Section("scores", "Scores")
    rows = [
        [system_label(s), *(score_cell(record.scores(s).get(m)) for m in names), _passes(record, s)]
        for s in record.systems
    ]
    title = (
        "Scores on the test split, with 95 % intervals, and the token passes of all training that a method needed here"
    )
    table = Table(title, ["method", *map(metric_label, names), "token passes"], rows)
    signatures = {name: _signature(record, name) for name in names}
    how = Table("How each score is computed", ["score", "n", "signature"],
                [[metric_label(n), *signatures[n]] for n in names], folded=True)  # fmt: skip
    figures = [scores.forest(record, name, f"{key}-score-{name.replace('_', '-').lower()}") for name in names]
    tables = (table, *_differences(comparisons), how)
    return Section("scores", "Scores against the other methods", tables=tables, figures=evened(figures))


def _passes(record: RunRecord, system: str) -> str:
    passes = system_passes(record, system)
    return f"{passes:,}" if passes is not None else "-"


def _signature(record: RunRecord, name: str) -> list[str]:
    row = next(row for s in record.systems if (row := record.scores(s).get(name)) is not None)
    return [str(row["n"]), str(row["signature"] if row["available"] else row["reason"])]


def _differences(comparisons: Sequence[Comparison]) -> list[Table]:
    if not comparisons:
        return []
    names = list(dict.fromkeys(name for c in comparisons for name in c.scores))
    rows = []
    for c in sorted(comparisons, key=lambda c: c.rival_loss):
        others = [_difference(c.scores[n], digits(n)) if n in c.scores else "-" for n in names]
        rows.append([c.label, OUTCOMES[c.outcome], _difference(c.loss, 3), f"{c.loss.p_value:.3f}", *others])
    return [
        Table(
            "GRASP less the other method, on the same examples (paired bootstrap; a loss below 0 speaks for GRASP, any "
            "other score above 0)",
            ["against", "by loss", "loss, nats", "p", *map(metric_label, names)],
            rows,
        )
    ]


def _difference(paired: Any, decimals: int) -> str:
    return f"{paired.difference:+.{decimals}f} {interval_text(paired.interval, decimals)}"


def _ratio(record: RunRecord, key: str) -> Section:
    figures = (*trajectory.trajectories(record, key), *curves.settled(record, key))
    return Section("learned", "What was learned", tables=tuple(_search_table(record)), figures=evened(figures))


def level(found: Mapping[str, Any]) -> str:
    """Return the level of the interval of a search's ratio; it is in the record of its estimate."""
    known = (found.get("estimate") or {}).get("level")
    return f"{float(known):.0%}" if known is not None else "bootstrap"


def _search_table(record: RunRecord) -> list[Table]:
    found = record.result("search")
    if not found:
        return []
    estimate = found.get("estimate") or {}
    rows = []
    for one in learned(record):
        rows.append([f"learned {one.label}", f"{one.value:.4f}"])
        rows.append([f"its {level(found)} interval", interval_text(one.interval, 4) if one.interval else "none"])
    rows += [
        ["rounds, micro-dev evaluations", f"{found['rounds']}, {found['evaluations']}"],
        ["search ended", str(found.get("stop_reason") or "all optimizer steps were done")],
    ]
    known = {
        "noise": "noise of one evaluation, nats",
        "noise_regret": "expected loss above the minimum, from noise, nats",
        "slice_regret": "the same, from noise and the choice of micro-dev examples, nats",
    }
    rows += [[words, f"{float(estimate[name]):.4f}"] for name, words in known.items() if name in estimate]
    return [Table("The search in numbers", ["", ""], rows, folded=True)]


def _masks(record: RunRecord, key: str) -> Section:
    figures = [*masks.densities(record, key), trajectory.flips(record, f"{key}-flips")]
    notes = [masks.uniform(record)]
    dynamic = [float(share) for share in record.result("finalize").get("flips", ())]
    if dynamic:
        notes.append(f"The final run selects its mask again after every update: {sum(dynamic) / len(dynamic):.2%} of "
                     f"the entries flipped per update, {max(dynamic):.2%} at most.")  # fmt: skip
    return Section("masks", "Masks", notes=tuple(n for n in notes if n), figures=evened(figures))


def _examples(record: RunRecord, comparisons: Sequence[Comparison]) -> Section:
    shown = side_by_side(record, comparisons)
    note = "Marked words are not in the nearest gold answer. Losses are of the gold answer, in nats; smaller is better."
    return Section("examples", "Examples side by side", notes=(note,) if shown else (), examples=shown)


def _diagnostics(record: RunRecord) -> Section:
    if "search" not in record.stages or not record.result("search"):
        return Section("diagnostics", "Diagnostics")
    found = tuple(record.result("search").get("diagnostics", ()))
    none = () if found else ("None of the controller's checks found anything.",)
    return Section("diagnostics", "Diagnostics and advice", notes=none, diagnostics=found)
