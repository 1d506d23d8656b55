import inspect

import pytest

from grasp_lora import errors
from grasp_lora.errors import GraspError, Interrupted, MissingExtraError, first_line, nearest

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GraspError)]


def test_every_kind_has_its_own_exit_code():
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(1 <= code <= 130 for code in codes)
    assert Interrupted.exit_code == 130  # what shells expect after Ctrl-C


def test_no_kind_hides_among_pythons_own():
    """`except ValueError` around library code must not swallow a user's mistake."""
    assert all(kind.__mro__[1:] == GraspError.__mro__ for kind in KINDS if kind is not GraspError)
    assert GraspError.__mro__[1] is Exception


def test_a_missing_extra_says_what_to_install():
    error = MissingExtraError("bert-score", "bertscore", "BERTScore")
    assert str(error).startswith("BERTScore needs the package `bert-score`")
    assert "pip install 'grasp-lora[bertscore]'" in str(error)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("learning_rate", " Did you mean 'learning_rate'?"),
        ("p_mim", " Did you mean 'p_min'?"),
        ("epoch", " Did you mean 'epochs'?"),
        ("zzzz", ""),
        ("", ""),
    ],
)
def test_nearest(word, answer):
    assert nearest(word, iter(["learning_rate", "p_min", "epochs"])) == answer


def test_nearest_of_nothing():
    assert nearest("a", []) == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (RuntimeError("  \n three\n"), "three"), (AssertionError(), "AssertionError")],
)
def test_an_error_in_a_line(error, line):
    assert first_line(error) == line
