"""A small trilingual world of facts, written for the demo: passages with questions and answers, and with headlines."""

from .generator import Example, Split, Task, demo_splits, generate
from .lexicon import LANGUAGES, Language
from .pretraining import pretraining_text

__all__ = ["LANGUAGES", "Example", "Language", "Split", "Task", "demo_splits", "generate", "pretraining_text"]
