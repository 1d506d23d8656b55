"""Learn the prune ratio in a training loop of one's own, transformers' `Trainer`, then train at it and export.

    python examples/trainer.py --model MODEL --adapters adapters/en adapters/ar \
        --train train.jsonl --micro-dev micro_dev.jsonl --output out

Rows of the files are {"prompt": ..., "completion": ...}. It starts with `accelerate launch` in the place of `python`
too, on one process or several.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from grasp_lora.integrations import GraspCallback, HoldRatioCallback, MergedModel, merge_into


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRASP LoRA with transformers.Trainer")
    parser.add_argument("--model", required=True, help="base model: folder or hub id")
    parser.add_argument("--adapters", required=True, nargs="+", help="two or more PEFT folders of that model")
    parser.add_argument("--train", required=True, help="JSON lines with prompt and completion")
    parser.add_argument("--micro-dev", required=True, help="at most 16 further examples, for the controller")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--interval", type=int, default=10, help="optimizer steps between rounds")
    return parser.parse_args(words)


def tokenized(path: str, tokenizer: Any) -> Any:
    """Return a data set with `input_ids` and `labels`; only the completion and the end token are learnt."""

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    rows = load_dataset("json", data_files=path, split="train")
    return rows.map(encode, remove_columns=rows.column_names)


def train(given: argparse.Namespace, merged: MergedModel, callback: TrainerCallback, stage: str) -> Trainer:
    """Train the merged adapters with one callback."""
    tokenizer = merged.work.base.tokenizer
    trainer = Trainer(
        model=merged,
        args=TrainingArguments(
            output_dir=str(given.output / stage),
            num_train_epochs=given.epochs,
            learning_rate=given.lr,
            per_device_train_batch_size=1,
            logging_steps=10,
            ddp_find_unused_parameters=False,  # the one parameter is always used
            report_to="none",
        ),
        train_dataset=tokenized(given.train, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def main(words: list[str] | None = None) -> float:
    given = arguments(words)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model)
    config = {"controller": {"interval": given.interval}}

    # Learn the ratio. The merged adapters are trained meanwhile, and thrown away afterwards.
    merged = merge_into(model, tokenizer, given.adapters, config=config)
    callback = GraspCallback(merged, tokenized(given.micro_dev, tokenizer))
    train(given, merged, callback, "search")
    found = callback.result()

    # The final run: the same adapters, untouched, at that ratio.
    merged = merge_into(merged.detach(), tokenizer, given.adapters, config=config)
    trainer = train(given, merged, HoldRatioCallback(merged, found.best), "final")
    if trainer.is_world_process_zero():
        exported = merged.export(given.output / "export", overwrite=True)
        print(f"learned ratio {found.p_star:.4f}, 90 % interval {found.interval}, adapter in {exported.adapter}")
    return found.p_star


if __name__ == "__main__":
    main()
