"""The method inside a training loop of the user's own: `transformers.Trainer` and its descendants (TRL's `SFTTrainer`).

merged = merge_into(model, tokenizer, ["adapters/en", "adapters/ar"])
callback = GraspCallback(merged, micro_dev)
Trainer(model=merged, args=args, train_dataset=train, callbacks=[callback]).train()
print(callback.result().p_star)
"""

from .merged import MergedModel, merge_into
from .trainer import GraspCallback, HoldRatioCallback, LearnedRatio

__all__ = ["GraspCallback", "HoldRatioCallback", "LearnedRatio", "MergedModel", "merge_into"]
