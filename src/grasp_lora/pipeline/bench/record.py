"""The record of a bench: everything that is needed to judge its numbers, written as it grows."""

from __future__ import annotations

import math
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
from ...errors import ConfigError, RunError, TrainingError, check_choice
from ...runs import Progress, write_json_atomic
from ...runs.atomic import disk_errors, require_writable
from ...runs.manifest import code_identity, hardware, versions
from ..demo import demo_config
from ..models import resolve_device
from .demo_rounds import NAME as DEMO
from .demo_rounds import measure_rounds
from .measure import Subject, measure
from .scaling import scaling
from .sizes import check_timed
from .variants import planned, variants
from .workloads import WORKLOADS, Workload

FORMAT = 1
FOLDER = Path("runs") / "bench"


@dataclass(frozen=True)
class Request:
    """What to measure: workloads by name, `section.key=value` pairs, and how much of each.

    `variants` compares with every switch of `speed` off alone, `variant` with the settings that it names; both may be
    asked for. `memory_gib` caps what the allocator may hold on a GPU; `out` is the record's file, by default one named
    after workloads and time in `runs/bench`.
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

    def to_dict(self) -> dict[str, Any]:
        """Return what was asked for as JSON values; the cap has a place of its own in the record."""
        return {
            "workloads": list(self.workloads), "set": list(self.sets), "repeats": self.repeats, "quick": self.quick,
            "scaling": self.scaling, "variants": self.variants, "variant": list(self.variant),
        }  # fmt: skip


def workload_names() -> tuple[str, ...]:
    """Return what can be asked for."""
    return (*WORKLOADS, DEMO)


def bench(request: Request, progress: Progress) -> tuple[dict[str, Any], Path]:
    """Measure the workloads and return the record and its file, which is written after every part.

    Raises `ConfigError` for an unknown workload, a bad number, settings that leave nothing to time, or a device that is
    not there or too small, `RunError` for a file that is there already or cannot be written: all before anything is
    measured.
    """
    configs = _checked(request)
    path = request.out or _default_path(request.workloads)
    with disk_errors(path, kept="Nothing was written"):
        there = path.exists()
    if there:
        raise RunError(f"{path} exists and is not overwritten. Choose another name with --out.")
    require_writable(path)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    device = next(iter(configs.values())).model.device
    record: dict[str, Any] = {
        "format": FORMAT, "started": started, "versions": versions(), "code": code_identity(),
        "hardware": hardware(str(resolve_device(device))), "max_memory_gib": request.memory_gib,
        "request": request.to_dict(), "results": [],
    }  # fmt: skip
    with _capped(request.memory_gib, resolve_device(device)):
        for name, config in configs.items():
            result: dict[str, Any] = {"workload": name, "load_before": _load()}
            record["results"].append(result)
            try:
                for _part in _parts(name, config, request, result, progress):
                    result["load_after"] = _load()
                    write_json_atomic(path, record)
            except TrainingError as error:  # whose advice is for a run, which has checkpoints
                kept = f"What was measured before is in {path}" if path.exists() else "Nothing was recorded"
                raise TrainingError(f"{name}: {str(error).partition('. ')[0]}. {kept}. Change the settings.") from None
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
    configs = {}
    for name in request.workloads:
        configs[name] = demo_config(request.sets) if name == DEMO else _checked_workload(WORKLOADS[name], request)
        if request.memory_gib is not None:
            _share(request.memory_gib, resolve_device(configs[name].model.device))
    return configs


def _checked_workload(workload: Workload, request: Request) -> Config:
    """Return a workload's configuration; raises `ConfigError` where one of its parts could not be measured."""
    config = workload.config(request.sets)
    workload.require(resolve_device(config.model.device))
    workload.check_targets(config.lora)
    check_timed(config, workload.train, quick=request.quick)
    planned(config, request.variant, request.sets, workload, off=request.variants)
    if request.scaling and config.merge.weights is not None:
        raise ConfigError(
            "--scaling: measures other numbers of adapters too, for which merge.weights has no weights. Leave one out "
            "(--set merge.weights=null)."
        )
    return config


def _default_path(names: Sequence[str]) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return FOLDER / f"{'-'.join(names)}-{stamp}.json"


def _share(gib: float, device: torch.device) -> float:
    """Return the share of a GPU's memory that so many GiB are; raises `ConfigError` where they would cap nothing."""
    if not (math.isfinite(gib) and gib > 0):
        raise ConfigError(f"--max-memory-gib must be a number above 0 (got {gib:g}).")
    if device.type != "cuda":
        raise ConfigError(f"--max-memory-gib caps the allocator of a GPU; the device is {device}. Leave it out.")
    whole = torch.cuda.get_device_properties(_index(device)).total_memory / 2**30
    if gib >= whole:
        raise ConfigError(f"--max-memory-gib: the GPU has {whole:.1f} GiB, so {gib:g} cap nothing. Leave it out.")
    return float(gib / whole)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@contextmanager
def _capped(gib: float | None, device: torch.device) -> Iterator[None]:
    """Let the allocator hold at most so many GiB while the block runs."""
    if gib is None:
        yield
        return
    torch.cuda.set_per_process_memory_fraction(_share(gib, device), _index(device))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, _index(device))


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
    plans = planned(config, request.variant, request.sets, WORKLOADS[name], off=request.variants)
    if plans:
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
