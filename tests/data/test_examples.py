"""Every format in, and every unusable input refused with file, place, field and rule."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from grasp_lora.data import Example, examples_from_records, load_examples, to_record
from grasp_lora.errors import ConfigError, DataError, MissingExtraError

QA = {
    "id": "a",
    "context": "Paris {is} in France.",
    "question": "Where is Paris?",
    "answers": ["France", "in France"],
}
SUMMARY = {"id": "s", "text": "A long story.", "summary": "Short."}
QA_EXAMPLE = Example("a", QA["context"], QA["question"], ("France", "in France"))  # type: ignore[arg-type]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def squad(*questions: dict[str, Any], context: str = QA["context"]) -> str:  # type: ignore[assignment]
    return json.dumps(
        {
            "version": "1",
            "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}],
        }
    )


# --- what is read ------------------------------


def test_jsonl_with_mark_and_blank_lines_and_line_separators(tmp_path: Path) -> None:
    text = QA["context"] + "\u2028 next\u0085 line"  # type: ignore[operator]
    source = write(
        tmp_path / "a.jsonl",
        b"\xef\xbb\xbf" + lines(QA, {**QA, "id": 7, "context": text}).replace("\n", "\r\n\n").encode(),
    )
    first, second = load_examples(source, "qa")
    assert first == QA_EXAMPLE
    assert second.id == "7"
    assert second.document == text


def test_squad_nesting_keeps_distinct_answers(tmp_path: Path) -> None:
    answers = [
        {"text": "France", "answer_start": 12},
        {"text": "in France", "answer_start": 9},
        {"text": "France", "answer_start": 12},
    ]
    source = write(tmp_path / "a.json", squad({"id": "a", "question": QA["question"], "answers": answers}))
    assert load_examples(source, "qa") == [QA_EXAMPLE]


def test_older_cmrc_list(tmp_path: Path) -> None:
    item = {
        "context_id": "c",
        "context_text": QA["context"],
        "qas": [{"query_id": "a", "query_text": QA["question"], "answers": QA["answers"]}],
    }
    assert load_examples(write(tmp_path / "a.json", json.dumps([item])), "qa") == [QA_EXAMPLE]


@pytest.mark.parametrize("tree", [[SUMMARY], {"data": [SUMMARY]}])
def test_json_list_of_records(tmp_path: Path, tree: object) -> None:
    (example,) = load_examples(write(tmp_path / "a.json", json.dumps(tree)), "summarization")
    assert example == Example("s", "A long story.", None, ("Short.",))


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.TSV", "\t")])
def test_tables_with_quoted_cells(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [["id", "text", "summary"], ["s", '"A long,\nlong ""story""\t."', "Short."]]
    source = write(tmp_path / name, "\ufeff" + "\n".join(delimiter.join(row) for row in rows))
    (example,) = load_examples(source, "summarization")
    assert example.document == 'A long,\nlong "story"\t.'


def test_table_cells_longer_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    source = write(tmp_path / "a.csv", "text,summary\n" + "x" * 200_000 + ",short")
    assert len(load_examples(source, "summarization")[0].document) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "cell", ['["France", "in France"]', '{"text": ["France", "in France"], "answer_start": [12, 9]}']
)
def test_table_answers_as_json(tmp_path: Path, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    source = write(tmp_path / "a.csv", f"id,context,question,answers\na,{QA['context']},{QA['question']},{quoted}\n")
    assert load_examples(source, "qa") == [QA_EXAMPLE]


def test_table_with_an_empty_row_and_text_that_starts_like_json(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'context,question,answers\n"[""c""]",q,"[""x"" y"\n\nc,q,a\n')
    first, second = load_examples(source, "qa")
    assert (first.document, first.answers) == ('["c"]', ('["x" y',))
    assert second.answers == ("a",)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    squad_answers = {"text": QA["answers"], "answer_start": [12, 9]}
    parquet.write_table(pyarrow.Table.from_pylist([{**QA, "answers": squad_answers}]), tmp_path / "a.parquet")
    assert load_examples(str(tmp_path / "a.parquet"), "qa") == [QA_EXAMPLE]


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("hf:org/set:train", ("org/set", None, "train")),
        ("hf:xquad:xquad.ar:validation[:10]", ("xquad", "xquad.ar", "validation[:10]")),
    ],
)
def test_hub_dataset(monkeypatch: pytest.MonkeyPatch, source: str, call: tuple[str, str | None, str]) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        calls.append((name, config, split))
        return datasets.Dataset.from_list([{**QA, "answers": {"text": QA["answers"], "answer_start": [12, 9]}}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_examples(source, "qa") == [QA_EXAMPLE]
    assert calls == [call]


@pytest.mark.parametrize(
    "answers",
    [
        ["France", "in France"],
        ("France ", " in France"),
        {"text": ["France", "in France"]},
        [{"text": "France"}, {"text": "in France"}],
    ],
)
def test_records_and_their_shapes_of_answers(answers: object) -> None:
    assert examples_from_records([{**QA, "answers": answers}], "qa") == [QA_EXAMPLE]


def test_one_string_is_one_answer() -> None:
    assert examples_from_records([{**without(QA, "answers"), "answer": "France"}], "qa")[0].answers == ("France",)


def test_array_columns_of_a_data_frame() -> None:
    import numpy as np

    answers = np.array(["France", "in France"], dtype=object)
    assert examples_from_records([{**QA, "answers": answers}], "qa") == [QA_EXAMPLE]


def test_own_column_names() -> None:
    record = {"body": "A long story.", "title": "Short.", "text": "not this"}
    (example,) = examples_from_records([record], "summarization", {"article": "body", "summary": "title"})
    assert (example.document, example.answers) == ("A long story.", ("Short.",))


def test_ids_are_made_from_the_content_alone() -> None:
    plain = without(QA, "id")
    first, again = (examples_from_records([other, plain], "qa")[1].id for other in (SUMMARY | QA, {**QA, "id": "b"}))
    assert first == again
    assert examples_from_records([{**plain, "question": "Why?"}], "qa")[0].id != first


def test_ids_that_repeat_are_told_apart() -> None:
    records = [{**QA, "id": name} for name in ("a", "a", "a#2", "a", "b")]
    ids = [example.id for example in examples_from_records(records, "qa")]
    assert len(set(ids)) == 5
    assert (ids[0], ids[2], ids[4]) == ("a", "a#2", "b")


@pytest.mark.parametrize(("record", "task"), [(QA, "qa"), (SUMMARY, "summarization")])
def test_records_come_back_unchanged(record: dict[str, Any], task: Any) -> None:
    examples = examples_from_records([record], task)
    assert to_record(examples[0]) == record
    assert examples_from_records(map(to_record, examples), task) == examples


# --- what is refused ------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", ["a.jsonl", "empty"]),
        ("a.csv", " \n\n", ["a.csv", "empty"]),
        ("a.csv", "id,text,summary\n", ["a.csv", "no example"]),
        ("a.json", '{"data": []}', ["a.json", "no example"]),
        ("a.jsonl", lines(QA) + lines(QA)[:30], ["line 2", "cut off"]),
        ("a.jsonl", lines(QA) + lines(QA)[:-2], ["line 2", "cut off"]),
        ("a.jsonl", lines(QA)[:30] + "\n" + lines(QA), ["line 1", "not valid JSON"]),
        ("a.jsonl", lines([1, 2]), ["line 1", "object with named fields", "list"]),
        ("a.json", squad({"id": "a"})[:-9], ["a.json", "cut off"]),
        ("a.json", lines(QA, QA), ["a.json", ".jsonl"]),
        ("a.json", '"text"', ["a.json", "list of records"]),
        ("a.json", "[" * 100_000, ["a.json", "JSON"]),
        ("a.json", '{"rows": []}', ["'data' must be a list", "found: rows"]),
        ("a.json", '{"data": [{"paragraphs": 3}]}', ["data[0]", "'paragraphs' must be a list"]),
        ("a.json", '{"data": [{"paragraphs": [{"context": "c"}]}]}', ["data[0].paragraphs[0]", "'qas'"]),
        ("a.json", squad("question"), ["data[0].paragraphs[0].qas[0]", "str"]),  # type: ignore[arg-type]
        ("a.json", squad({"id": "a", "question": "q", "answers": []}), ["qas[0]", "no answer", "SQuAD 2.0"]),
        (
            "a.json",
            squad({"id": "a", "question": "q", "answers": [{"start": 1}]}),
            ["qas[0]", "'text' is missing"],
        ),
        ("a.jsonl", lines(QA).encode("utf-16"), ["UTF-16", "iconv"]),
        ("a.jsonl", lines(QA).encode() + '{"id": "ü"}'.encode("latin-1"), ["line 2", "not UTF-8", "0xfc"]),
        ("a.jsonl", b"\xef\xbb\xbf" + lines(QA).encode() + b"\xff", ["line 2", "not UTF-8", "0xff"]),
        (
            "a.jsonl",
            lines({**QA, "context": "é"}).encode().partition(b"\xa9")[0],
            ["line 1", "cut off inside a character"],
        ),
        ("a.csv", 'text,summary\n"a story,short\n', ["a.csv", "cut off"]),
        ("a.csv", "text,summary\na story,short\nanother", ["line 3", "1 cells", "cut off"]),
        ("a.csv", "text,text\na,b\n", ["twice"]),
        (
            "a.csv",
            "id,context,question,answers\na,c,q,\"{'text': ['x']}\"\n",
            ["line 2", "printed dictionary"],
        ),
        ("a.parquet", b"PAR1 not a table", ["a.parquet", "Parquet"]),
        ("a.jsonlines", lines(QA), ["'.jsonlines' is not known", "'.jsonl'"]),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, said: list[str]) -> None:
    source = write(tmp_path / name, content)
    task = "summarization" if isinstance(content, str) and content.startswith("text,") else "qa"
    with pytest.raises(DataError) as caught:
        load_examples(source, task)  # type: ignore[arg-type]
    for words in said:
        assert words in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        load_examples(str(tmp_path / "none.jsonl"), "qa")
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load_examples(str(tmp_path / "a.jsonl"), "qa")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            without(QA, "question"),
            ["field 'question' is missing", "id, context, answers", "data.fields.question="],
        ),
        (without(QA, "answers"), ["'answers' or 'answer' is missing"]),
        ({**QA, "context": None}, ["'context' must be text", "NoneType"]),
        ({**QA, "context": 3.5}, ["'context' must be text", "float 3.5"]),
        ({**QA, "context": " \n\t"}, ["'context' is empty"]),
        ({**QA, "question": ""}, ["'question' is empty"]),
        ({**QA, "context": "half \ud83d"}, ["'context'", "surrogate"]),
        ({**QA, "answers": []}, ["'answers' has no answer"]),
        ({**QA, "answers": {"text": [], "answer_start": []}}, ["'answers.text' has no answer"]),
        ({**QA, "answers": ["France", " "]}, ["'answers' is empty"]),
        ({**QA, "answers": [1]}, ["'answers' must be text", "int 1"]),
        ({**QA, "answers": None}, ["'answers' must be text"]),
        ({**QA, "id": 1.5}, ["'id' must be text or a whole number"]),
        ({**QA, "id": ""}, ["'id' is empty"]),
        ("context", ["must be a mapping", "str"]),
    ],
)
def test_unusable_records(record: Any, said: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        examples_from_records([QA, record], "qa", origin="mine")
    for words in ["mine, record 2", *said]:
        assert words in str(caught.value)


def test_several_summaries_are_refused() -> None:
    with pytest.raises(DataError, match="'summary' must be text, got list"):
        examples_from_records([{**SUMMARY, "summary": ["one", "two"]}], "summarization")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read \(Permission denied\)"):
        load_examples(write(tmp_path / "a.jsonl", lines(QA)), "qa")


def test_unusable_summary() -> None:
    with pytest.raises(DataError, match="'text' or 'article' is missing"):
        examples_from_records([without(SUMMARY, "text")], "summarization")


def test_no_records() -> None:
    with pytest.raises(DataError, match="mine: there is no example"):
        examples_from_records([], "qa", origin="mine")


def test_unknown_field_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'context'"):
        examples_from_records([QA], "qa", {"contxt": "c"})


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a:b:c:d"])
def test_malformed_hub_name(source: str) -> None:
    with pytest.raises(DataError, match="hf:NAME"):
        load_examples(source, "qa")


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError("no such set\nsecond line"), ValueError("Unknown split"), RuntimeError("scripts")],
)
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as caught:
        load_examples("hf:org/set:train", "qa")
    assert "hf:org/set:train" in str(caught.value)
    assert str(error).splitlines()[0] in str(caught.value)
    assert "second line" not in str(caught.value)


@pytest.mark.parametrize("source", ["hf:org/set:train", "a.parquet"])
def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def absent(name: str, *_: object) -> Any:
        raise ImportError(name)

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", b"PAR1")
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"grasp-lora\[data\]"):
        load_examples(source, "qa")
