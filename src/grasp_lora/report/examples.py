"""Test examples side by side: what each method wrote, the words that are not in the gold answer marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from ..rng import numpy_generator
from .labels import OURS, system_label
from .records import Row, RunRecord
from .verdict import Comparison

SHOWN = 3
"""Examples of each kind: gained most, lost most, drawn at random."""
# A word is one ideograph, kana or hangul syllable, or a run of anything else without blanks.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]|\s+|"
                    r"[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]+")  # fmt: skip
_EDGES = re.compile(r"^\W+|\W+$")


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is the same as in the gold answer, or not (`marked`)."""

    text: str
    marked: bool


@dataclass(frozen=True)
class Answer:
    """What one system wrote; `loss` is that of the gold answer under it, in nats."""

    system: str
    label: str
    pieces: tuple[Piece, ...]
    loss: float


@dataclass(frozen=True)
class SideBySide:
    """One example: why it is shown, its question (where it has one), gold answers, and every system's answer."""

    id: str
    why: str
    question: str | None
    gold: tuple[str, ...]
    answers: tuple[Answer, ...]


def side_by_side(record: RunRecord, comparisons: Sequence[Comparison]) -> tuple[SideBySide, ...]:
    """Return the examples where GRASP gained and lost most against a rival, and some drawn with the run's seed.

    The rival is the target adapter alone where it was scored, else the best one. Empty where nothing was generated.
    """
    ours = record.predictions.get(OURS, ())
    if not comparisons:
        return ()
    rival = next((c for c in comparisons if c.rival == "target"), min(comparisons, key=lambda c: c.rival_loss))
    systems = _systems(record, comparisons)
    theirs = record.predictions[rival.rival]
    gains = {
        index: float(theirs[index]["loss"]) - float(ours[index]["loss"])
        for index in range(len(ours))
        if all("prediction" in record.predictions[name][index] for name in systems)
    }
    return tuple(
        _example(record, systems, index, why) for index, why in _chosen(gains, rival.label, record.setting("seed"))
    )


def _systems(record: RunRecord, comparisons: Sequence[Comparison]) -> list[str]:
    """Return target only, merged, the best rival, and ours, as far as they were scored on the same examples."""
    compared = {c.rival for c in comparisons}
    best = min(comparisons, key=lambda c: c.rival_loss).rival
    wanted = {"target", "merged", best} & compared
    return [name for name in record.systems if name in wanted or name == OURS]


def _chosen(gains: Mapping[int, float], rival: str, seed: int) -> list[tuple[int, str]]:
    """Return examples and why: largest gains first, then largest losses, then a draw among the others."""
    ranked = sorted(gains, key=lambda i: (-gains[i], i))
    won = [i for i in ranked[:SHOWN] if gains[i] > 0]
    lost = [i for i in reversed(ranked[-SHOWN:]) if gains[i] < 0 and i not in won]
    rest = [i for i in gains if i not in {*won, *lost}]
    drawn = numpy_generator(int(seed), "report", "examples").permutation(len(rest))[:SHOWN]
    return [
        *((i, f"gained most over “{rival}” ({gains[i]:+.3f} nats)") for i in won),
        *((i, f"lost most against “{rival}” ({gains[i]:+.3f} nats)") for i in lost),
        *(
            (rest[int(k)], f"drawn at random ({gains[rest[int(k)]]:+.3f} nats against “{rival}”)")
            for k in sorted(drawn)
        ),
    ]


def _example(record: RunRecord, systems: Sequence[str], index: int, why: str) -> SideBySide:
    rows = {name: record.predictions[name][index] for name in systems}
    ours = rows[OURS]
    gold = tuple(str(answer) for answer in ours["references"])
    return SideBySide(
        str(ours["id"]),
        why,
        str(ours["question"]) if ours.get("question") is not None else None,
        gold,
        tuple(_answer(name, row, gold) for name, row in rows.items()),
    )


def _answer(system: str, row: Row, gold: Sequence[str]) -> Answer:
    text = str(row.get("prediction", ""))
    return Answer(system, system_label(system), differing(text, gold), float(row["loss"]))


def differing(text: str, gold: Sequence[str]) -> tuple[Piece, ...]:
    """Return `text` in pieces, the words that are not in the nearest gold answer marked; together they are `text`.

    Words are compared without case and without punctuation at their ends; order counts.
    """
    tokens = _WORDS.findall(text)
    words = [place for place, token in enumerate(tokens) if not token.isspace()]
    mine = [_plain(tokens[place]) for place in words]
    same = max((_matched(mine, [_plain(w) for w in _WORDS.findall(g) if not w.isspace()]) for g in gold), key=len,
               default=set())  # fmt: skip
    marked = [not token.isspace() for token in tokens]
    for order, place in enumerate(words):
        marked[place] = order not in same
    # A blank between two marked words belongs to the mark.
    for place, token in enumerate(tokens):
        if token.isspace() and 0 < place < len(tokens) - 1:
            marked[place] = marked[place - 1] and marked[place + 1]
    return _joined(tokens, marked)


def _matched(mine: Sequence[str], gold: Sequence[str]) -> set[int]:
    blocks = SequenceMatcher(None, mine, gold, autojunk=False).get_matching_blocks()
    return {block.a + k for block in blocks for k in range(block.size)}


def _plain(word: str) -> str:
    return _EDGES.sub("", word).casefold() or word


def _joined(tokens: Sequence[str], marked: Sequence[bool]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for token, mark in zip(tokens, marked, strict=True):
        if pieces and pieces[-1].marked == mark:
            pieces[-1] = Piece(pieces[-1].text + token, mark)
        else:
            pieces.append(Piece(token, mark))
    return tuple(pieces)
