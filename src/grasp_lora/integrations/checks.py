"""What a trainer's training must be like for a bank of merged adapters."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from transformers import TrainingArguments

from ..errors import ConfigError

# Processes with the same parameters, whole, in each; anything else splits the flat parameter.
_REPLICATED = {"NO", "MULTI_CPU", "MULTI_GPU"}


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_processes(args: TrainingArguments) -> None:
    """Raise `ConfigError` where the flat parameter would be split or copied behind our back."""
    kind = str(getattr(args.distributed_state, "distributed_type", "NO")).rpartition(".")[2]
    if kind not in _REPLICATED:
        raise ConfigError(
            f"training under {kind} splits the parameters, which a bank of merged adapters does not allow. Use one "
            "process, or several with plain data parallelism (accelerate launch --multi_gpu)."
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process would each train a copy. Start with accelerate launch, or show one GPU "
            "with CUDA_VISIBLE_DEVICES."
        )


def check_scaler(optimizer: Any, importance: str) -> None:
    """Raise `ConfigError` for `sensitivity` where the loss is scaled, as mixed precision in float16 does.

    Gradients are multiplied by a scale that changes then, and updates whose gradients overflow are skipped; a callback
    is told neither, and one such gradient would stay in the averages for good.
    """
    if importance == "sensitivity" and getattr(optimizer, "scaler", None) is not None:
        raise ConfigError(
            "prune.importance=sensitivity needs gradients as they are, but fp16=True scales them and skips updates "
            "that overflow. Train with bf16=True or in float32, or use another importance."
        )
