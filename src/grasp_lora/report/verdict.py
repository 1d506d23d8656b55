"""What the run is worth: GRASP against every other method on the same test examples, and one sentence about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..metrics import PairedComparison, paired_bootstrap
from . import coordinates
from .labels import OURS, metric_label, sentence_case, stage_label, system_label
from .records import Row, RunRecord
from .tables import digits, interval_text

Outcome = Literal["wins", "ties", "loses"]
Tone = Literal["good", "even", "bad", "none"]
_NOT_SCORES = {"id", "question", "references", "prediction", "loss"}


@dataclass(frozen=True)
class Comparison:
    """GRASP against one rival: `loss` is GRASP's test loss less the rival's, in nats, so below zero GRASP is better.

    `outcome` is "ties" where the 95 % interval of `loss` holds zero. `scores` are the differences of the other
    per-example scores, 0 to 100, where above zero GRASP is better.
    """

    rival: str
    loss: PairedComparison
    rival_loss: float
    outcome: Outcome
    scores: Mapping[str, PairedComparison] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the rival is called."""
        return system_label(self.rival)


@dataclass(frozen=True)
class Verdict:
    """One sentence about the whole run, and how it reads for GRASP; `notes` qualify it."""

    tone: Tone
    sentence: str
    notes: tuple[str, ...] = ()


def compare(record: RunRecord) -> tuple[Comparison, ...]:
    """Compare GRASP with every system that was scored on the same examples, nearest in loss first.

    Paired bootstrap over test examples (`evaluate.bootstrap` resamples, the run's seed); empty without GRASP's scores.
    """
    ours = record.predictions.get(OURS, ())
    if not ours or OURS not in record.systems:
        return ()
    found = []
    for rival in record.systems:
        theirs = record.predictions.get(rival, ())
        if rival != OURS and _comparable(ours, theirs):
            found.append(_comparison(record, rival, ours, theirs))
    return tuple(sorted(found, key=lambda c: abs(c.loss.difference)))


def _comparable(ours: Sequence[Row], theirs: Sequence[Row]) -> bool:
    """Return whether the rows are of the same examples and all their losses are finite."""
    same = [row["id"] for row in ours] == [row["id"] for row in theirs]
    return same and all(math.isfinite(float(row["loss"])) for row in (*ours, *theirs))


def paired(record: RunRecord, ours: Sequence[Row], theirs: Sequence[Row], name: str) -> PairedComparison:
    """Return the paired bootstrap of one per-example value over two systems' rows of the same examples."""
    return paired_bootstrap(
        [float(row[name]) for row in ours],
        [float(row[name]) for row in theirs],
        resamples=int(record.setting("evaluate.bootstrap")),
        seed=int(record.setting("seed")),
    )


def outcome_of(loss: PairedComparison) -> Outcome:
    """Return how the first system fares when `loss` is its loss less the second's."""
    low, high = loss.interval
    return "wins" if high < 0 else "loses" if low > 0 else "ties"


def _comparison(record: RunRecord, rival: str, ours: Sequence[Row], theirs: Sequence[Row]) -> Comparison:
    loss = paired(record, ours, theirs, "loss")
    scores = {}
    for name in dict.fromkeys(name for row in ours for name in row if name not in _NOT_SCORES):
        # With evaluate.generation_limit only the first examples were answered.
        both = [(a, b) for a, b in zip(ours, theirs, strict=True) if _number(a.get(name)) and _number(b.get(name))]
        if both:
            scores[name] = paired(record, [a for a, _ in both], [b for _, b in both], name)
    level = float(np.mean([float(row["loss"]) for row in theirs]))
    return Comparison(rival, loss, level, outcome_of(loss), scores)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- the sentence -------------------------------------------------------------------------------------------------


def verdict(record: RunRecord, comparisons: Sequence[Comparison]) -> Verdict:
    """Return the run's verdict: unfinished, not scored, worse than a rival, no better than one, or the best."""
    if not comparisons:
        return _unjudged(record)
    worse = sorted((c for c in comparisons if c.outcome == "loses"), key=lambda c: c.rival_loss)
    even = sorted((c for c in comparisons if c.outcome == "ties"), key=lambda c: c.rival_loss)
    better = sorted((c for c in comparisons if c.outcome == "wins"), key=lambda c: c.rival_loss)
    first, *others = worse or even or better
    standing = {"Also better than GRASP": [c for c in others if c in worse],
                "No difference can be shown from": [c for c in even if c is not first],
                "GRASP is better than": better}  # fmt: skip
    notes = [f"{words}: {_named(found)}." for words, found in standing.items() if found]
    left_out = [name for name in record.systems if name != OURS and name not in {c.rival for c in comparisons}]
    notes += [*_contradictions(comparisons), *(_uncompared(name) for name in left_out), *_found(record)]
    notes += _untried(record)
    notes.append(_examples_note(comparisons[0]))
    if worse:
        return Verdict("bad", f"{_start(first)} is better than GRASP by {_nats(first)}: use it instead.", tuple(notes))
    if even:
        return Verdict("even", _even_sentence(first), tuple(notes))
    return Verdict(
        "good",
        f"GRASP has the lowest test loss of {len(better) + 1} methods: it is better than the next one, "
        f"“{first.label}”, by {_nats(first)}.",
        tuple(notes),
    )


