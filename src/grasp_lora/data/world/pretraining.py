"""Text that the demo's backbone learns from: passages and reading exercises in formats no task uses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import DataError
from ...rng import numpy_generator
from . import rendering
from .facts import Story
from .generator import check_choice, stories
from .lexicon import LANGUAGES, Language

Mix = Mapping[str, float]

# Share of each kind of document. Questions are rare in Arabic and Chinese: there an adapter has more to bring.
_RICH: Mix = {"plain": 0.15, "question": 0.25, "keyword": 0.15, "cloze": 0.15, "pair": 0.15, "headline": 0.15}
_POOR: Mix = {"plain": 0.25, "question": 0.05, "keyword": 0.15, "cloze": 0.25, "pair": 0.20, "headline": 0.10}
DEFAULT_MIX: dict[Language, Mix] = {"en": _RICH, "ar": _POOR, "zh": _POOR}
_ALIKE = 0.7
_SEEN = 2  # question wordings of each list that exercises use


def _exercise(
    kind: str, story: Story, which: int, indices: list[int], language: Language, rng: np.random.Generator
) -> str:
    fact = story.facts[which]
    slot = rendering.pick(rng, list(fact.slots))
    gap = "" if language == "zh" else " "
    answer = rendering.surface(rendering.statement(fact, indices[which], language), slot, fact, language)
    if kind == "question":
        return f"\n? {rendering.question(fact, slot, language, rng, _SEEN)}\n={gap}{answer}"
    if kind == "keyword":
        return f"\n@ {rendering.keyword(fact, slot, language, rng)}\n={gap}{answer}"
    blanked, filler = rendering.cloze(fact, slot, language, rng)
    return f"\n+ {blanked}\n={gap}{filler}"


def _exercises(kind: str, story: Story, language: Language, rng: np.random.Generator) -> str:
    indices = rendering.choose_statements(story, language, rng)
    text = rendering.passage(story, indices, language, rng)
    for which in rng.permutation(len(story.facts))[: int(rng.integers(1, 4))]:
        text += _exercise(kind, story, int(which), indices, language, rng)
    return text


def _pair(story: Story, language: Language, rng: np.random.Generator) -> str:
    """Return two facts of the story, and the same sentences in another language."""
    other = rendering.pick(rng, [name for name in LANGUAGES if name != language])
    short = Story(story.facts[:2])
    indices = rendering.choose_statements(short, language, rng)
    texts = [
        rendering.join(
            [s for f, i in zip(short.facts, indices, strict=True) for s in rendering.sentences(f, i, name)],
            name,
        )
        for name in (language, other)
    ]
    return "\n~ ".join(texts)


def _headline(story: Story, language: Language, rng: np.random.Generator) -> str:
    indices = rendering.choose_statements(story, language, rng)
    text = rendering.passage(story, indices, language, rng, main_first=True)
    gap = "" if language == "zh" else " "
    return f"{text}\n#{gap}{rendering.headline(story.facts[0], language, rng, 1)}"


def _document(kind: str, story: Story, language: Language, rng: np.random.Generator) -> str:
    if kind == "plain":
        return rendering.passage(story, rendering.choose_statements(story, language, rng), language, rng)
    if kind == "pair":
        return _pair(story, language, rng)
    if kind == "headline":
        return _headline(story, language, rng)
    return _exercises(kind, story, language, rng)


def pretraining_text(language: Language, n: int, seed: int, mix: Mix | None = None) -> list[str]:
    """Return `n` documents whose main language is `language`, the same for the same arguments.

    `mix` gives the share of each kind of document (plain, question, keyword, cloze, pair, headline). The stories are
    the pretraining share of the world: none of them is in a task's split. Raises `DataError` for an unknown language.
    """
    check_choice(language, LANGUAGES, "the language")
    shares = dict(mix or DEFAULT_MIX[language])
    if abs(sum(shares.values()) - 1.0) > 1e-9:
        raise DataError(f"demo world: the shares of document kinds must add up to 1, got {shares}. Rescale them.")
    rng = numpy_generator(seed, "world", "pretraining", language)
    kinds = rng.choice(list(shares), size=n, p=list(shares.values()))
    supply = stories("pretraining", _ALIKE, rng)
    return [_document(str(kind), next(supply), language, rng) for kind in kinds]
