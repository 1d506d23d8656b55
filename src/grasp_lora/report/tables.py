"""Scores and costs of a run as rows and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOSS_DIGITS, SCORE_DIGITS = 3, 1


@dataclass(frozen=True)
class Table:
    """Cells as text under a title; the first column names the row. Empty column names: facts, one per row.

    `folded` tables are read now and then, and are closed at first.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


def digits(metric: str) -> int:
    """Return how many decimals a score is shown with: a loss is in nats, the others are 0 to 100."""
    return LOSS_DIGITS if metric == "loss" else SCORE_DIGITS


def stage_costs(stages: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return tokens and token passes per stage: 2 per token forward, 4 per token forward and backward, dev included.

    The unit is that of the usual accounting (FLOP per body parameter); multiply by the parameters for FLOP. Stages
    that trained nothing, or are not done, are left out.
    """
    rows: dict[str, Any] = {}
    for name, result in stages.items():
        if result is None or result.get("reused"):  # a search's own adapter was paid for by the search
            continue
        outcome = result.get("outcome") or {}
        trained = outcome.get("trained_tokens", 0)
        forward = outcome.get("dev_tokens", 0) + result.get("probe_tokens", 0)
        if not trained and not forward:
            continue
        rows[name] = {
            "optimizer_steps": outcome.get("steps", 0),
            "trained_tokens": trained,
            "forward_tokens": forward,
            "token_passes": 4 * trained + 2 * forward,
        }
    return rows


def score_table(scores: Mapping[str, Any]) -> str:
    """Return a Markdown table of systems and scores, with 95 % intervals."""
    names = list(dict.fromkeys(row["name"] for system in scores.values() for row in system["scores"]))
    lines = [f"| system | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for system, found in scores.items():
        by_name = {row["name"]: row for row in found["scores"]}
        lines.append(f"| {system} | " + " | ".join(score_cell(by_name.get(name)) for name in names) + " |")
    return "\n".join(lines)


def score_cell(row: Mapping[str, Any] | None) -> str:
    """Return a score with its interval, or why there is none."""
    if row is None:
        return "-"
    if not row["available"]:
        return "unavailable"
    interval = row["interval"]
    shown = f" {interval_text(interval, digits(row['name']))}" if interval else ""
    return f"{row['value']:.{digits(row['name'])}f}{shown}"


def interval_text(interval: tuple[float, float] | list[float], decimals: int) -> str:
    """Return `[low, high]`."""
    return f"[{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"
