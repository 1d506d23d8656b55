"""Tables of a run: what each stage cost, and scores as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .stages import Run


def cost(run: Run) -> dict[str, Any]:
    """Return tokens and token passes per stage: 2 per token forward, 4 per token forward and backward, dev included.

    The unit is that of the usual accounting (FLOP per body parameter); multiply by the parameters for FLOP.
    """
    rows: dict[str, Any] = {}
    for name, result in run.folder.stages_done().items():
        if result.get("reused"):  # a search's own adapter was paid for by the search
            continue
        outcome = result.get("outcome", {})
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
    digits = 3 if row["name"] == "loss" else 1
    interval = row["interval"]
    shown = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{row['value']:.{digits}f}{shown}"
