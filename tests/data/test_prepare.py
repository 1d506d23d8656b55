"""Prepared splits: disjoint, exact, repeatable, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.data import PRESETS, Example, check_leakage, load_examples, prepare
from grasp_lora.data.prepare import draw
from grasp_lora.errors import ConfigError, DataError

SIZES = {"train": 5, "dev": 4, "micro_dev": 2, "test": 3}


def records(contexts: int, questions: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{c}-{q}",
            "context": f"context {c}",
            "question": f"question {q}?",
            "answers": [f"answer {c}"],
        }
        for c in range(start, start + contexts)
        for q in range(questions)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@given(
    questions=st.lists(st.integers(1, 4), min_size=1, max_size=25),
    sizes=st.dictionaries(st.sampled_from(list(SIZES)), st.integers(1, 8), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_drawn_splits_are_exact_disjoint_and_repeatable(questions: list[int], sizes: dict[str, int], seed: int) -> None:
    pool = [Example(f"{c}-{q}", f"text {c}", f"{q}?", ("a",)) for c, n in enumerate(questions) for q in range(n)]
    refused, splits = "", {}
    try:
        splits = draw(pool, sizes, seed)
    except DataError as error:
        refused = str(error)
    if refused:
        assert f"inputs have {len(pool)} on {len(questions)} documents" in refused
        # A split wastes at most the rest of its last context (3 questions).
        assert len(pool) < sum(sizes.values()) + 3 * len(sizes)
        return
    assert {name: len(split) for name, split in splits.items()} == sizes
    assert check_leakage(splits) == []
    drawn = [example for split in splits.values() for example in split]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(pool)
    assert splits == draw(pool, sizes, seed)


def test_seed_decides_the_draw() -> None:
    pool = [Example(str(c), f"text {c}", None, ("a",)) for c in range(40)]
    assert len({draw(pool, {"train": 5}, seed)["train"][0].id for seed in range(8)}) > 1


def test_several_inputs_to_files_and_manifest(tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", records(6, 2))
    test = write(tmp_path / "test.jsonl", records(6, 2, start=4))  # shares two contexts with the first
    out = tmp_path / "made" / "here"
    manifest = prepare([dev, test], "qa", SIZES, out, seed=3)
    assert manifest == json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in out.iterdir()) == [
        "dev.jsonl", "manifest.json", "micro_dev.jsonl", "test.jsonl", "train.jsonl",
    ]  # fmt: skip
    assert sorted(path.name for path in out.parent.iterdir()) == ["here"]
    splits = {name: load_examples(str(out / f"{name}.jsonl"), "qa") for name in SIZES}
    assert {name: len(split) for name, split in splits.items()} == SIZES
    assert check_leakage(splits) == []
    for name, entry in manifest["outputs"].items():
        content = (out / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["examples"] == SIZES[name]
    assert [entry["name"] for entry in manifest["inputs"]] == ["dev.jsonl", "test.jsonl"]
    assert manifest["inputs"][0]["sha256"] == hashlib.sha256(Path(dev).read_bytes()).hexdigest()
    assert (manifest["duplicates_removed"], manifest["unused"], manifest["seed"]) == (4, 6, 3)
    assert str(tmp_path) not in json.dumps(manifest)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", records(30, 1))
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        prepare([source], "qa", SIZES, tmp_path / name, seed=seed)
    one, two, three = ((tmp_path / name / "train.jsonl").read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_target_preset_for_summaries_from_own_columns(tmp_path: Path) -> None:
    rows = [{"body": f"story {number}", "summary": f"short {number}"} for number in range(220)]
    source = write(tmp_path / "a.jsonl", [*rows, rows[0]])
    manifest = prepare([source], "summarization", "target", tmp_path / "out", 0, {"article": "body"})
    assert {name: entry["examples"] for name, entry in manifest["outputs"].items()} == PRESETS["target"]
    assert manifest["duplicates_removed"] == 1
    assert manifest["drawn_by"] == "document"
    assert load_examples(str(tmp_path / "out" / "test.jsonl"), "summarization")[0].question is None


@pytest.mark.parametrize(("name", "recorded"), [("org/set", "hf:org/set:test"), ("/home/me/set", "set:test")])
def test_hub_inputs_are_recorded_by_name_and_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, recorded: str
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(records(3, 1)))
    manifest = prepare([f"hf:{name}:test"], "qa", {"train": 2}, tmp_path / "out", 0)
    written = write(tmp_path / "same.jsonl", records(3, 1))
    digest = hashlib.sha256(Path(written).read_bytes()).hexdigest()
    assert manifest["inputs"] == [{"name": recorded, "sha256": digest, "examples": 3}]


def test_ids_of_several_inputs_are_told_apart(tmp_path: Path) -> None:
    sources = [
        write(tmp_path / f"{number}.jsonl", [{**records(1, 1, start=number)[0], "id": "same"}]) for number in range(3)
    ]
    prepare(sources, "qa", {"train": 3}, tmp_path / "out", 0)
    ids = {example.id for example in load_examples(str(tmp_path / "out" / "train.jsonl"), "qa")}
    assert ids == {"same", "same#2", "same#3"}


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", records(30, 1))
    out = tmp_path / "out"
    prepare([source], "qa", SIZES, out, 1)
    before = (out / "train.jsonl").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        prepare([source], "qa", SIZES, out, 2)
    with pytest.raises(DataError, match="too little data"):
        prepare([source], "qa", {"train": 31}, out, 2, overwrite=True)
    assert (out / "train.jsonl").read_bytes() == before
    prepare([source], "qa", {"train": 5}, out, 2, overwrite=True)
    assert (out / "train.jsonl").read_bytes() != before
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train.jsonl"]


@pytest.mark.parametrize("manifest", [None, "[]", '{"kind": "other"}', "cut"])
def test_foreign_folder_is_never_overwritten(tmp_path: Path, manifest: str | None) -> None:
    source = write(tmp_path / "a.jsonl", records(30, 1))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work", encoding="utf-8")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(DataError, match="was not written by"):
        prepare([source], "qa", SIZES, out, 1, overwrite=True)
    assert (out / "thesis.tex").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_replacement_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    source = write(tmp_path / "a.jsonl", records(30, 1))
    out = tmp_path / "out"
    prepare([source], "qa", SIZES, out, 1)
    before = (out / "train.jsonl").read_bytes()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((DataError, KeyboardInterrupt)) as caught:
        prepare([source], "qa", SIZES, out, 2, overwrite=True)
    if isinstance(stop, OSError):
        assert "No space left on device" in str(caught.value)
    assert (out / "train.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_too_little_data_says_the_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", records(3, 2))
    with pytest.raises(
        DataError, match=r"need 14 examples; the inputs have 6 on 3 documents, and 'dev' got only 0 of 4"
    ):
        prepare([source], "qa", SIZES, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("targets", "Did you mean 'target'"),
        ({"microdev": 3}, "Did you mean 'micro_dev'"),
        ({"train": 0}, "at least 1, got 0"),
        ({"train": 2.5}, "whole number"),
        ({}, "no split"),
    ],
)
def test_bad_sizes(tmp_path: Path, sizes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare([], "qa", sizes, tmp_path / "out", 1)


def test_no_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no input"):
        prepare([], "qa", "target", tmp_path / "out", 1)
