"""One training loop with callbacks, and the selection of what is pruned."""

from .callbacks import Callback, FixedRatio, commit_mask
from .loop import TrainingLoop
from .selector import MaskSelector
from .state import Outcome, Plumbing

__all__ = ["Callback", "FixedRatio", "MaskSelector", "Outcome", "Plumbing", "TrainingLoop", "commit_mask"]
