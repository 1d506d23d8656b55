"""Where a result came from: versions, hardware, hashes of model, data and code, seeds, command, start.

No absolute path and no machine name is in it: paths are reduced to a name and a content hash.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import Config, to_dict
from .hashing import hash_folder, hash_path, portable

FORMAT = 1
PACKAGES = (
    "grasp-lora", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy",
    "tokenizers", "pydantic", "rouge-score", "sacrebleu", "jieba", "bert-score", "bitsandbytes", "torchao",
    "optuna", "nevergrad",
)  # fmt: skip
_PACKAGE_FOLDER = Path(__file__).resolve().parent.parent


def build_manifest(
    config: Config,
    inputs: Mapping[str, str | Path | None],
    command: Sequence[str] = (),
    seeds: Mapping[str, int] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the manifest of a run that starts now, as plain JSON types.

    `inputs` maps a role (`model`, `data.target.train`, `adapters.source`) to the local file or folder that
    is used; hub names and None are recorded without a hash. `command` is the command line, program name
    first. Raises `RunError` when an input cannot be read.
    """
    return {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": portable(list(command)),
        "config": portable(to_dict(config)),
        "seeds": {"run": config.seed, **(seeds or {})},
        "inputs": {role: describe_input(path) for role, path in inputs.items() if path is not None},
        "code": code_identity(),
        "versions": versions(),
        "hardware": hardware(device),
    }


def describe_input(path: str | Path) -> dict[str, str | None]:
    """Return `{"name", "sha256"}` of a file or folder; no hash for a hub id, which is nothing local."""
    return {"name": portable(str(path)), "sha256": hash_path(path)}


def changed_inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line per input whose content differs between two manifests (no resume on other data)."""
    before, after = old.get("inputs", {}), new.get("inputs", {})
    lines = []
    for role in sorted({*before, *after}):
        was, now = (side.get(role, {}).get("sha256") for side in (before, after))
        if was != now:
            lines.append(f"{role}: content {_short(was)} in the run, {_short(now)} now")
    return lines


def versions() -> dict[str, str | None]:
    """Return the version of Python and of every package that can change a result; None when not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Return processor, cores, threads, memory (bytes), and the GPUs (name, memory in bytes), driver."""
    import torch  # here, so that commands without a model need not wait for it

    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "device": device,
        "gpus": [],
    }
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found["gpus"] = [{"name": p.name, "memory_bytes": p.total_memory} for p in properties]
        found["cuda"] = torch.version.cuda
        found["driver"] = _driver_version()
    return found


def code_identity() -> dict[str, Any]:
    """Return the SHA-256 of the package's files and, in a checkout, the commit and whether it was changed."""
    identity: dict[str, Any] = {"source_sha256": hash_folder(_PACKAGE_FOLDER), "commit": None, "dirty": None}
    # An installed copy may lie in somebody else's checkout: only a tracked package has its own commit.
    if _git("ls-files", "--error-unmatch", "__init__.py") is not None:
        identity["commit"] = _git("rev-parse", "HEAD")
        identity["dirty"] = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return identity


def _git(*arguments: str) -> str | None:
    """Return what git prints about the package's folder; None outside a checkout or without git."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE_FOLDER), *arguments],
            capture_output=True, text=True, timeout=20, check=True, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    text = _read_system_file("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _driver_version() -> str | None:
    match = re.search(r"Kernel Module\D*([\d.]+)", _read_system_file("/proc/driver/nvidia/version"))
    return match[1] if match else None


def _read_system_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such figure on this system
        return None


def _short(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "(none)"
