"""Losses of examples under candidate masks."""

from .evaluator import Attached, Evaluator
from .loss import answer_logits, example_losses

__all__ = ["Attached", "Evaluator", "answer_logits", "example_losses"]
