"""GRASP LoRA: merge LoRA adapters, learn how much of them to prune in one run, and fine-tune at that ratio.

The stages are functions: `setup`, `train_adapter`, `search`, `finalize`, `evaluate`, `export`, and `run` for the whole
story. They are imported on first use, so that `grasp-lora --help` does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        MergePoint,
        demo_backbone,
        evaluate,
        export,
        finalize,
        run,
        save,
        score_table,
        search,
        setup,
        train_adapter,
    )

__all__ = [
    "MergePoint", "demo_backbone", "evaluate", "export", "finalize", "run", "save", "score_table", "search", "setup",
    "train_adapter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
