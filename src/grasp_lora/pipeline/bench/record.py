"""The record of a bench: everything that is needed to judge its numbers, written as it grows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ...config import Config
from ...errors import ConfigError, RunError, check_choice
from ...runs import Progress, write_json_atomic
from ...runs.manifest import code_identity, hardware, versions
from ..models import resolve_device
from .demo_rounds import NAME as DEMO
from .demo_rounds import measure_rounds
from .measure import Subject, measure
from .scaling import scaling
from .variants import planned, variants
from .workloads import WORKLOADS

FORMAT = 1
FOLDER = Path("runs") / "bench"


@dataclass(frozen=True)
class Request:
    """What to measure: workloads by name, `section.key=value` pairs, and how much of each.

    `variants` compares with every switch of `speed` off alone, `variant` with the settings that it names.
    `memory_gib` caps what the allocator may hold on a GPU; `out` is the record's file, by default one named after
    workloads and time in `runs/bench`.
    """

    workloads: Sequence[str]
    sets: Sequence[str] = ()
    repeats: int = 5
    quick: bool = False
    scaling: bool = False
    variants: bool = False
    variant: Sequence[str] = ()
    memory_gib: float | None = None
    out: Path | None = None


def workload_names() -> tuple[str, ...]:
    """Return what can be asked for."""
    return (*WORKLOADS, DEMO)


def bench(request: Request, progress: Progress) -> tuple[dict[str, Any], Path]:
    """Measure the workloads and return the record and its file, which is written after every part.

    Raises `ConfigError` for an unknown workload, a bad number or a device that is not there or too small, `RunError`
    for a file that is there already.
    """
    configs = _checked(request)
    path = request.out or _default_path(request.workloads)
    if path.exists():
        raise RunError(f"{path} exists and is not overwritten. Choose another name with --out.")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    device = next(iter(configs.values())).model.device
    record: dict[str, Any] = {
        "format": FORMAT, "started": started, "versions": versions(), "code": code_identity(),
        "hardware": hardware(str(resolve_device(device))), "max_memory_gib": request.memory_gib,
        "request": {"workloads": list(request.workloads), "set": list(request.sets), "repeats": request.repeats,
                    "quick": request.quick},
        "results": [],
    }  # fmt: skip
    with _capped(request.memory_gib, resolve_device(device)):
        for name, config in configs.items():
            result: dict[str, Any] = {"workload": name, "load_before": _load()}
            record["results"].append(result)
            for _part in _parts(name, config, request, result, progress):
                result["load_after"] = _load()
                write_json_atomic(path, record)
    return record, path


def _checked(request: Request) -> dict[str, Config]:
    """Return the configuration of every workload; raises `ConfigError` before anything is measured."""
    for name in request.workloads:
        check_choice("--workload", name, workload_names())
    more = request.quick or request.scaling or request.variants or request.variant
    if more and set(request.workloads) == {DEMO}:
        raise ConfigError("--quick, --scaling, --variants and --variant are not for the demo's rounds. Leave them out.")
    if request.repeats < 1:
        raise ConfigError(f"--repeats must be at least 1 (got {request.repeats}).")
    if request.memory_gib is not None and request.memory_gib <= 0:
        raise ConfigError(f"--max-memory-gib must be above 0 (got {request.memory_gib:g}).")
    configs = {}
    for name in request.workloads:
        sized = WORKLOADS.get(name) or next(iter(WORKLOADS.values()))
        configs[name] = sized.config(request.sets)
        device = resolve_device(configs[name].model.device)
        if name in WORKLOADS:
            sized.require(device)
            planned(configs[name], request.variant, request.sets, sized)
        if request.memory_gib is not None and device.type != "cuda":
            raise ConfigError(f"--max-memory-gib caps the allocator of a GPU; the device is {device}. Leave it out.")
    return configs


def _default_path(names: Sequence[str]) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return FOLDER / f"{'-'.join(names)}-{stamp}.json"


@contextmanager
def _capped(gib: float | None, device: torch.device) -> Iterator[None]:
    """Let the allocator hold at most so many GiB while the block runs."""
    if gib is None:
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    whole = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / whole), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def _load() -> float | None:
    """Return the machine's load over the last minute, where the system tells: others' work slows ours."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _parts(name: str, config: Config, request: Request, result: dict[str, Any], progress: Progress) -> Iterator[str]:
    """Add one part after the other to a workload's result, and what was warned of on the way."""
    if name == DEMO:
        progress.note("demo: rounds in three ways")
        result |= measure_rounds(request.repeats, request.sets)
        yield DEMO
        return
    notices: list[str] = []
    result["notices"] = notices
    progress.note(f"{name}: weights")
    subject = Subject(WORKLOADS[name], config)
    with _noting(notices, progress.warn):
        result |= measure(subject, repeats=request.repeats, quick=request.quick, say=progress.note)
    yield "pieces"
    if request.variants or request.variant:
        plans = planned(config, request.variant, request.sets, WORKLOADS[name])
        with _noting(notices, progress.warn):
            result["variants"] = variants(subject, plans, progress.note)
        yield "variants"
    if request.scaling:
        progress.note(f"{name}: scaling")
        with _noting(notices, progress.warn):
            result["scaling"] = scaling(subject, min(request.repeats, 3))
        yield "scaling"


@contextmanager
def _noting(notices: list[str], tell: Callable[[str], None]) -> Iterator[None]:
    """Put warnings of the block into `notices`: a fall-back that says why belongs to the record."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        if text not in notices:
            notices.append(text)
            tell(text)
