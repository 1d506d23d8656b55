from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.snowball import SnowballStemmer

from grasp_lora.errors import DataError
from grasp_lora.metrics.rouge import character_tokens, clean, rouge_scores, rouge_signature, rouge_tokens


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "The U.S. grew 3.5%", ["the", "u", "s", "grew", "3", "5"]),
        ("en", "running cats cat's runs", ["run", "cat", "cat", "s", "run"]),
        ("zh", "1990年10月，上海举办", ["1990", "年", "10", "月", "上海", "举办"]),
        ("ar", "المدرسة، في المدينة", ["مدرس", "في", "مدين"]),
        ("ja", "東京 running", ["東京", "running"]),
        ("sw", "running", ["running"]),
    ],
)
def test_tokens(language: str, text: str, tokens: list[str]) -> None:
    assert rouge_tokens(text, language) == tokens


def test_only_tokens_of_more_than_three_characters_are_stemmed() -> None:
    assert rouge_tokens("dies die was wasps", "en") == ["die", "die", "was", "wasp"]


def test_cleaning_drops_control_and_format_characters_and_keeps_line_ends_as_spaces() -> None:
    assert clean("A\u200fb\x00c\nD\te\ufffdf\u3000g、h") == "abc d ef g h"


def test_identical_arabic_scores_100() -> None:
    text = "أعلنت الحكومة اليوم عن خطة جديدة"
    assert rouge_scores([text], [[text]], "ar") == {
        "rouge1": (100.0,),
        "rouge2": (100.0,),
        "rougeL": (100.0,),
    }


def test_unrelated_chinese_scores_nothing_unless_spaces_count() -> None:
    pair = ["上海，举办"], [["北京，天气"]]
    assert set(rouge_scores(*pair, "zh").values()) == {(0.0,)}
    compat = rouge_scores(*pair, "zh", xlsum_compat=True)
    assert compat["rouge1"][0] == pytest.approx(100 / 3)
    assert compat["rougeL_char"] == (0.0,)


def test_values_by_hand() -> None:
    scores = rouge_scores(["a b c d"], [["a c b d e"]], "en")
    assert scores["rouge1"][0] == pytest.approx(100 * 2 * 1.0 * 0.8 / 1.8)
    assert scores["rouge2"] == (0.0,)
    assert scores["rougeL"][0] == pytest.approx(100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert "rougeL_char" not in scores


def test_characters_stand_beside_words_in_chinese() -> None:
    scores = rouge_scores(["上海天气"], [["上海 气候"]], "zh")
    assert scores["rougeL_char"][0] == pytest.approx(100 * 3 / 4)
    assert character_tokens("上海, A 1") == ["上", "海", "a", "1"]


def test_best_reference_per_type_and_empty_texts() -> None:
    scores = rouge_scores(["a b", ""], [["x", "a b"], ["a"]], "en")
    assert scores["rouge1"] == (100.0, 0.0)
    assert rouge_scores([""], [[""]], "zh")["rougeL"] == (0.0,)


def test_stems_do_not_depend_on_what_was_stemmed_before() -> None:
    words = [
        "فالمعلمين",
        "سيكتبونها",
        "تذهبون",
        "استخدامهم",
        "والكتابات",
        "وزميلاتها",
        "كتابهما",
        "نزهتان",
    ] * 2
    fresh = [SnowballStemmer("arabic").stem(word) for word in words]
    assert [rouge_tokens(word, "ar")[0] for word in words] == fresh
    assert [rouge_tokens(word, "ar")[0] for word in reversed(words)] == fresh[::-1]


def test_jieba_loads_without_a_word_and_without_a_warning() -> None:
    code = "from grasp_lora.metrics import rouge_tokens; print(rouge_tokens('上海举办', 'zh'))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "['上海', '举办']"
    assert done.stderr == ""
    assert logging.getLogger("jieba").getEffectiveLevel() >= logging.WARNING


def test_nothing_to_score() -> None:
    with pytest.raises(DataError):
        rouge_scores([], [], "en")
    with pytest.raises(ValueError, match="2 predictions"):
        rouge_scores(["a", "b"], [["a"]], "en")


def test_signature_names_what_was_used() -> None:
    assert f"jieba-{version('jieba')}+spaces" in rouge_signature("rouge1", "zh", xlsum_compat=True)
    assert "tok:characters" in rouge_signature("rougeL_char", "zh")
    assert "stem:snowball-nltk" in rouge_signature("rougeL", "ar")
    assert "stem:none" in rouge_signature("rougeL", "sw")


@given(st.text(max_size=25), st.sampled_from(["en", "ar", "zh", "fr"]))
def test_a_text_agrees_with_itself(text: str, language: str) -> None:
    tokens = rouge_tokens(text, language)
    assert all(token.strip() for token in tokens)
    assert rouge_scores([text], [[text]], language)["rougeL"] == ((100.0,) if tokens else (0.0,))
