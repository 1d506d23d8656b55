"""A pico model with two adapters, the rows of a trainer's data set, and a trainer that follows our own loop's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from grasp_lora.data import Encoded, epoch_order
from grasp_lora.integrations import MergedModel, merge_into
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


TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "num_train_epochs": 1, "learning_rate": 0.01,
    "lr_scheduler_type": "constant", "optim": "adamw_torch", "max_grad_norm": 0.0, "disable_tqdm": True,
    "train_sampling_strategy": "sequential", "report_to": "none", "use_cpu": True, "save_strategy": "no",
    "logging_strategy": "no",
}  # fmt: skip


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
        settings: dict[str, Any] = {"output_dir": str(folder), **TRAINING, **changes}
        return Trainer(
            model=merged, args=TrainingArguments(**settings), train_dataset=self.train, eval_dataset=self.train,
            callbacks=[callback],
        )  # fmt: skip
