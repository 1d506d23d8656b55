"""The example scripts on a pico model, in this process and through `accelerate launch` on two."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from grasp_lora.adapters.peft_save import save_adapter
from pico import pico_adapter, pico_model, pico_rows, pico_tokenizer
from pipeline.world import with_peft, write_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, two adapters and two files of prompts and completions."""
    root = tmp_path_factory.mktemp("examples")
    model = pico_model("llama")
    model.save_pretrained(root / "pico")
    pico_tokenizer().save_pretrained(root / "pico")
    for name in ("en", "ar"):
        factors = {module: (f.A, f.B) for module, f in pico_adapter(model, name).modules.items()}
        save_adapter(root / name, factors, base_model="pico", alpha=8)
    for split, count in {"train": 8, "micro_dev": 4}.items():
        rows = [{"prompt": f"{row['context']} {row['question']}=", "completion": row["answer"]}
                for row in pico_rows(count, split)]  # fmt: skip
        write_rows(root / f"{split}.jsonl", rows)
    return root


def words(world: Path, output: Path) -> list[str]:
    return [
        "--model", str(world / "pico"), "--adapters", str(world / "en"), str(world / "ar"),
        "--train", str(world / "train.jsonl"), "--micro-dev", str(world / "micro_dev.jsonl"),
        "--output", str(output), "--epochs", "1", "--interval", "4", "--lr", "0.01",
    ]  # fmt: skip


def check(world: Path, output: Path, ratio: float) -> None:
    """The export is pruned at the learned ratio and loads in plain PEFT."""
    assert 0.0 <= ratio < 1.0
    prompt = torch.tensor([[1, 70, 71, 72]])
    with torch.no_grad():
        served = with_peft(world / "pico", output / "export" / "adapter")(prompt).logits
    assert not torch.equal(served, pico_model("llama")(prompt).logits)
    card = (output / "export" / "adapter" / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"\| pruned at \| ratio ([\d.]+)", card)
    assert float(shown) == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("name", ["trainer", "sft"])
def test_an_example_runs(name, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of transformers and TRL on the script's own choices
        script: dict[str, Any] = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
        ratio = script["main"](words(world, tmp_path / "out"))
    check(world, tmp_path / "out", ratio)
    assert "learned ratio" in capsys.readouterr().out


@pytest.mark.slow
def test_an_example_runs_on_two_processes_that_agree(world, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"),
                   "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    command = [*launch, str(Path(__file__).with_name("launched.py")), *words(world, tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (ratio,) = re.findall(r"both processes learned ([\d.]+)", done.stdout)
    check(world, tmp_path / "out", float(ratio))
