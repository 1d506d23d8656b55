"""The record of a run: its folder, manifest, events, checkpoints, and what a person sees meanwhile."""

from .atomic import disk_errors, read_json, to_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from .checkpoint import Checkpoint, clear_checkpoints, load_checkpoint, save_checkpoint
from .compare import config_differences, flatten
from .dashboard import RichProgress, make_progress
from .events import EventLog, read_events, without_times
from .folder import RunFolder, StageFolder
from .hashing import hash_file, hash_folder, hash_path, portable
from .interrupt import InterruptFlag, graceful_interrupt
from .lock import Owner, who_works
from .manifest import build_manifest, changed_inputs
from .progress import PlainProgress, Progress, QuietProgress, Task
from .trackers import TrackedProgress, check_trackers, tracked

__all__ = [
    "Checkpoint", "EventLog", "InterruptFlag", "Owner", "PlainProgress", "Progress", "QuietProgress", "RichProgress",
    "RunFolder", "StageFolder", "Task", "TrackedProgress", "build_manifest", "changed_inputs", "check_trackers",
    "clear_checkpoints", "config_differences", "disk_errors", "flatten", "graceful_interrupt", "hash_file",
    "hash_folder", "hash_path", "load_checkpoint", "make_progress", "portable", "read_events", "read_json",
    "save_checkpoint", "to_json", "tracked", "who_works", "without_times", "write_bytes_atomic", "write_json_atomic",
    "write_text_atomic",
]  # fmt: skip
