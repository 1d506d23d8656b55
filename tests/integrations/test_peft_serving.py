"""An adapter written by this package in PEFT's ways to serve several: hot swapping and mixed batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.hotswap import hotswap_adapter

from grasp_lora import api
from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.point import MergePoint
from grasp_lora.pipeline.finalize import FinalResult
from grasp_lora.training import Outcome
from pico import pico_adapter, pico_model, pico_setup
from pipeline.world import with_peft

IDS = torch.tensor([[1, 70, 71, 72], [1, 80, 81, 82], [1, 90, 91, 92]])
NEVER = Outcome(0, 0, None, (), (), False, 0, 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A base model and two exports of different merges, pruned at 0.6."""
    root = tmp_path_factory.mktemp("served")
    model = pico_model("llama")
    model.save_pretrained(root / "pico")
    work = pico_setup(model)
    for name, pair in {"one": ("en", "ar"), "two": ("en", "zh")}.items():
        bank: AdapterBank = work.bank([pico_adapter(model, adapter) for adapter in pair])
        bank.commit(torch.arange(bank.values.numel()) % 5 < 2)
        api.export(work, FinalResult(bank, MergePoint(0.6), bank.density(), (), NEVER), root / name)
    return root / "pico", root / "one" / "adapter", root / "two" / "adapter"


def logits(model: Any, ids: torch.Tensor = IDS, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **more).logits


def test_hot_swapping(folders):
    base, one, two = folders
    model = with_peft(base, one)
    before = logits(model)
    hotswap_adapter(model, str(two), adapter_name="default")
    assert torch.allclose(logits(model), logits(with_peft(base, two)), atol=1e-6)
    assert not torch.allclose(logits(model), before)


def test_mixed_batches(folders):
    base, one, two = folders
    model = with_peft(base, one)
    model.load_adapter(str(two), "two")
    model.eval()
    names = ["default", "two", "__base__"]
    alone = [logits(with_peft(base, one)), logits(with_peft(base, two)), logits(pico_model("llama"))]
    mixed = logits(model, adapter_names=names)
    for row, expected in enumerate(alone):
        assert torch.allclose(mixed[row], expected[row], atol=1e-5)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answers = model.generate(input_ids=IDS, adapter_names=names, **settings)
    for row, served in enumerate([with_peft(base, one), with_peft(base, two), pico_model("llama")]):
        assert torch.equal(answers[row], served.generate(input_ids=IDS, **settings)[row])
