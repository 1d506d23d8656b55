"""`init`: a commented configuration for a task and a language, with the places to fill in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..config import SplitFiles, template
from ..data import TaskName, build_task
from ..errors import ConfigError, RunError, check_choice
from ..runs import write_text_atomic

_HEAD = """Configuration of grasp-lora. Fill in what is marked FILL. A line that begins with "# " is a setting at its
default: remove these two characters to change it.

An adapter that is removed from `adapters` is trained here: the source's from data.source, the target's from
data.target.

  grasp-lora validate --config {out}
  grasp-lora run --config {out} --dry-run
  grasp-lora run --config {out}"""


def write_template(task: str, language: str, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a configuration to start from and return where it is and what is to be filled in.

    Raises `ConfigError` for a task that does not exist and `RunError` for a file that does (unless `overwrite`).
    """
    check_choice("--task", task, ("qa", "summarization"))
    if out.exists() and not overwrite:
        raise RunError(f"{out} exists and is not overwritten. Choose another name with --out, or add --overwrite.")
    to_fill: dict[str, Any] = {
        "model": {"name_or_path": "path/to/base-model"},
        "task": _prompt(cast(TaskName, task), language),
        "data": {"target": {name: f"data/mine/{name}.jsonl" for name in SplitFiles.model_fields}},
        "adapters": {"source": "path/to/source-adapter", "target": "path/to/target-adapter"},
    }
    chosen = {"recipe": "recommended", "task": {"name": task, "language": language}}
    write_text_atomic(out, template(to_fill, chosen, _HEAD.format(out=out.name)))
    return {"config": str(out), "fill_in": _names(to_fill)}


def _prompt(task: TaskName, language: str) -> dict[str, str]:
    """Return a prompt to translate where there is no built-in one."""
    try:
        build_task(task, language)
    except ConfigError:
        return {"prompt": build_task(task, "en").template}
    return {}


def _names(tree: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in tree.items():
        names += _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names
