"""Examples, tasks, token sequences, batches and splits."""

from .batches import (
    IGNORED,
    Batch,
    Joined,
    answer_window,
    cheapest_chunks,
    collate,
    epoch_order,
    join,
    joined_chunks,
    length_sorted_chunks,
    moved,
    packed,
)
from .cache import encode_kept, encode_prompts_kept
from .encode import CutReport, Encoded, EncodedSet, encode, encode_prompts, end_id, padding_id
from .examples import Example, TaskName, examples_from_records, load_examples, to_record
from .leakage import check_leakage, check_micro_dev
from .prepare import PRESETS, prepare
from .prompts import Task, build_task
from .splits import Splits, load_splits, require_splits

__all__ = [
    "IGNORED",
    "PRESETS",
    "Batch",
    "CutReport",
    "Encoded",
    "EncodedSet",
    "Example",
    "Joined",
    "Splits",
    "Task",
    "TaskName",
    "answer_window",
    "build_task",
    "cheapest_chunks",
    "check_leakage",
    "check_micro_dev",
    "collate",
    "encode",
    "encode_kept",
    "encode_prompts",
    "encode_prompts_kept",
    "end_id",
    "epoch_order",
    "examples_from_records",
    "join",
    "joined_chunks",
    "length_sorted_chunks",
    "load_examples",
    "load_splits",
    "moved",
    "packed",
    "padding_id",
    "prepare",
    "require_splits",
    "to_record",
]
