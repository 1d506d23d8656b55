"""What the documents show works: the Python example runs, commands parse, settings exist, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from peft import PeftModel
from tests.pico import pico_adapter, pico_model, pico_rows, pico_tokenizer
from transformers import AutoModelForCausalLM

import grasp_lora
from grasp_lora import errors
from grasp_lora.adapters.peft_save import save_adapter
from grasp_lora.cli import app
from grasp_lora.config import Config, load_config, parse_yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(grasp_lora.__file__).resolve().parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALGORITHM = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
CONFIGS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))}
TEXTS = PAGES | CONFIGS


# --- the Python example -----------------------------------------------------------------------------------------


def python_block() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return block


def write_adapter(model: Any, name: str) -> None:
    factors = {module: (f.A, f.B) for module, f in pico_adapter(model, name).modules.items()}
    save_adapter(Path("adapters") / name, factors, base_model="pico", alpha=8)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pico_model("llama").save_pretrained("pico")
    model = AutoModelForCausalLM.from_pretrained("pico")
    for name in ("en", "ar"):
        write_adapter(model, name)
    Path("data/mine").mkdir(parents=True)
    for split, count in {"train": 12, "dev": 4, "micro_dev": 6, "test": 3}.items():
        lines = "".join(json.dumps(row) + "\n" for row in pico_rows(count, split))
        Path(f"data/mine/{split}.jsonl").write_text(lines, encoding="utf-8")
    names: dict[str, Any] = {"model": model, "tokenizer": pico_tokenizer()}
    exec(python_block(), names)
    assert 0.0 <= names["found"].p_star <= 1.0
    shown = capsys.readouterr().out
    assert all(f"{score}: " in shown for score in ("loss", "em", "f1"))
    (loaded,) = re.findall(r"`PeftModel\.from_pretrained\(model, \"([^\"]+)\"\)`", README)
    served = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("pico"), loaded)
    with torch.no_grad():
        ids = torch.tensor([[1, 70, 71, 72]])
        plain, adapted = model(ids).logits, served(ids).logits
    assert not torch.equal(plain, adapted)  # the user's own model is bare again, the served one is not


def test_the_example_is_five_lines_beside_its_preparation():
    body = python_block().strip().split("\n\n")[-1]
    assert len(body.splitlines()) == 5


# --- commands and settings --------------------------------------------------------------------------------------


def blocks(name: str, text: str) -> str:
    """The text of a page's code blocks, or of a configuration's comments, with continued lines joined."""
    if name in CONFIGS:
        text = "".join(line[1:] + "\n" for line in text.splitlines() if line.startswith("#"))
    else:
        text = "".join(re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    return re.sub(r"\\\n\s*", " ", text)


def commands_in_blocks() -> list[tuple[str, str]]:
    """Every line that calls the program."""
    return sorted(
        {
            (name, line)
            for name, text in TEXTS.items()
            for line in re.findall(r"^\s*(?:\$ )?grasp-lora (.+)$", blocks(name, text), flags=re.MULTILINE)
        }
    )


def commands_in_sentences() -> list[tuple[str, str]]:
    """Every call that stands as code in a sentence; its last option may lack its value."""
    return sorted(
        {
            (name, line)
            for name, text in TEXTS.items()
            for line in re.findall(r"`(?:\.venv/bin/)?grasp-lora ([^`]+)`", re.sub(r"\n(?:# )?\s*", " ", text))
        }
    )


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words behind its name."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and not (words and words[0].startswith("-")):
        assert words, f"{command.name} needs a command: {', '.join(command.commands)}"
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("where", "line"), commands_in_blocks())
def test_every_command_parses(where, line):
    command, words = resolve(shlex.split(line, comments=True))
    with command.make_context(command.name, words) as context:  # refuses what is unknown, missing or of a wrong type
        load_config(None, context.params.get("sets") or ())


@pytest.mark.parametrize(("where", "line"), commands_in_sentences())
def test_commands_in_sentences_exist_with_their_options(where, line):
    command, words = resolve(shlex.split(line))
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def shown_settings() -> list[tuple[str, str]]:
    """Every `--set key=value`, and every `section.key` or `section.key=value` that stands as code."""
    sections = "|".join(name for name in Config.model_fields if name != "seed")
    found = []
    for name, text in TEXTS.items():
        found += [(name, item) for item in re.findall(r"--set '?([a-z][\w.]*=[^\s`']+)", text)]
        if name in PAGES:
            found += [(name, item) for item in re.findall(rf"`((?:{sections})\.[\w.]+(?:=[^`]+)?)`", text)]
    return [(where, item) for where, item in found if not item.endswith((".yaml", ".json", ".jsonl", ".py", ".md"))]


@pytest.mark.parametrize(("where", "item"), sorted(set(shown_settings())))
def test_every_setting_exists(where, item):
    key, equals, _ = item.partition("=")
    if equals:
        load_config(None, [item])  # the key is known and the value is allowed
        return
    node: Any = Config()
    for part in key.split("."):
        assert part in type(node).model_fields, f"{where}: no setting {key}"
        node = getattr(node, part)


def test_the_scan_finds_what_it_is_for():
    commands = {command for _, command in commands_in_blocks()}
    assert any(
        command.startswith("data prepare MLQA_V1/dev/") and "--out data/mlqa-ar" in command for command in commands
    )
    assert ("README.md", "export --config my.yaml") in commands_in_blocks()
    assert ("README.md", "evaluate --adapter FOLDER") in commands_in_sentences()
    assert ("README.md", "controller.preset=released") in shown_settings()
    assert ("README.md", "run.dir=runs/mine") in shown_settings()


# --- links, code and numbers ------------------------------------------------------------------------------------


def links() -> list[tuple[str, str]]:
    found = []
    for name, text in PAGES.items():
        found += [(name, link) for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "link"), links())
def test_every_link_leads_to_a_file(page, link):
    path = link.partition("#")[0]
    assert not path or (ROOT / page).parent.joinpath(path).exists()


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`([\w/]+\.py::\w+)`", ALGORITHM))))
def test_every_code_reference_is_defined_there(reference):
    file, name = reference.split("::")
    text = (SOURCE / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(?:def|class) {name}\b", text, flags=re.MULTILINE)


def test_details_are_numbered_without_a_gap_and_cited_ones_exist():
    numbers = [int(n) for n in re.findall(r"^(\d+)\. \*\*", ALGORITHM, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    table = ALGORITHM.split("## The release's twelve points")[1]
    cited = [int(n) for n in re.findall(r"detail (\d+)", table)]
    assert len(cited) == 12
    assert set(cited) <= set(numbers)
    for page in PAGES.values():
        assert {int(n) for n in re.findall(r"\bdetail (\d+)", " ".join(page.split()))} <= set(numbers)


def test_decisions_carry_the_number_of_their_file():
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert files
    for place, file in enumerate(files, start=1):
        title = file.read_text(encoding="utf-8").splitlines()[0]
        assert file.name.startswith(f"{place:04d}-")
        assert title.startswith(f"# {place}. ")


def test_exit_codes_are_those_of_the_errors():
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", README, flags=re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GraspError)]
    assert {name: int(code) for code, name in rows} == {
        kind.__name__: kind.exit_code for kind in kinds if kind is not errors.GraspError
    }


def test_citation_and_package_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = parse_yaml((ROOT / "CITATION.cff").read_text(encoding="utf-8"), "CITATION.cff")
    assert (citation["title"], str(citation["version"])) == (project["name"], project["version"])
    assert (citation["license"], citation["abstract"]) == (project["license"], project["description"])
    assert {"cff-version", "message", "authors"} <= set(citation)
