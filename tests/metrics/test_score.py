from __future__ import annotations

from pathlib import Path

import pytest
from pico_encoder import write_encoder

from grasp_lora.config import METRICS
from grasp_lora.errors import ConfigError, DataError
from grasp_lora.metrics import TEXT_METRICS, ScoreSet, bleu, score_losses, score_predictions

PREDICTIONS = ["上海天气", "北京", "2号"]
REFERENCES = [["上海气候", "上海天气"], ["南京"], ["3号"]]


def names(found: ScoreSet) -> list[str]:
    return [score.name for score in found.scores]


def test_all_metrics_in_the_order_asked_for(tmp_path: Path) -> None:
    settings = {"metrics": TEXT_METRICS, "bootstrap": 50, "bertscore_model": write_encoder(tmp_path)}
    found = score_predictions(PREDICTIONS, REFERENCES, language="zh", **settings)
    rouge = ["rouge1", "rouge2", "rougeL", "rougeL_char"]
    assert names(found) == ["em", "f1", *rouge, "bleu", "chrf", "bertscore_raw", "bertscore_rescaled"]
    for score in found.scores[:-1]:
        assert score.available
        assert score.n == 3
        assert score.value is not None
        assert score.interval is not None
        assert 0.0 <= score.interval[0] <= score.value <= score.interval[1] <= 100.0
        assert "|ci:95-percentile|bs:50|seed:0" in score.signature
        assert score.name in str(score)
    assert set(found.per_example) == {"em", "f1", *rouge, "bertscore_raw"}
    assert all(len(values) == 3 for values in found.per_example.values())


def test_bertscore_is_labelled_raw_and_rescaled(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert-base-chinese", layers=8)
    found = score_predictions(
        ["", "上海"], [["a"], ["上海"]], language="zh", metrics=["bertscore"], bertscore_model=folder
    )
    raw, rescaled = found.scores
    assert raw.value == rescaled.value == pytest.approx(50.0, abs=1e-3)
    assert "layer:8" in raw.signature
    assert "|raw|" in raw.signature
    assert "|rescaled:zh|" in rescaled.signature
    assert set(found.per_example) == {"bertscore_raw", "bertscore_rescaled"}


def test_names_are_those_of_the_configuration() -> None:
    assert {"loss", *TEXT_METRICS} == set(METRICS)


def test_means_and_corpus_values() -> None:
    found = score_predictions(PREDICTIONS, REFERENCES, language="zh", metrics=["em", "f1", "bleu", "em"])
    em, f1, corpus = found.scores
    assert em.value == pytest.approx(100 / 3)
    assert f1.value == pytest.approx(100 * (1 + 0.5 + 0.5) / 3)
    assert corpus.value == bleu(PREDICTIONS, REFERENCES, "zh").value
    assert found.per_example["em"] == (100.0, 0.0, 0.0)


def test_unavailable_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    found = score_predictions(
        ["a"], [["a"]], language="ar", metrics=["bertscore", "em"], bertscore_model=str(tmp_path / "none")
    )  # fmt: skip
    raw, rescaled, em = found.scores
    assert em.value == 100.0
    for score in (raw, rescaled):
        assert (score.available, score.value, score.interval, score.n) == (False, None, None, 1)
        assert "cannot be loaded" in str(score.reason)
        assert "unavailable" in str(score)
    assert set(found.per_example) == {"em"}


def test_same_seed_same_bits_and_another_seed_another_interval() -> None:
    texts = [f"w{i % 7} w{i % 3} x" for i in range(40)]
    references = [[f"w{i % 7} w{i % 5} x"] for i in range(40)]

    def score(seed: int) -> ScoreSet:
        return score_predictions(texts, references, language="en", metrics=["f1", "bleu"], bootstrap=200, seed=seed)

    assert score(1).scores == score(1).scores
    assert [s.interval for s in score(1).scores] != [s.interval for s in score(2).scores]


def test_losses() -> None:
    score = score_losses([1.0, 2.0, 6.0], bootstrap=100)
    assert (score.name, score.value, score.n) == ("loss", 3.0, 3)
    assert score.interval is not None
    assert 1.0 <= score.interval[0] < 3.0 < score.interval[1] <= 6.0
    with pytest.raises(DataError):
        score_losses([])


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="2 predictions"):
        score_predictions(["a", "b"], [["a"]], language="en", metrics=["em"])
    with pytest.raises(DataError, match="no examples"):
        score_predictions([], [], language="en", metrics=["em"])
    with pytest.raises(ConfigError, match="Did you mean 'rouge'"):
        score_predictions(["a"], [["a"]], language="en", metrics=["roug"])
