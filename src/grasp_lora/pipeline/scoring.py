"""Systems scored on the test split, each in a stage of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..adapters.merge import Pair
from .evaluation import SystemScores, evaluate_system, score_rows, write_predictions
from .stages import Run, begin


def evaluate_stage(
    run: Run, name: str, factors: Callable[[], Mapping[str, Pair]], made_from: Mapping[str, str]
) -> dict[str, Any]:
    """Score one system on the test split, once; its predictions are kept beside the scores."""
    stage = run.folder.stage(f"evaluate_{name}")
    done = begin(run, stage, **made_from)
    if done is not None:
        return done
    scores: SystemScores = evaluate_system(run.setup, name, factors(), run.io(stage))
    write_predictions(stage.path / "predictions.jsonl", run.setup.target["test"], scores)
    return stage.finish({"scores": score_rows(scores.scores), "examples": len(scores.losses)})
