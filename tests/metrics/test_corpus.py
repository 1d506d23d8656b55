from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from grasp_lora.errors import DataError
from grasp_lora.metrics.corpus import CorpusScore, bleu, bleu_tokenizer, chrf, paired_corpus

PREDICTIONS = ["The cat sat on the mat .", "It is 3.5% higher, he said.", "", "hello", "a b c d e f"]
REFERENCES = [
    ["The cat sat on a mat.", "A cat was sitting on the mat today."],
    ["It was 3.5% higher, he says."],
    ["nothing here"],
    ["hello", "hi", "good day"],
    ["a b c d x f"],
]


def total(score: CorpusScore) -> float:
    return float(score.reduce(score.statistics.sum(axis=0)[None])[0])


@pytest.mark.parametrize(
    ("language", "name"), [("en", "13a"), ("zh", "zh"), ("ar", "intl"), ("zh_CN", "zh"), ("de", "13a")]
)
def test_tokenizer_and_signature(language: str, name: str) -> None:
    assert bleu_tokenizer(language) == name
    assert f"tok:{name}" in bleu(PREDICTIONS, REFERENCES, language).signature


def test_scores_are_sacrebleus_with_a_varying_number_of_references() -> None:
    streams = [[group[i] if i < len(group) else None for group in REFERENCES] for i in range(3)]
    assert bleu(PREDICTIONS, REFERENCES, "en").value == BLEU(tokenize="13a").corpus_score(PREDICTIONS, streams).score
    found = chrf(PREDICTIONS, REFERENCES)
    assert found.value == CHRF().corpus_score(PREDICTIONS, streams).score
    assert "nrefs:var" in found.signature
    assert "version:" in found.signature


def test_perfect_and_hopeless() -> None:
    chinese = ["上海今天举办了一个很大的展览。"]
    assert bleu(chinese, [chinese], "zh").value == pytest.approx(100.0)
    assert chrf(chinese, [chinese]).value == pytest.approx(100.0)
    assert bleu(["x"], [["y"]], "en").value == 0.0
    assert chrf(["x"], [["y"]]).value == 0.0
    assert chrf([""], [[""]]).value == 0.0


@example([("", ["a"]), ("abab........", ["a,", "aaa.b"])])  # references that are equally good but for rounding
@given(
    st.lists(
        st.tuples(
            st.text(alphabet="abc d.,上海", max_size=14),
            st.lists(st.text(alphabet="abc d.,上海", min_size=1, max_size=14), min_size=1, max_size=2),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_summed_statistics_give_the_score(examples: list[tuple[str, list[str]]]) -> None:
    predictions, references = [p for p, _ in examples], [r for _, r in examples]
    for found in (bleu(predictions, references, "zh"), chrf(predictions, references)):
        assert total(found) == pytest.approx(found.value, abs=1e-9)


@pytest.mark.parametrize("metric", [lambda p, r: bleu(p, r, "en"), chrf])
def test_statistics_of_a_resample_give_its_score(metric: Callable[..., CorpusScore]) -> None:
    chosen = [0, 0, 4, 1]
    part = metric([PREDICTIONS[i] for i in chosen], [REFERENCES[i] for i in chosen])
    whole = metric(PREDICTIONS, REFERENCES)
    sums = whole.statistics[chosen].sum(axis=0)[None]
    assert float(whole.reduce(sums)[0]) == pytest.approx(part.value, abs=1e-9)


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        bleu(["The end ."] * 120, [["The end ."]] * 120, "en")
    assert not caplog.records


def test_paired_comparison_of_corpora() -> None:
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(list("abcdefgh"), size=12)) for _ in range(60)]
    worse = [text[:-8] for text in words]
    references = [[text] for text in words]
    result = paired_corpus(chrf(words, references), chrf(worse, references), resamples=200)
    assert result.difference == pytest.approx(chrf(words, references).value - chrf(worse, references).value)
    assert result.interval[0] > 0.0
    assert result.p_value < 0.01
    with pytest.raises(ValueError, match="two different metrics"):
        paired_corpus(chrf(words, references), bleu(words, references, "en"))


def test_nothing_to_score() -> None:
    with pytest.raises(DataError):
        bleu([], [], "en")
    with pytest.raises(ValueError, match="1 predictions"):
        chrf(["x"], [])
