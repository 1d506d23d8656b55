"""Examples of the demo world for the two tasks, and the splits of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from ...errors import DataError, nearest
from ...rng import numpy_generator
from . import rendering
from .facts import Story, draw_story
from .lexicon import LANGUAGES, Language

Task = Literal["qa", "summarization"]
Split = Literal["train", "dev", "micro_dev", "test", "pretraining"]
Example = dict[str, Any]

# Which of 20 equal shares of all possible stories a split may use: no story can ever be in two splits.
_SHARES: dict[Split, range] = {
    "dev": range(2),
    "micro_dev": range(2, 4),
    "test": range(4, 8),
    "train": range(8, 14),
    "pretraining": range(14, 20),
}
_ALIKE = {"qa": 0.8, "summarization": 0.4, "pretraining": 0.7}

SOURCE_TRAIN, SOURCE_DEV, TRAIN, DEV, MICRO_DEV, TEST = 3000, 200, 50, 50, 16, 200


def check_choice(value: str, known: tuple[str, ...], what: str) -> None:
    """Raise `DataError` when `value` is not one of `known`."""
    if value not in known:
        raise DataError(
            f"demo world: {what} must be one of {', '.join(known)}, got '{value}'.{nearest(value, known)} "
            "Choose one of these, or bring data files of your own."
        )


def stories(split: Split, alike: float, rng: np.random.Generator) -> Iterator[Story]:
    """Yield stories of the split's share of the world, without end and without repetition."""
    seen: set[int] = set()
    while True:
        story = draw_story(rng, alike)
        key = story.key()
        if key % 20 in _SHARES[split] and key not in seen:
            seen.add(key)
            yield story


def _qa_example(story: Story, language: Language, rng: np.random.Generator) -> Example:
    indices = rendering.choose_statements(story, language, rng)
    context = rendering.passage(story, indices, language, rng)
    which = int(rng.integers(len(story.facts)))
    fact = story.facts[which]
    slot = rendering.pick(rng, list(fact.slots))
    answer = rendering.surface(rendering.statement(fact, indices[which], language), slot, fact, language)
    return {
        "context": context,
        "question": rendering.question(fact, slot, language, rng),
        "answers": [answer],
    }


def _title_example(story: Story, language: Language, rng: np.random.Generator) -> Example:
    indices = rendering.choose_statements(story, language, rng)
    text = rendering.passage(story, indices, language, rng, main_first=True)
    return {"text": text, "summary": rendering.headline(story.facts[0], language, rng)}


def generate(task: Task, language: Language, n: int, seed: int, split: Split) -> list[Example]:
    """Return `n` examples, the same for the same arguments.

    QA examples have MLQA's shape (`id`, `context`, `question`, `answers`, a list with one exact span of the context),
    headlines XL-Sum's (`id`, `text`, `summary`). Whatever the seeds and languages, no story is in two splits.
    Raises `DataError` for an unknown task, language or split and for a negative `n`.
    """
    check_choice(task, get_args(Task), "the task")
    check_choice(language, LANGUAGES, "the language")
    check_choice(split, get_args(Split), "the split")
    if n < 0:
        raise DataError(f"demo world: the number of examples must not be negative, got {n}. Ask for 0 or more.")
    rng = numpy_generator(seed, "world", task, language, split)
    make = _qa_example if task == "qa" else _title_example
    supply = stories(split, _ALIKE[task], rng)
    return [{"id": f"{task}-{language}-{split}-{seed}-{i}", **make(next(supply), language, rng)} for i in range(n)]


def demo_splits(task: Task, language: Language, seed: int) -> dict[str, list[Example]]:
    """Return the demo's data: `source_train` and `source_dev` in English, `train`, `dev`, `micro_dev`, `test`.

    3000 and 200 English examples; 50, 50, 16 and 200 of the target language. Raises `DataError` as `generate`.
    """
    return {
        "source_train": generate(task, "en", SOURCE_TRAIN, seed, "train"),
        "source_dev": generate(task, "en", SOURCE_DEV, seed, "dev"),
        "train": generate(task, language, TRAIN, seed, "train"),
        "dev": generate(task, language, DEV, seed, "dev"),
        "micro_dev": generate(task, language, MICRO_DEV, seed, "micro_dev"),
        "test": generate(task, language, TEST, seed, "test"),
    }
