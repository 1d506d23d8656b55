"""The same with TRL's `SFTTrainer`, which tokenizes the data itself (pip install 'grasp-lora[trl]').

    python examples/sft.py --model MODEL --adapters adapters/en adapters/ar \
        --train train.jsonl --micro-dev micro_dev.jsonl --output out

Rows of the files are what SFTTrainer takes, here {"prompt": ..., "completion": ...}.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from grasp_lora.integrations import GraspCallback, HoldRatioCallback, MergedModel, merge_into


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRASP LoRA with TRL's SFTTrainer")
    parser.add_argument("--model", required=True, help="base model: folder or hub id")
    parser.add_argument("--adapters", required=True, nargs="+", help="two or more PEFT folders of that model")
    parser.add_argument("--train", required=True, help="JSON lines with prompt and completion")
    parser.add_argument("--micro-dev", required=True, help="at most 16 further examples, for the controller")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--interval", type=int, default=10, help="optimizer steps between rounds")
    return parser.parse_args(words)


def trainer_of(given: argparse.Namespace, merged: MergedModel, stage: str) -> SFTTrainer:
    """Return a trainer whose evaluation set is micro-dev, so that it is tokenized as the training data is."""
    files = {"train": given.train, "micro_dev": given.micro_dev}
    data = load_dataset("json", data_files=files)
    return SFTTrainer(
        model=merged,
        args=SFTConfig(
            output_dir=str(given.output / stage),
            num_train_epochs=given.epochs,
            learning_rate=given.lr,
            per_device_train_batch_size=1,
            logging_steps=10,
            bf16=torch.cuda.is_available(),
            ddp_find_unused_parameters=False,  # the one parameter is always used
            report_to="none",
        ),
        train_dataset=data["train"],
        eval_dataset=data["micro_dev"],
        processing_class=merged.work.base.tokenizer,
    )


def main(words: list[str] | None = None) -> float:
    given = arguments(words)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model)
    config = {"controller": {"interval": given.interval}}

    # Learn the ratio. The merged adapters are trained meanwhile, and thrown away afterwards.
    merged = merge_into(model, tokenizer, given.adapters, config=config)
    trainer = trainer_of(given, merged, "search")
    callback = GraspCallback(merged, trainer.eval_dataset)
    trainer.add_callback(callback)
    trainer.train()
    found = callback.result()

    # The final run: the same adapters, untouched, at that ratio.
    merged = merge_into(merged.detach(), tokenizer, given.adapters, config=config)
    trainer = trainer_of(given, merged, "final")
    trainer.add_callback(HoldRatioCallback(merged, found.best))
    trainer.train()
    if trainer.is_world_process_zero():
        exported = merged.export(given.output / "export", overwrite=True)
        print(f"learned ratio {found.p_star:.4f}, 90 % interval {found.interval}, adapter in {exported.adapter}")
    return found.p_star


if __name__ == "__main__":
    main()
