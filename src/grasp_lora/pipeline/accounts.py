"""Tables of a run: what each stage cost, and scores as text."""

from __future__ import annotations

from typing import Any

from ..report.tables import score_cell, score_table, stage_costs
from .stages import Run

__all__ = ["cost", "score_cell", "score_table"]


def cost(run: Run) -> dict[str, Any]:
    """Return tokens and token passes of every stage of the run that trained, by its name (`stage_costs`)."""
    return stage_costs(run.folder.stages_done())
