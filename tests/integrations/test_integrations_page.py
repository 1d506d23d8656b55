"""The Python blocks of docs/integrations.md, run one after the other on a pico model."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

from grasp_lora.adapters.peft_save import save_adapter
from pico import pico_adapter, pico_model, pico_rows, pico_tokenizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")


def prepared() -> dict[str, Any]:
    """What the page says that the reader has."""
    pico_model("llama").save_pretrained("pico")
    model = transformers.AutoModelForCausalLM.from_pretrained("pico")
    for name in ("en", "ar"):
        factors = {module: (f.A, f.B) for module, f in pico_adapter(model, name).modules.items()}
        save_adapter(Path("adapters") / name, factors, base_model="pico", alpha=8)
    tokenizer = pico_tokenizer()
    tokenizer.padding_side = "left"
    rows = {name: [text(row) for row in pico_rows(count, name)] for name, count in {"train": 3, "micro_dev": 4}.items()}
    return {
        "model": model,
        "tokenizer": tokenizer,
        "train": [tokens(tokenizer, row) for row in rows["train"]],
        "micro_dev": [tokens(tokenizer, row) for row in rows["micro_dev"]],
        "conversations": {name: Dataset.from_list(found) for name, found in rows.items()},
    }


def text(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": f"{row['context']} {row['question']}=", "completion": row["answer"]}


def tokens(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    prompt, answer = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names = prepared()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of transformers and TRL on a machine without a GPU
        for block in blocks[:2]:
            exec(block, names)
        bare = pico_model("llama")(names["model"].dummy_inputs["input_ids"]).logits
        assert torch.equal(names["model"](names["model"].dummy_inputs["input_ids"]).logits, bare)
        assert names["exported"].density_before == pytest.approx(1 - names["found"].p_star, abs=0.01)
        exec(blocks[2].replace("learning_rate=1e-4", "learning_rate=1e-4, bf16=False"), names)
        names["model"] = names["merged"].detach()
        exec(blocks[3], names)
    assert len(names["answers"]) == 2
    assert "prune at 0." in capsys.readouterr().out
