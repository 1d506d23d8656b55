"""Ready-made configurations: each loads, and `validate` and `--dry-run` take it with a pico model in the 8B's place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.pico import pico_model, pico_tokenizer
from typer.testing import CliRunner

from grasp_lora.cli import app
from grasp_lora.config import Config, build_config, load_config, parse_yaml, to_dict
from grasp_lora.config.sections import SplitFiles
from grasp_lora.data.prepare import PRESETS
from grasp_lora.pipeline.plan import make_plan

FOLDER = Path(__file__).resolve().parent.parent / "configs"
CELLS = ("mlqa-ar", "mlqa-zh", "xlsum-ar", "xlsum-zh")
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NEW_TOKENS = {"xlsum-ar": 128, "xlsum-zh": 96, "mlqa-ar": 64, "mlqa-zh": 64}


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "pico"
    pico_model("llama").save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def record(task: str, split: str, number: int) -> dict[str, Any]:
    text = f"document {number} of {split}"
    if task == "summarization":
        return {"text": text, "summary": f"number {number}"}
    return {"context": text, "question": "Which one?", "answers": [str(number)]}


def write_splits(config: Config, sizes: dict[str, int]) -> None:
    """Make tiny files in the configured places, below the working directory."""
    for side in ("source", "target"):
        files = getattr(config.data, side)
        for split in SplitFiles.model_fields:
            path = getattr(files, split)
            if path is not None:
                rows = [record(config.task.name, f"{side} {split}", i) for i in range(sizes.get(split, 3))]
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_all_cells_are_there():
    assert set(FILES) == {*CELLS, "recommended"}


@pytest.mark.parametrize("name", FILES)
def test_validate_and_dry_run_with_a_pico_model(name, pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, sets = str(FOLDER / f"{name}.yaml"), [f"model.name_or_path={pico}"]
    write_splits(load_config(file, sets), {})
    words = ["--config", file, "--set", sets[0]]
    for command in (["validate", *words, "--json"], ["run", *words, "--dry-run", "--json"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (result.output, result.exception)
        shown = json.loads(result.output)
        if command[0] == "validate":
            assert {"model", "leakage", "lengths target.micro_dev", "merge"} <= {row["what"] for row in shown}
            assert not any(row["error"] for row in shown)
        else:
            names = [stage["name"] for stage in shown["stages"]]
            continued = ["rival_sequential"] if name == "recommended" else []
            assert names == ["source_adapter", "target_adapter", *continued, "search", "finalize", "keep", "evaluate"]
    assert not (tmp_path / "runs").exists()  # neither of them starts a run


@pytest.mark.parametrize("name", CELLS)
def test_cells_hold_the_papers_sizes_and_the_released_settings(name, pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(FOLDER / f"{name}.yaml")
    assert config.model.name_or_path == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert (config.lora.r, config.lora.alpha, config.lora.target_modules) == (8, 32, ("q_proj", "v_proj"))
    assert (config.task.max_length, config.task.max_new_tokens) == (2200, NEW_TOKENS[name])
    assert (config.merge.scaling, config.prune.importance, config.finalize.mask) == ("ignore", "activation", "dynamic")
    for training in (config.train_source, config.train_target, config.search, config.finalize):
        assert (training.dropout, training.lr, training.lr_decay) == (0.05, 1e-4, 0.85)
    controller = config.controller
    assert controller.preset == "released"
    assert (controller.interval, controller.candidates, controller.max_step) == (10, 3, 0.1)
    # 10 epochs over 50 examples: 500 steps in the search, 70 updates of 8 in the final run.
    write_splits(config, PRESETS["target"])
    plan = make_plan(load_config(FOLDER / f"{name}.yaml", [f"model.name_or_path={pico}"]))
    steps = {stage.name: stage for stage in plan.stages}
    assert (steps["search"].steps, steps["finalize"].steps) == (500, 70)
    # ... and 50 rounds of a baseline and three candidates on 16 examples, beside ten dev passes over 50.
    assert steps["search"].forward == 50 * (1 + 3) * 16 + 10 * 50


@pytest.mark.parametrize("name", CELLS)
def test_files_lie_where_the_shown_commands_write_them(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    prepared = set(re.findall(r"--out (\S+)", text))
    data = to_dict(load_config(FOLDER / f"{name}.yaml"))["data"]
    named = {path for side in ("source", "target") for path in data[side].values() if path is not None}
    assert {str(Path(path).parent) for path in named} == prepared == {f"data/{name[:-3]}-en", f"data/{name}"}
    assert {Path(path).stem for path in named} <= set(PRESETS["target"])


def test_the_template_holds_the_defaults():
    """Each default is written once, in the sections; the template repeats them and must not fall behind."""
    given = load_config(FOLDER / "recommended.yaml")
    written = parse_yaml((FOLDER / "recommended.yaml").read_text(encoding="utf-8"), "recommended.yaml")
    filled = {"model.name_or_path"} | {f"data.{s}.{n}" for s in ("source", "target") for n in SplitFiles.model_fields}
    default = to_dict(build_config({"recipe": "recommended"}))
    for section, values in written.items():
        for key, value in (values if isinstance(values, dict) else {"": values}).items():
            inner = value if isinstance(value, dict) else {"": value}
            for last in inner:
                path = [part for part in (section, key, last) if part]
                if ".".join(path) not in filled:
                    assert reach(to_dict(given), path) == reach(default, path), ".".join(path)


def reach(tree: Any, path: list[str]) -> Any:
    for part in path:
        tree = tree[part]
    return tree
