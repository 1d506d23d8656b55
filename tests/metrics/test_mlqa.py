from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.errors import DataError
from grasp_lora.metrics.mlqa import (
    ArabicArticles,
    exact_match,
    mlqa_scores,
    mlqa_signature,
    mlqa_tokens,
    token_f1,
)


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "The U.S. $5 a-day", "us 5 aday"),
        ("en", "an apple, a day; THE theory of Anna", "apple day theory of anna"),
        ("en", "$ + < = > ^ ` | ~ «x» — 「y」", "x y"),
        ("en", "ﬁve ﬃ ｆｕｌｌ", "ﬁve ﬃ ｆｕｌｌ"),  # no compatibility folding
        ("ar", "البيت", "بيت"),
        ("ar", "طالب", "ط ب"),
        ("ar", "بالمدينة", "ب مدينة"),
        ("ar", "في البيت، الكبير؟", "في بيت كبير"),
        ("zh", "1990年10月", "1990 年 10 月"),
        ("zh", "上海、Shanghai 2号", "上 海 shanghai 2 号"),
        ("zh", "\u4dff\u4e00\u9fa5\u9fa6", "\u4dff \u4e00 \u9fa5 \u9fa6"),
        ("zh-Hans", "a the 上", "a the 上"),
        ("de", "Das Haus, der Hund!", "das haus der hund"),
        ("es", "el niño", "el niño"),
    ],
)
def test_tokens(language: str, text: str, tokens: str) -> None:
    assert " ".join(mlqa_tokens(text, language)) == tokens


@pytest.mark.parametrize(
    ("articles", "text", "tokens"),
    [
        ("prefix", "طالب", "طالب"),
        ("prefix", "البيت", "بيت"),
        ("prefix", "بالمدينة", "بالمدينة"),
        ("prefix", "في البيت الال", "في بيت ال"),
        ("official", "الال", ""),
    ],
)
def test_arabic_variants(articles: ArabicArticles, text: str, tokens: str) -> None:
    assert " ".join(mlqa_tokens(text, "ar", arabic_articles=articles)) == tokens


def test_f1_counts_tokens_as_often_as_both_have_them() -> None:
    assert token_f1(["x", "x", "y"], ["x", "z"]) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert token_f1(["x", "x"], ["x", "x"]) == 1.0
    assert token_f1(["x"], ["y"]) == 0.0


def test_both_empty_is_an_exact_match_with_f1_zero() -> None:
    assert mlqa_scores(["the"], [["..."]], "en") == {"em": (100.0,), "f1": (0.0,)}
    assert exact_match([], []) == 1.0
    assert token_f1([], []) == 0.0
    assert mlqa_scores([""], [["x"]], "en") == {"em": (0.0,), "f1": (0.0,)}


def test_best_answer_counts() -> None:
    scores = mlqa_scores(["上海 2号"], [["北京", "上海", "上海2号"]], "zh")
    assert scores == {"em": (100.0,), "f1": (100.0,)}
    assert mlqa_scores(["上海"], [["上"]], "zh")["f1"][0] == pytest.approx(100 * 2 / 3)


def test_wrong_lengths_and_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="1 predictions, but references for 2"):
        mlqa_scores(["x"], [["x"], ["y"]], "en")
    with pytest.raises(ValueError, match="is one string"):
        mlqa_scores(["x"], ["x"], "en")
    with pytest.raises(DataError, match="no examples"):
        mlqa_scores([], [], "en")
    with pytest.raises(DataError, match="example 0 has no reference"):
        mlqa_scores(["x"], [[]], "en")


def test_signature_names_the_rules() -> None:
    assert "al-official" in mlqa_signature("ar")
    assert "al-prefix" in mlqa_signature("ar", "prefix")
    assert "han-characters" in mlqa_signature("zh")


@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["en", "ar", "zh", "fr"]))
def test_scores_are_bounded_and_symmetric(a: str, b: str, language: str) -> None:
    one, other = mlqa_tokens(a, language), mlqa_tokens(b, language)
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    assert 0.0 <= token_f1(one, other) <= 1.0
    assert token_f1(one, one) == (1.0 if one else 0.0)
    assert exact_match(one, other) <= token_f1(one, other) or not one


@given(st.text(max_size=30), st.sampled_from(["en", "zh", "fr"]))
def test_tokens_of_joined_tokens_are_the_same(text: str, language: str) -> None:
    tokens = mlqa_tokens(text, language)
    assert mlqa_tokens(" ".join(tokens), language) == tokens
