"""A pico model on disk, tiny splits and a configuration of a whole run that takes a second."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from grasp_lora.config import Config, build_config
from pico import pico_model, pico_rows, pico_tokenizer

COUNTS = {"train": 6, "dev": 3, "micro_dev": 3, "test": 3}
RIVALS = ["zero_shot", "source", "target", "sequential", "merged"]


def write_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A model folder as `from_pretrained` wants it."""
    pico_model(family, **changes).save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


class World:
    """Folders of one test: `model`, `data`, and a settings tree that a test changes with dotted names."""

    def __init__(self, root: Path, model: Path, **counts: int) -> None:
        self.root, self.model = root, model
        self.data = root / "data"
        for name, count in {**COUNTS, **counts}.items():
            write_rows(self.data / f"{name}.jsonl", pico_rows(count, name))
        for name, count in {"train": 8, "dev": 3}.items():
            write_rows(self.data / f"source-{name}.jsonl", pico_rows(count, f"en{name}"))

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Settings of a whole run; `merge__rule="sum_deltas"` changes one, None removes it."""
        tree = {
            "model": {"name_or_path": str(self.model), "device": "cpu"},
            "task": {
                "language": "en", "prompt": "{context} {question}=", "source_prompt": "{context} {question}=",
                "max_length": 96, "max_new_tokens": 4,
            },
            "data": {
                "source": {name: str(self.data / f"source-{name}.jsonl") for name in ("train", "dev")},
                "target": {name: str(self.data / f"{name}.jsonl") for name in COUNTS},
                "micro_dev_size": 4,
            },
            "lora": {"r": 2, "alpha": 8.0},
            "train_source": {"epochs": 1, "batch_size": 4, "lr": 0.02},
            "train_target": {"epochs": 2, "batch_size": 3, "lr": 0.02},
            "search": {"epochs": 2, "batch_size": 2, "lr": 0.02},
            "finalize": {"epochs": 2, "accumulation": 2, "lr": 0.02},
            "controller": {"interval": 2, "candidates": 2, "p_init": 0.5, "early_stop": False},
            "evaluate": {"bootstrap": 20, "deployment": False, "rivals": ["zero_shot", "source", "target"]},
            "run": {"dir": str(self.root / "run"), "checkpoint_every": 3},
        }  # fmt: skip
        return changed(tree, **changes)

    def config(self, **changes: Any) -> Config:
        return build_config(self.settings(**changes))

    def file(self, name: str = "config.yaml", **changes: Any) -> Path:
        """The settings as a file (JSON is YAML)."""
        path = self.root / name
        path.write_text(json.dumps(self.settings(**changes)), encoding="utf-8")
        return path

    def adapter(self, name: str, base: str | None = None, **lora: Any) -> Path:
        """An adapter folder written by plain PEFT, with A and B random."""
        model = load_plain(self.model)
        model.name_or_path = base or str(self.model)
        settings = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **lora}
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
        wrapped.peft_config["default"].base_model_name_or_path = base or str(self.model)
        generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[:7], "big"))
        with torch.no_grad():
            for key, parameter in wrapped.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        folder = self.root / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.save_pretrained(str(folder))
        return folder


def changed(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(leaf, None)
        else:
            node[leaf] = str(value) if isinstance(value, Path) else value
    return tree


def load_plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def with_peft(folder: Path, adapter: Path) -> Any:
    """What a user does with an exported adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(load_plain(folder), str(adapter)).eval()


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
