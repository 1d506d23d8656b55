"""The callbacks on `transformers.Trainer`: the same search as our own loop, its checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from grasp_lora import api
from grasp_lora.data import Encoded, epoch_order
from grasp_lora.errors import AdapterError, ConfigError, DataError, RunError
from grasp_lora.integrations import GraspCallback, HoldRatioCallback, MergedModel, merge_into
from pico import pico_adapter, pico_model, pico_setup, pico_tokenizer

SETTINGS: dict[str, Any] = {
    "search": {"epochs": 1, "lr": 0.01, "lr_decay": 1.0},
    "controller": {"interval": 2, "early_stop": False},
}


def rows(items: list[Encoded]) -> list[dict[str, list[int]]]:
    """Token sequences as a trainer's data set has them."""
    return [
        {
            "input_ids": list(item.input_ids),
            "attention_mask": [1] * len(item.input_ids),
            "labels": [-100] * item.prompt_length + list(item.input_ids[item.prompt_length :]),
        }
        for item in items
    ]


class World:
    """A pico model, two adapters, and training and micro-dev rows in the order of our own loop."""

    def __init__(self, **settings: Any) -> None:
        self.config = {**SETTINGS, **settings}
        self.model = pico_model("llama")
        self.adapters = [pico_adapter(self.model, name) for name in ("en", "ar")]
        self.work = pico_setup(self.model, self.config)
        items = self.work.items("train")
        self.train = rows([items[i] for i in epoch_order(len(items), self.work.config.seed, 0)])
        self.micro = rows(list(self.work.items("micro_dev")))

    def merged(self) -> MergedModel:
        return merge_into(self.model, pico_tokenizer(), self.adapters, config=self.config)

    def trainer(self, merged: MergedModel, callback: Any, folder: Path, **changes: Any) -> Trainer:
        settings: dict[str, Any] = {
            "output_dir": str(folder), "per_device_train_batch_size": 1, "num_train_epochs": 1,
            "learning_rate": 0.01, "lr_scheduler_type": "constant", "optim": "adamw_torch", "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "save_strategy": "no", "logging_strategy": "no",
        }  # fmt: skip
        return Trainer(
            model=merged, args=TrainingArguments(**{**settings, **changes}), train_dataset=self.train,
            callbacks=[callback],
        )  # fmt: skip


@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity"])
def test_a_search_is_the_one_of_our_own_loop(importance, tmp_path):
    world = World(prune={"importance": importance})
    ours = api.search(world.work, world.adapters)
    merged = world.merged()
    callback = GraspCallback(merged, world.micro)
    world.trainer(merged, callback, tmp_path).train()
    theirs = callback.result()
    assert (theirs.rounds, theirs.evaluations) == (ours.rounds, ours.evaluations) == (6, theirs.evaluations)
    assert theirs.p_star == pytest.approx(ours.p_star, abs=1e-6)
    assert theirs.interval == pytest.approx(ours.interval, abs=1e-6)
    assert theirs.probe_tokens == ours.probe_tokens
    pruned = merged.values.detach()[~merged.bank.kept]
    assert len(pruned) and not pruned.any()
    assert [row["round"] for row in callback.history] == list(range(7))
