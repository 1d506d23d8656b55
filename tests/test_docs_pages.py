"""The documentation's pages: Python blocks run, commands fit their files, figures and tables are what they show."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.pico import pico_adapter, pico_model, pico_rows, pico_tokenizer
from tests.test_docs import PAGES, ROOT, blocks, commands_in_blocks

from grasp_lora.adapters.peft_save import save_adapter
from grasp_lora.config import load_config

NEEDS_GPU = "# needs a GPU"
ELSEWHERE = {
    "README.md": "test_docs.py",
    "docs/integrations.md": "integrations/test_integrations_page.py",
    "docs/own-data.md": "pipeline/test_own_data_page.py",
}
"""Pages whose blocks need more around them."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Python blocks ------------------------------------------------------------------------------------------------


def python_blocks() -> list[tuple[str, int, str]]:
    return [
        (page, number, text)
        for page, content in PAGES.items()
        if page not in ELSEWHERE
        for number, text in enumerate(re.findall(r"^```python\n(.*?)^```$", content, flags=re.MULTILINE | re.DOTALL))
    ]


def runnable() -> list[Any]:
    return [
        pytest.param(text, id=f"{page}-{number}")
        for page, number, text in python_blocks()
        if not text.startswith(NEEDS_GPU)
    ]


def what_the_reader_has() -> dict[str, Any]:
    """A model, a tokenizer, adapters and examples, as the pages say."""
    model = pico_model("llama")
    for name in ("en", "ar", "fr", "sw"):
        factors = {module: (f.A, f.B) for module, f in pico_adapter(model, name).modules.items()}
        save_adapter(Path("adapters") / name, factors, base_model="pico", alpha=8)
    model.name_or_path = "pico"
    splits = {"train": 6, "dev": 3, "micro_dev": 4, "test": 2}
    return {
        "model": model,
        "tokenizer": pico_tokenizer(),
        "adapters": ["adapters/en", "adapters/ar"],
        "data": {name: pico_rows(count, name) for name, count in splits.items()},
        "dialects": {name: pico_rows(4, name) for name in ("egyptian", "gulf")},
    }


@pytest.mark.parametrize("block", runnable())
def test_the_python_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = what_the_reader_has()
    exec(block, names)
    if "print" in block:
        assert capsys.readouterr().out.strip()


def test_blocks_that_need_a_gpu_are_python():
    marked = [text for *_, text in python_blocks() if text.startswith(NEEDS_GPU)]
    assert len(marked) == 1
    for text in marked:
        compile(text, "block", "exec")


def test_pages_with_a_test_of_their_own_are_read_by_it():
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text(encoding="utf-8")


# --- commands -----------------------------------------------------------------------------------------------------


def with_files() -> list[tuple[str, str]]:
    return [(page, line) for page, line in commands_in_blocks() if re.search(r"--config configs/\S+\.yaml", line)]


@pytest.mark.parametrize(("page", "line"), with_files())
def test_settings_of_a_command_fit_its_configuration(page, line):
    words = shlex.split(line)
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    load_config(ROOT / words[words.index("--config") + 1], sets)


def yaml_blocks() -> list[tuple[str, str]]:
    found = "^```yaml\\n(.*?)^```$"
    return [(page, text) for page, content in PAGES.items() for text in re.findall(found, content, flags=re.M | re.S)]


@pytest.mark.parametrize("text", [pytest.param(text, id=page) for page, text in yaml_blocks()])
def test_settings_of_a_yaml_block_are_allowed(text, tmp_path):
    file = tmp_path / "shown.yaml"
    file.write_text(text, encoding="utf-8")
    load_config(file, [])


def test_other_commands_are_there():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {"make": 0, "python": 0}
    for page, content in PAGES.items():
        for line in blocks(page, content).splitlines():
            program, _, rest = line.strip().partition(" ")
            if program == "make" and rest:
                assert rest.split()[0] in targets, f"{page}: {line}"
                found["make"] += 1
            if program == "python" and rest.startswith(("scripts/", "examples/")):
                assert (ROOT / rest.split()[0]).is_file(), f"{page}: {line}"
                found["python"] += 1
    assert all(found.values())


# --- figures and the table of settings ----------------------------------------------------------------------------


def said(svg: str) -> list[str]:
    """The numbers that a picture says: its description and the words of its marks."""
    return re.findall(r"<(?:title|desc)>([^<]*)<", svg)


@pytest.mark.parametrize("name", ["loss-over-ratio", "learned-ratios"])
def test_figures_show_the_records(name):
    figures = script("docs_figures")
    committed = (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    fresh = figures.standing_alone(figures.FIGURE[name]())
    assert len(said(committed)) > 3
    assert said(committed) == said(fresh), "run python scripts/docs_figures.py"


def test_figures_say_the_numbers_of_the_log():
    committed = (ROOT / "docs" / "figures" / "loss-over-ratio.svg").read_text(encoding="utf-8")
    for row in ("ratio 0.7, dev, after the final run: 1.319", "ratio 0.7, test, after the final run: 1.271"):
        assert row in committed
    assert "1.319 ± 0.121 | 1.271 ± 0.097" in PAGES["docs/log.md"]


def test_the_table_holds_every_setting_with_its_default():
    pytest.importorskip("mkdocs")
    table = "\n".join(script("docs_site").settings_tables())
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", table, flags=re.MULTILINE))
    assert rows["controller.interval"] == "10"
    assert rows["train_source.epochs"] == "3"
    assert rows["data.target.micro_dev"] == "null"
    assert len(rows) == len(set(re.findall(r"^\| `([\w.]+)`", table, flags=re.MULTILINE)))
    assert set(leaves(load_config(None, []).model_dump(mode="json"))) == set(rows)


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and key not in ("fields",):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
