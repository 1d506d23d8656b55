"""Random facts: the scenes of the demo world, which slots each has, and how a small story is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import lexicon
from .lexicon import Term

_Draw = Callable[[np.random.Generator], Term]


def _one_of(table: tuple[Term, ...]) -> _Draw:
    return lambda rng: table[int(rng.integers(len(table)))]


_SLOT_DRAWS: dict[str, _Draw] = {
    "person": lexicon.person,
    "city": lexicon.city,
    "job": _one_of(lexicon.PROFESSIONS),
    "thing": _one_of(lexicon.OBJECTS),
    "price": lexicon.price,
    "event": _one_of(lexicon.EVENTS),
    "month": _one_of(lexicon.MONTHS),
    "game": _one_of(lexicon.GAMES),
}

# scene -> slot name in the templates -> kind of word
SCENES: dict[str, dict[str, str]] = {
    "job": {"p": "person", "j": "job", "c": "city"},
    "trade": {"p": "person", "o": "thing", "n": "price"},
    "event": {"e": "event", "c": "city", "m": "month"},
    "match": {"w": "person", "l": "person", "g": "game"},
    "trip": {"p": "person", "f": "city", "t": "city"},
}


@dataclass(frozen=True)
class Fact:
    """One thing that happened: a scene and the words in its slots."""

    scene: str
    slots: dict[str, Term]


@dataclass(frozen=True)
class Story:
    """The facts of one passage; the first is the main one."""

    facts: tuple[Fact, ...]

    def key(self) -> int:
        """Return a 64-bit number that depends on the facts alone, not on their order, wording or language."""
        lines = sorted(f.scene + ":" + ",".join(f"{s}={t.en}" for s, t in f.slots.items()) for f in self.facts)
        return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8], "big")


def _draw_fact(rng: np.random.Generator, scene: str, used: set[str]) -> Fact:
    slots: dict[str, Term] = {}
    for slot, kind in SCENES[scene].items():
        term = _SLOT_DRAWS[kind](rng)
        while term.en in used:  # every word names one fact only, so that each question has one answer
            term = _SLOT_DRAWS[kind](rng)
        used.add(term.en)
        slots[slot] = term
    return Fact(scene, slots)


def draw_story(rng: np.random.Generator, alike: float) -> Story:
    """Return a story of three facts; each further fact is of the main one's scene with probability `alike`."""
    names = list(SCENES)
    main = names[int(rng.integers(len(names)))]
    used: set[str] = set()
    facts = [_draw_fact(rng, main, used)]
    for _ in range(2):
        scene = main if rng.random() < alike else names[int(rng.integers(len(names)))]
        facts.append(_draw_fact(rng, scene, used))
    return Story(tuple(facts))