def _unjudged(record: RunRecord) -> Verdict:
    open_stages = [stage_label(name) for name, row in record.stages.items() if row is None]
    point = ", ".join(f"{one.label} {one.value:.2f}" for one in coordinates.learned(record))
    learned = f" Learned: {point}." if point else ""
    if not record.stages:
        return Verdict("none", "The run has only just begun: there is nothing to judge yet.")
    if open_stages:
        at = ", ".join(open_stages)
        return Verdict("none", f"The run is not finished (it is at: {at}), so nothing can be judged yet.{learned}")
    if OURS in record.systems:
        alone = "GRASP was scored and no other method was, so its worth is unknown. Ask for some with evaluate.rivals."
        return Verdict("none", alone + learned)
    return Verdict("none", f"Nothing was scored on a test split, so the worth of the result is unknown.{learned}")


def _even_sentence(first: Comparison) -> str:
    return (
        f"No difference between GRASP and “{first.label}” can be shown ({first.loss.difference:+.3f} nats of test loss "
        f"{interval_text(first.loss.interval, 3)}): take the cheaper one."
    )


def _start(comparison: Comparison) -> str:
    """Return the name at the start of a sentence."""
    return f"“{sentence_case(comparison.label)}”"


def _named(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(f"“{c.label}”" for c in comparisons)


def _nats(comparison: Comparison) -> str:
    low, high = sorted(abs(end) for end in comparison.loss.interval)
    return f"{abs(comparison.loss.difference):.3f} nats of test loss {interval_text((low, high), 3)}"


def _examples_note(comparison: Comparison) -> str:
    return (
        f"Judged by the loss of the gold answers of {comparison.loss.n} test examples; intervals are 95 % paired "
        "bootstrap over those examples and do not hold the spread between seeds."
    )


def _untried(record: RunRecord) -> list[str]:
    """Return a note on the simple rivals that take a run of their own and were not given one."""
    missing = [name for name in ("sequential", "merged") if name not in record.systems]
    if not missing:
        return []
    named = " and ".join(f"“{system_label(name)}”" for name in missing)
    return [f"Not tried: {named}, the simple rivals that are hardest to beat. Name them in evaluate.rivals."]


def _uncompared(name: str) -> str:
    return f"“{system_label(name)}” is not compared: it was scored on other examples, or its losses are not all finite."


def _found(record: RunRecord) -> list[str]:
    """Say what the controller's checks found, warnings first."""
    found = record.result("search").get("diagnostics", ())
    named = {kind: [d["code"] for d in found if d["severity"] == kind] for kind in ("warning", "info")}
    parts = [f"{kind}: {', '.join(codes)}" for kind, codes in named.items() if codes]
    return [f"The controller's checks found something ({'; '.join(parts)}): see the diagnostics."] if parts else []


def _contradictions(comparisons: Sequence[Comparison]) -> list[str]:
    """Say where another score, by its own interval, points the other way than the loss."""
    found = []
    for comparison in comparisons:
        for name, score in comparison.scores.items():
            low, high = score.interval
            side = "better" if low > 0 else "worse" if high < 0 else None
            agrees = {"better": comparison.outcome == "wins", "worse": comparison.outcome == "loses"}
            if side is not None and not agrees[side]:
                found.append(
                    f"By {metric_label(name)} GRASP is {side} than “{comparison.label}”: {score.difference:+.1f} "
                    f"{interval_text(score.interval, digits(name))}."
                )
    return found


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    differences = {"loss": comparison.loss, **comparison.scores}
    return {
        "rival": comparison.rival,
        "outcome": comparison.outcome,
        "rival_loss": comparison.rival_loss,
        "differences": {
            name: {"value": d.difference, "interval": list(d.interval), "p_value": d.p_value, "n": d.n}
            for name, d in differences.items()
        },
    }
