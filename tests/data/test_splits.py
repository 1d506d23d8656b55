"""Splits: loaded as named, checked for leakage, never replaced by one another."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from grasp_lora.config import Config, load_config
from grasp_lora.data import Example, check_leakage, check_micro_dev, load_splits
from grasp_lora.errors import DataError


def example(name: str, document: str, question: str | None = "Q?") -> Example:
    return Example(name, document, question, ("A",))


def config(tmp_path: Path, **files: str) -> Config:
    for text in files.values():
        record = {"context": f"the text {text}", "question": "Q?", "answers": "A"}
        (tmp_path / f"{text}.jsonl").write_text(json.dumps(record), encoding="utf-8")
    named = [f"data.{key.replace('__', '.')}={tmp_path / text}.jsonl" for key, text in files.items()]
    return load_config(overrides=named)


def test_only_what_is_named_is_loaded(tmp_path: Path) -> None:
    splits = load_splits(config(tmp_path, source__train="s", target__micro_dev="m"), ("target.micro_dev",))
    assert list(splits.source) == ["train"]
    assert list(splits.target) == ["micro_dev"]
    assert splits.target["micro_dev"][0].document == "the text m"
    assert {name: len(examples) for name, examples in splits.named().items()} == {
        "source.train": 1,
        "target.micro_dev": 1,
    }


def test_missing_split_is_named_and_never_replaced(tmp_path: Path) -> None:
    wanted = ("target.train", "target.micro_dev")
    with pytest.raises(DataError, match=r"data\.target\.micro_dev is not set.*never taken from another split"):
        load_splits(config(tmp_path, target__train="t", target__dev="d"), wanted)


def test_own_fields_reach_the_reader(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"passage": "p", "question": "q", "answers": "a"}', encoding="utf-8")
    settings = [f"data.target.train={tmp_path}/t.jsonl", "data.fields.context=passage"]
    assert load_splits(load_config(overrides=settings)).target["train"][0].document == "p"


def test_leakage_names_both_splits_an_example_and_the_number() -> None:
    splits = {
        "target.train": [example("a", "one  text\n"), example("b", "Amélie"), example("c", "only here")],
        "target.dev": [example("d", "free")],
        "target.test": [
            example("e", "one text", "other?"),
            example("f", unicodedata.normalize("NFD", "Amélie")),
        ],
    }
    with pytest.raises(DataError) as caught:
        check_leakage(splits)
    for words in ("target.train and target.test share 2 documents", "'a'", "'e'", "data.allow_leakage=true"):
        assert words in str(caught.value)
    assert "target.dev" not in str(caught.value)
    (warning,) = check_leakage(splits, allow=True)
    assert "target.train and target.test share 2 documents" in warning


def test_every_leaking_pair_is_named() -> None:
    splits = {name: [example(name, "same")] for name in ("train", "dev", "test")}
    warnings = check_leakage(splits, allow=True)
    assert [sentence.split(" share 1 document (")[0] for sentence in warnings] == [
        f"Leakage allowed: splits {pair}" for pair in ("train and dev", "train and test", "dev and test")
    ]


def test_no_leakage_between_or_inside() -> None:
    splits = {"train": [example("a", "x"), example("b", "x", "other?")], "dev": [example("c", "y")]}
    assert check_leakage(splits) == []


def test_micro_dev() -> None:
    examples = [example(str(number), str(number)) for number in range(17)]
    check_micro_dev(examples, 17)
    with pytest.raises(DataError, match=r"data\.target\.micro_dev has 17 examples.*Set data\.micro_dev_size=17"):
        check_micro_dev(examples, 16)
    with pytest.raises(DataError, match=r"data\.target\.micro_dev is empty"):
        check_micro_dev([], 16)
    with pytest.raises(DataError, match="never taken from another split"):
        check_micro_dev(None, 16)
