"""Answers beside the gold: which examples are shown, and which words are marked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.report.examples import SHOWN, differing, side_by_side
from grasp_lora.report.verdict import compare

TEXT = st.text("ab é上海قلم.،,- \n\t<&|*", max_size=40)


def marked(text, *gold):
    return [piece.text for piece in differing(text, gold) if piece.marked]


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("The cat, sat on a mat.", ["the cat sat on the mat"], ["a"]),
        ("上海举办大会", ["上海大会"], ["举办"]),
        ("في البيت الصغير", ["في البيت الكبير"], ["الصغير"]),
        ("one two", ["two one three", "one two"], []),
        ("quite wrong words", ["gold"], ["quite wrong words"]),
        ("", ["gold"], []),
        ("a", [], ["a"]),
        ("b a", ["a b"], ["b"]),
    ],
)
def test_words_that_differ_are_marked(text, gold, expected):
    found = marked(text, *gold)
    assert found == expected or (text == "b a" and len(found) == 1)


@given(TEXT, TEXT)
def test_pieces_are_the_text_and_what_equals_gold_is_never_marked(text, gold):
    assert "".join(piece.text for piece in differing(text, [gold])) == text
    assert marked(text, text) == []
    assert all(a.marked != b.marked for a, b in zip(differing(text, [gold]), differing(text, [gold])[1:], strict=False))


def test_gains_losses_and_a_draw_are_shown_once_each(record):
    shown = side_by_side(record, compare(record))
    assert len(shown) == len({example.id for example in shown})
    kinds = [example.why.split(" (")[0] for example in shown]
    assert kinds.count("gained most over “target adapter only”") == SHOWN
    assert kinds.count("drawn at random") == SHOWN
    ours, theirs = record.predictions["grasp"], record.predictions["target"]
    gains = {a["id"]: b["loss"] - a["loss"] for a, b in zip(ours, theirs, strict=True)}
    assert shown[0].id == max(gains, key=gains.__getitem__)
    assert [answer.system for answer in shown[0].answers] == ["target", "sequential", "merged", "grasp"]
    assert shown == side_by_side(record, compare(record))


def test_nothing_is_shown_where_nothing_was_written(record):
    assert side_by_side(record, ()) == ()
    bare = {name: tuple({k: v for k, v in row.items() if k != "prediction"} for row in rows)
            for name, rows in record.predictions.items()}  # fmt: skip
    silent = type(record)(**{**record.__dict__, "predictions": bare})
    assert side_by_side(silent, compare(record)) == ()
