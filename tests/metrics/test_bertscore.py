from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pico_encoder import LAYERS, write_encoder
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, RobertaTokenizer

from grasp_lora.metrics import bertscore as module
from grasp_lora.metrics.bertscore import BertScoreUnavailableError, bert_scores


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("bert"))


def by_hand(encoder: str, prediction: str, reference: str, layer: int) -> float:
    """Greedy matching of one pair by the formula; special tokens have no weight, but may be matched."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)

    def embed(text: str) -> Tensor:
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[layer][0]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    similarity = embed(prediction) @ embed(reference).T
    precision, recall = similarity.amax(1)[1:-1].mean().item(), similarity.amax(0)[1:-1].mean().item()
    return 100.0 * 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [1, 2])
def test_raw_f1_is_the_formulas(encoder: str, layer: int) -> None:
    pairs = [("hello there", "hello world"), ("上海天气", "北京天气"), ("a", "the quick brown fox")]
    found = bert_scores([p for p, _ in pairs], [[r] for _, r in pairs], "en", encoder, layer=layer)
    expected = [by_hand(encoder, p, r, layer) for p, r in pairs]
    assert found.raw == pytest.approx(expected, abs=1e-3)


def test_identical_texts_score_100_and_the_best_reference_counts(encoder: str) -> None:
    found = bert_scores(["hello", "hello"], [["hello"], ["xyz", "hello"]], "en", encoder)
    assert found.raw == pytest.approx((100.0, 100.0), abs=1e-3)


@pytest.mark.parametrize("empty", ["", "  \n", "\u200b", "\x00"])
def test_empty_texts_score_zero_without_a_word(encoder: str, empty: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = bert_scores([empty, "a", "a", "a"], [["a"], [empty], [empty, "a"], ["a"]], "zh", encoder)
    assert found.raw[:2] == (0.0, 0.0)
    assert found.raw[2:] == pytest.approx((100.0, 100.0), abs=1e-3)
    assert bert_scores([empty], [["a"]], "zh", encoder).raw == (0.0,)
    out, err = capfd.readouterr()
    assert "Warning" not in out + err


def test_long_texts_are_cut_to_512_tokens(encoder: str) -> None:
    long = "a b " * 400
    cut = "a b " * 255
    found = bert_scores([long, long], [[long], [cut + "x"]], "en", encoder)
    assert found.raw == pytest.approx((100.0, 100.0), abs=1e-3)


def test_an_encoder_with_a_tighter_bound_is_kept_to_it(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, limit=16)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 16}))
    assert bert_scores(["a " * 50], [["a " * 60]], "en", folder).raw == pytest.approx((100.0,), abs=1e-3)


def test_batches_do_not_change_scores(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = [f"text {i} " * (i % 5 + 1) for i in range(9)]
    references = [[f"other {i}"] for i in range(9)]
    whole = bert_scores(predictions, references, "en", encoder).raw
    monkeypatch.setattr(module, "_BATCH", 2)
    assert bert_scores(predictions, references, "en", encoder).raw == pytest.approx(whole, abs=1e-4)


def test_the_last_layer_serves_where_bert_score_knows_none(encoder: str) -> None:
    found = bert_scores(["a"], [["b"]], "en", encoder)
    assert f"|layer:{LAYERS}|" in found.raw_signature
    assert found.raw_signature.endswith("|raw")
    assert str(Path(encoder).parent) not in found.raw_signature


def test_no_baseline_is_said(encoder: str) -> None:
    found = bert_scores(["a"], [["b"]], "ar", encoder)
    assert found.rescaled is None
    assert "no rescaling baseline" in str(found.rescaled_reason)
    assert "'ar'" in str(found.rescaled_reason)


def test_rescaling_uses_the_baseline_of_language_encoder_and_layer(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert-base-chinese")
    found = bert_scores(["上海", ""], [["天气"], ["天气"]], "zh-Hans", folder, layer=1)
    baseline = 0.33471334  # bert-score 0.3.13, rescale_baseline/zh/bert-base-chinese.tsv, layer 1
    assert found.rescaled == pytest.approx((100 * (found.raw[0] / 100 - baseline) / (1 - baseline), 0.0))
    assert found.rescaled_signature.endswith("|rescaled:zh")


def test_a_known_encoder_that_is_too_small_is_not_accepted(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert-base-chinese")  # bert-score compares layer 8 of the real one
    with pytest.raises(BertScoreUnavailableError, match="2 layers, layer 8"):
        bert_scores(["a"], [["a"]], "zh", folder)


@pytest.mark.parametrize("layer", [-1, LAYERS + 1])
def test_layers_that_are_not_there(encoder: str, layer: int) -> None:
    with pytest.raises(BertScoreUnavailableError, match="2 layers"):
        bert_scores(["a"], [["a"]], "en", encoder, layer=layer)


def test_no_encoder_named() -> None:
    with pytest.raises(BertScoreUnavailableError, match=r"evaluate\.bertscore_model is not set"):
        bert_scores(["a"], [["a"]], "en", None)


def test_missing_package(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "bert_score" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(BertScoreUnavailableError, match=r"grasp-lora\[bertscore\]"):
        bert_scores(["a"], [["a"]], "en", encoder)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(BertScoreUnavailableError, match="'nothing' cannot be loaded"):
        bert_scores(["a"], [["a"]], "en", str(tmp_path / "nothing"))
    broken = write_encoder(tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BertScoreUnavailableError, match="'broken' cannot be loaded"):
        bert_scores(["a"], [["a"]], "en", broken)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": LAYERS + 1}))
    with pytest.raises(BertScoreUnavailableError, match="lacks weights"):
        bert_scores(["a"], [["a"]], "en", folder)


def test_scores_are_finite(encoder: str) -> None:
    found = bert_scores(["...", "q", "é"], [["q"], ["..."], ["上"]], "en", encoder)
    assert all(math.isfinite(score) for score in found.raw)


def test_models_that_want_a_leading_space_get_one() -> None:
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "Ġ": 5, "a": 6, "Ġa": 7}
    inner = RobertaTokenizer(vocab=words, merges=[("Ġ", "a")])
    wrapped = module._Tokenizer(inner)
    assert wrapped.encode("a") == inner.encode(" a")
    assert wrapped.encode("a") != inner.encode("a")
    assert wrapped.is_empty(" ")
    assert not wrapped.is_empty("a")


def test_models_of_another_kind_are_refused() -> None:
    plain = SimpleNamespace(pad_token_id=0, cls_token_id=1, sep_token_id=2)
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    module._check_encoder("x", model, plain, [])
    with pytest.raises(BertScoreUnavailableError, match="encoder-decoder"):
        module._check_encoder("x", SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True)), plain, [])
    with pytest.raises(BertScoreUnavailableError, match="lacks a pad, cls or sep token"):
        module._check_encoder("x", model, SimpleNamespace(pad_token_id=0, cls_token_id=None, sep_token_id=2), [])
