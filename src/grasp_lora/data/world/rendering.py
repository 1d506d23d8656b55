"""Facts into sentences, questions, headlines and exercises of one language."""

from __future__ import annotations

from string import Formatter
from types import ModuleType
from typing import TypeVar

import numpy as np

from . import arabic, chinese, english
from .facts import SCENES, Fact, Story
from .lexicon import Language

_WORDING: dict[Language, ModuleType] = {"en": english, "ar": arabic, "zh": chinese}
_JOINER: dict[Language, str] = {"en": " ", "ar": " ", "zh": ""}
BLANK = "___"
_T = TypeVar("_T")


def pick(rng: np.random.Generator, items: list[_T]) -> _T:
    """Return one of `items`, each as likely as the others."""
    return items[int(rng.integers(len(items)))]


def fields(fact: Fact, language: Language) -> dict[str, str]:
    """Return the text of every template field: the slot itself, `a` + slot (en article), `d` + slot (ar definite)."""
    texts = {}
    for slot, term in fact.slots.items():
        word = term.text(language)
        texts[slot] = word
        texts["a" + slot] = ("an " if word[0] in "aeiou" else "a ") + word
        texts["d" + slot] = "ال" + word
    return texts


def surface(template: str, slot: str, fact: Fact, language: Language) -> str:
    """Return the form of `slot` that stands in a statement made from `template`: the answer's exact span."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    texts = fields(fact, language)
    return texts["d" + slot] if slot not in names and "d" + slot in names else texts[slot]


def choose_statements(story: Story, language: Language, rng: np.random.Generator) -> list[int]:
    """Return the index of a statement wording for each fact; indices mean like wordings in all languages."""
    return [int(rng.integers(len(_WORDING[language].SAY[fact.scene]))) for fact in story.facts]


def statement(fact: Fact, index: int, language: Language) -> str:
    """Return the template of the fact's statement."""
    return str(_WORDING[language].SAY[fact.scene][index])


def sentences(fact: Fact, index: int, language: Language) -> list[str]:
    """Return the one or two sentences that state the fact."""
    texts = fields(fact, language)
    return [part.format(**texts) for part in statement(fact, index, language).split("|")]


def extra(language: Language, rng: np.random.Generator) -> str:
    """Return a sentence that says nothing about any fact."""
    return str(pick(rng, _WORDING[language].EXTRA))


def join(parts: list[str], language: Language) -> str:
    """Return the sentences as one passage."""
    return _JOINER[language].join(parts)


def passage(
    story: Story,
    indices: list[int],
    language: Language,
    rng: np.random.Generator,
    *,
    main_first: bool = False,
) -> str:
    """Return the story's sentences in random order; with `main_first` the main fact leads."""
    groups = [sentences(fact, index, language) for fact, index in zip(story.facts, indices, strict=True)]
    lead = groups.pop(0) if main_first else []
    rest = [sentence for group in groups for sentence in group]
    if rng.random() < 0.3:
        rest.append(extra(language, rng))
    return join(lead + [rest[int(i)] for i in rng.permutation(len(rest))], language)


def question(fact: Fact, slot: str, language: Language, rng: np.random.Generator, first: int | None = None) -> str:
    """Return a question for `slot`, worded by one of the `first` templates (default all)."""
    templates = _WORDING[language].ASK[fact.scene][slot][:first]
    return str(pick(rng, templates)).format(**fields(fact, language))


def headline(fact: Fact, language: Language, rng: np.random.Generator, first: int | None = None) -> str:
    """Return a headline for the fact, worded by one of the `first` templates (default all)."""
    text = str(pick(rng, _WORDING[language].HEAD[fact.scene][:first])).format(**fields(fact, language))
    return text[0].upper() + text[1:]


def keyword(fact: Fact, slot: str, language: Language, rng: np.random.Generator) -> str:
    """Return the slot's name and another word of the fact, such as `city, Marovan`."""
    names = _WORDING[language].KEYWORDS
    name = names.get(slot) or names[SCENES[fact.scene][slot]]
    given = pick(rng, [other for other in fact.slots if other != slot])
    return f"{name} - {fact.slots[given].text(language)}"


def cloze(fact: Fact, slot: str, language: Language, rng: np.random.Generator) -> tuple[str, str]:
    """Return a statement with the slot blanked, and the word that fills the blank."""
    whole = [t for t in _WORDING[language].SAY[fact.scene] if "|" not in t]
    template = str(pick(rng, whole))
    answer = surface(template, slot, fact, language)
    texts = fields(fact, language)
    return template.format(**(texts | {slot: BLANK, "a" + slot: "a " + BLANK, "d" + slot: BLANK})), answer
