"""Judge systems on the test split: losses, generated answers and scores, kept per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters.inject import Injection
from ..adapters.merge import Pair
from ..config import EvaluateConfig
from ..data import Example, collate, encode_prompts_kept, length_sorted_chunks
from ..metrics import Score, score_losses, score_predictions
from ..probing import example_losses
from ..runs import write_text_atomic
from ..runs.atomic import to_json
from ..training.setup import Setup
from .generation import generate_answers
from .stageio import StageIO

# Metrics that suit a task, in the order of its tables.
SUITABLE = {
    "qa": ("loss", "em", "f1", "bertscore"),
    "summarization": ("loss", "rouge", "bleu", "chrf", "bertscore"),
}


@dataclass(frozen=True)
class SystemScores:
    """One system's scores on a split and what it wrote, in the split's order; answers may be fewer than losses."""

    name: str
    scores: tuple[Score, ...]
    losses: tuple[float, ...]
    predictions: tuple[str, ...]
    per_example: Mapping[str, tuple[float, ...]]

    def score(self, name: str) -> Score:
        """Return one score by name; raises KeyError when it was not asked for."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)


def chosen_metrics(config: EvaluateConfig, task: str) -> tuple[str, ...]:
    """Return the metrics asked for, or all that suit the task (BERTScore only when an encoder is named)."""
    if config.metrics is not None:
        return tuple(config.metrics)
    return tuple(m for m in SUITABLE[task] if m != "bertscore" or config.bertscore_model)


def evaluate_system(
    setup: Setup, name: str, factors: Mapping[str, Pair], io: StageIO, split: str = "test"
) -> SystemScores:
    """Score the base model with `factors` added (none: zero shot) on a split of the target.

    Losses are of the gold answers; the other metrics are of greedy generations, which `evaluate.generation_limit` keeps
    to the first examples. Truncation is counted by `encode`.
    """
    config = setup.config.evaluate
    examples = list(setup.target.get(split, ()))[: config.limit]
    metrics = chosen_metrics(config, setup.task.name)
    with Injection(setup.base.model, factors) as injection, injection.active(factors):
        losses = _losses(setup, split, len(examples), io)
        wanted = [metric for metric in metrics if metric != "loss"]
        asked = examples[: config.generation_limit]
        predictions = _predictions(setup, asked, name, io) if wanted else []
    scores: list[Score] = []
    per_example: dict[str, tuple[float, ...]] = {}
    if "loss" in metrics:
        scores.append(score_losses(losses, bootstrap=config.bootstrap, seed=setup.config.seed))
    if wanted:
        found = score_predictions(
            predictions, [e.answers for e in asked], language=setup.task.language, metrics=wanted,
            bootstrap=config.bootstrap, seed=setup.config.seed, bertscore_model=config.bertscore_model,
            device=str(setup.base.device),
        )  # fmt: skip
        scores += found.scores
        per_example = dict(found.per_example)
    return SystemScores(name, tuple(scores), tuple(losses), tuple(predictions), per_example)


def split_losses(setup: Setup, factors: Mapping[str, Pair], split: str, io: StageIO) -> list[float]:
    """Return the loss of every example of a target split under the base model with `factors` added (none: bare)."""
    with Injection(setup.base.model, factors) as injection, injection.active(factors):
        return _losses(setup, split, len(setup.items(split)), io)


def _losses(setup: Setup, split: str, count: int, io: StageIO) -> list[float]:
    items = setup.items(split)[:count]
    out = [0.0] * count
    setup.base.model.eval()
    with torch.no_grad():
        for chunk in length_sorted_chunks(items, setup.config.evaluate.batch_size):
            io.check_stop()
            batch = collate([items[i] for i in chunk], setup.base.pad_id).to(setup.base.device)
            for place, loss in zip(chunk, example_losses(setup.base.model, batch).double().tolist(), strict=True):
                out[place] = loss
    return out


def _predictions(setup: Setup, examples: Sequence[Example], name: str, io: StageIO) -> list[str]:
    task = setup.config.task
    room = task.max_length - task.max_new_tokens
    kept = setup.config.run.tokens
    prompts = encode_prompts_kept(kept, examples, setup.task, setup.base.tokenizer, max(room, 1)).items
    with io.progress.stage(f"generate: {name}", len(prompts)) as bar:
        done = 0

        def advance(finished: int, _total: int) -> None:
            nonlocal done
            bar.advance(finished - done)
            done = finished
            io.check_stop()

        return generate_answers(
            setup.base.model, setup.base.tokenizer, [item.input_ids for item in prompts],
            max_new_tokens=task.max_new_tokens, batch_size=setup.config.evaluate.batch_size,
            static=setup.config.speed.static_cache, on_progress=advance,
        )  # fmt: skip


def score_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return scores as JSON values."""
    return [
        {
            "name": s.name, "value": s.value, "n": s.n, "interval": list(s.interval) if s.interval else None,
            "signature": s.signature, "available": s.available, "reason": s.reason,
        }
        for s in scores
    ]  # fmt: skip


def write_predictions(path: Path, examples: Sequence[Example], system: SystemScores) -> None:
    """Write one line per example: id, question, references, loss, and of those answered prediction and scores."""
    lines = []
    for index, example in enumerate(examples[: len(system.losses)]):
        row: dict[str, Any] = {
            "id": example.id,
            **({"question": example.question} if example.question is not None else {}),
            "references": list(example.answers),
            "loss": system.losses[index],
        }
        if index < len(system.predictions):
            row["prediction"] = system.predictions[index]
            row |= {metric: values[index] for metric, values in system.per_example.items()}
        lines.append(to_json(row))
    write_text_atomic(path, "".join(line + "\n" for line in lines))
