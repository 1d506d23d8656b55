"""`doctor`: what is installed, what the hardware can do, which extras are missing, and whether the demo is intact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from ..errors import GraspError, MissingExtraError, ModelError
from ..runs.hashing import hash_file
from ..runs.manifest import hardware, versions
from .models import demo_backbone

NAME = "grasp-lora"
_DEVELOPMENT = {"dev", "docs"}  # of use in a clone of the repository only


def examine(place: str | Path) -> tuple[dict[str, Any], list[GraspError]]:
    """Return the findings as JSON values, and what is wrong; `place` is where runs are kept.

    An extra that is not installed is no error. Memory and disk are in bytes.
    """
    required, extras = _requirements()
    problems: list[GraspError] = [*required]
    demo = _demo_problem()
    if demo is not None:
        problems.append(demo)
    machine = hardware()
    facts = {
        "versions": versions(),
        "system": {key: machine[key] for key in ("system", "cpu", "cores", "threads", "memory_bytes")},
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "gpu": "usable" if torch.cuda.is_available() else _why_no_gpu(),
        "extras": extras,
        "demo_backbone": "intact" if demo is None else str(demo),
        "free_disk_bytes": shutil.disk_usage(_existing(Path(place))).free,
        "problems": [str(problem) for problem in problems],
    }
    return facts, problems


def _gpu(index: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        free, total = torch.cuda.mem_get_info()
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "name": found.name, "compute_capability": f"{found.major}.{found.minor}", "bf16": bf16,
        "memory_bytes": total, "free_memory_bytes": free,
    }  # fmt: skip


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "no GPU: this torch is built for the CPU alone"
    return "no GPU: torch finds none (driver, or CUDA_VISIBLE_DEVICES)"


def _requirements() -> tuple[list[GraspError], dict[str, Any]]:
    """Return what required packages lack, and for every extra what is installed, from the package's own metadata."""
    problems: list[GraspError] = []
    extras: dict[str, Any] = {}
    for requirement, extra in _declared():
        found = _installed(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        if extra is None:
            if not fits:
                problems.append(
                    ModelError(f"{requirement} is needed, found: {found}. Run: pip install '{requirement}'")
                )
            continue
        entry = extras.setdefault(extra, {"installed": True, "packages": {}})
        entry["packages"][requirement.name] = found
        if not fits:
            entry["installed"] = False
            entry["how"] = MissingExtraError.command(extra)
    return problems, extras


def _declared() -> Iterator[tuple[Requirement, str | None]]:
    """Yield every requirement with the extra it belongs to, those of development left out."""
    given = metadata.metadata(NAME)
    extras = [extra for extra in given.get_all("Provides-Extra") or () if extra not in _DEVELOPMENT]
    for text in metadata.requires(NAME) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement, None
            continue
        for extra in extras:
            if requirement.marker.evaluate({"extra": extra}):
                yield requirement, extra


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _demo_problem() -> ModelError | None:
    """Compare the embedded backbone with the hashes that were recorded when it was made."""
    folder = demo_backbone()
    again = "Install the package again."
    try:
        recorded: dict[str, str] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return ModelError(f"the demo's backbone has no readable provenance.json. {again}")
    for name, sha256 in recorded.items():
        file = folder / name
        if not file.is_file():
            return ModelError(f"the demo's backbone lacks {name}. {again}")
        if hash_file(file) != sha256:
            return ModelError(f"{name} of the demo's backbone is not the file that was shipped. {again}")
    return None


def _existing(place: Path) -> Path:
    """Return the nearest folder above `place` that exists."""
    place = place.absolute()
    return next(folder for folder in (place, *place.parents) if folder.is_dir())
