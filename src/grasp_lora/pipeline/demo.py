"""The embedded default: a tiny trilingual backbone and a small world of passages, both made for this package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import Config, load_config
from ..data.world import LANGUAGES, demo_splits
from ..errors import ConfigError
from ..runs import write_text_atomic
from ..runs.atomic import to_json
from .models import DEMO

DATA = Path("runs") / "demo-data"


def demo_config(sets: Iterable[str] = ()) -> Config:
    """Return the demo's configuration under the user's `section.key=value` pairs.

    Task, language and seed draw the data, so their files lie in a folder that names the three. Raises `ConfigError`.
    """
    sets = tuple(sets)
    return load_config(None, sets, _settings(_folder(load_config(None, sets, _settings(DATA)))))


def _folder(config: Config) -> Path:
    return DATA / f"{config.task.name}-{config.task.language}-{config.seed}"


def _settings(folder: Path) -> dict[str, Any]:
    path = folder.as_posix()
    return {
        "model": {"name_or_path": DEMO},
        "task": {"name": "qa", "language": "ar", "max_length": 256, "max_new_tokens": 16},
        "data": {
            "source": {name: f"{path}/source-{name}.jsonl" for name in ("train", "dev")},
            "target": {name: f"{path}/target-{name}.jsonl" for name in ("train", "dev", "micro_dev", "test")},
        },
        "lora": {"target_modules": "all-linear"},
        "train_source": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
        "train_target": {"epochs": 6, "batch_size": 5, "lr": 1e-3, "patience": None},
        "prune": {"importance": "activation"},
        "search": {"lr": 1e-3},
        "finalize": {"epochs": 6, "batch_size": 5, "accumulation": 1, "lr": 1e-3, "patience": None},
        "evaluate": {"rivals": ["zero_shot", "source", "target", "sequential", "merged"]},
        "run": {"dir": "runs/demo"},
    }


def prepare_demo_data(config: Config) -> None:
    """Write the splits of the demo's world where the configuration looks for them; the same bytes every time."""
    language = config.task.language
    if language not in LANGUAGES:
        raise ConfigError(f"task.language: the demo's world speaks {', '.join(LANGUAGES)} (got '{language}').")
    splits, folder = demo_splits(config.task.name, language, config.seed), _folder(config)
    for side in ("source", "target"):
        files = getattr(config.data, side)
        for name in type(files).model_fields:
            path = getattr(files, name)
            if path is not None and Path(path).parent == folder:
                rows = splits[f"source_{name}" if side == "source" else name]
                write_text_atomic(path, "".join(to_json(row) + "\n" for row in rows))
