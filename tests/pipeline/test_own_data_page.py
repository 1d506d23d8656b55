"""docs/own-data.md, walked: its commands and Python blocks one after the other, on a pico model."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import pytest
from world import lines, write_model, write_rows

from grasp_lora.config import parse_yaml
from pico import pico_rows

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
QUICK = [
    "search.batch_size=5",
    "evaluate.deployment=false",
    "evaluate.bootstrap=20",
    "evaluate.generation_limit=4",
    "task.max_length=200",
] + [f"{stage}.epochs=1" for stage in ("search", "finalize", "train_target")]


def steps() -> list[tuple[str, str]]:
    """The page's code blocks as (language, text); a block of commands is cut into its lines."""
    found = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n\s*", " ", text)
        found += [(language, line) for line in joined.splitlines()] if language == "sh" else [(language, text)]
    return found


def what_the_reader_has(root: Path) -> None:
    write_model(root / "path" / "to" / "base-model")
    write_rows(root / "all.jsonl", pico_rows(216, "text"))
    write_rows(root / "questions.jsonl", [{k: row[k] for k in ("context", "question")} for row in pico_rows(2, "new")])


def fill_in(file: Path) -> None:
    """What is marked FILL and is not already as the page has it."""
    text = file.read_text(encoding="utf-8")
    for name, folder in {"path/to/source-adapter": "adapters/en", "path/to/target-adapter": "adapters/ar"}.items():
        assert text.count(name) == 1
        text = text.replace(name, folder)
    file.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    what_the_reader_has(tmp_path)
    languages, names = [], {}
    for language, text in steps():
        languages.append(language)
        if language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks of PEFT about a model without a card
                exec(text, names)
            continue
        if language == "csv":
            Path("faq.csv").write_text(text, encoding="utf-8")
            continue
        program, *words = shlex.split(text)
        assert program == "grasp-lora"
        quick = [word for item in QUICK for word in ("--set", item)] if words[0] == "run" else []
        said = cli(*words, *quick)
        assert said.code == 0, said.err or said.out
        if words[0] == "init":
            fill_in(Path("my.yaml"))
    assert languages.count("python") == 2
    drawn = [row for split in ("train", "test") for row in lines(Path(f"data/faq/{split}.jsonl"))]
    assert sorted(row["context"] for row in drawn)[0] == "Cairo lies on the Nile, in the north of Egypt."
    assert ["Qasr al-Nil", "the Qasr al-Nil bridge"] in [row["answers"] for row in drawn]
    results = json.loads(Path("runs/mine/results.json").read_text(encoding="utf-8"))
    assert set(results["systems"]) == {"zero_shot", "source", "target", "sequential", "grasp"}
    assert (len(Path("answers.jsonl").read_text(encoding="utf-8").splitlines())) == 2
    assert Path("runs/mine/report/report.html").is_file()
    assert isinstance(names["answer"], str)
    prompt = parse_yaml(Path("runs/mine/config.yaml").read_text(encoding="utf-8"), "config.yaml")["task"]["prompt"]
    assert prompt is None  # so the built-in words, which the page repeats
