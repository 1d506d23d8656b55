"""What a run cost and where it came from, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runs import flatten, to_json
from ..runs.progress import format_duration
from .labels import OURS, stage_label
from .records import RunRecord
from .tables import Table, stage_costs

_PASSES = (
    "A token pass is 2 for a token that goes forward and 4 for one that goes forward and backward; times the "
    "parameters of the model's body it is the number of FLOP. Test evaluation is not counted."
)


_ADAPTERS = ("source_adapter", "target_adapter")
_NEEDS = {
    "zero_shot": (),
    "source": ("source_adapter",),
    "target": ("target_adapter",),
    "sequential": ("source_adapter", "rival_sequential"),
    "merged": (*_ADAPTERS, "rival_merged"),
    OURS: (*_ADAPTERS, "search", "finalize"),
}
"""Stages that train what a system is made of."""


def cost_tables(record: RunRecord) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    """Return notes and tables of tokens, time and deployment figures; both empty where nothing was trained."""
    costs = stage_costs(record.stages)
    tables = [_training(record, costs)] if costs else []
    tables += _deployment(record.result("deployment"))
    return ((_PASSES, *_probing(record)) if costs else ()), tuple(tables)


def system_passes(record: RunRecord, system: str) -> int | None:
    """Return the token passes of all training that a system needed in this run; None where part of it is not done.

    Adapters that were given cost nothing here.
    """
    costs = stage_costs(record.stages)
    needed = _NEEDS.get(system, (f"rival_{system}",))
    if system == OURS and record.setting("adapters.continue_source"):
        needed = (*needed, "rival_sequential")
    there = [name for name in needed if name in record.stages]
    reused = [name for name in there if record.result(name).get("reused")]
    if any(name not in costs and name not in reused for name in there):
        return None
    return sum(int(costs[name]["token_passes"]) for name in there if name in costs)


def _training(record: RunRecord, costs: Mapping[str, Any]) -> Table:
    total = sum(row["token_passes"] for row in costs.values())
    measured = any(_peak(record, name) != "-" for name in costs)
    rows = [
        [
            stage_label(name),
            f"{row['optimizer_steps']:,}",
            f"{row['trained_tokens']:,}",
            f"{row['forward_tokens']:,}",
            f"{row['token_passes']:,}",
            f"{row['token_passes'] / total:.0%}" if total else "-",
            _wall(record, name),
            *([_peak(record, name)] if measured else []),
        ]
        for name, row in costs.items()
    ]
    columns = ["stage", "steps", "tokens trained", "tokens forward", "token passes", "share", "wall time"]
    columns += ["peak GPU memory"] if measured else []
    return Table("What each stage took (wall time from its first to its last logged step)", columns, rows)


def _wall(record: RunRecord, stage: str) -> str:
    times = [float(e["time"]["unix"]) for e in record.events.get(stage, ()) if "unix" in e.get("time", {})]
    return format_duration(max(times) - min(times)) if len(times) > 1 else "-"


def _peak(record: RunRecord, stage: str) -> str:
    """Return the most memory that a stage's tensors took on the GPU; a resumed stage says what it took since."""
    peaks = [e["peak_bytes"] for e in record.events.get(stage, ()) if e["kind"] == "memory"]
    return f"{max(peaks) / 2**30:.1f} GiB" if peaks else "-"


def _probing(record: RunRecord) -> list[str]:
    seconds = [sum(v for k, v in row.get("time", {}).items() if k.endswith("_s")) for row in record.history]
    if not any(seconds):
        return []
    took = format_duration(sum(seconds))
    return [f"Of the search, {len(seconds)} rounds (ranking, probing, committing) took {took}."]


def _deployment(figures: Mapping[str, Any]) -> list[Table]:
    if not figures:
        return []
    energy = figures.get("energy_joules_per_token")
    rows = [
        ["loaded in", f"{figures['load_seconds']:.2f} s"],
        ["first token after", f"{figures['first_token_seconds'] * 1e3:.0f} ms"],
        ["throughput", f"{figures['tokens_per_second']:.0f} tokens/s"],
        ["peak memory", f"{figures['peak_memory_bytes'] / 2**20:.0f} MiB ({figures['peak_memory_kind']})"],
        ["energy", f"{energy:.2f} J/token" if energy is not None else f"unknown: {figures.get('energy_reason')}"],
        ["measured on", f"{figures['hardware']}, {figures['dtype']}, {figures['prompts']} prompts"],
    ]
    return [Table("The exported adapter as it is served", ["", ""], rows)]


def provenance_tables(record: RunRecord) -> tuple[Table, ...]:
    """Return start, command, code, seeds, inputs, versions, hardware and every setting."""
    manifest = record.manifest
    tables = []
    if manifest:
        tables.append(Table("Where this came from", ["", ""], _origin(manifest)))
        inputs = [
            [role, str(found.get("name")), str(found.get("sha256") or "not a local file")]
            for role, found in manifest.get("inputs", {}).items()
        ]
        tables.append(Table("Inputs", ["role", "name", "SHA-256"], inputs, folded=True))
        versions = [[name, str(v or "not installed")] for name, v in manifest.get("versions", {}).items()]
        tables.append(Table("Versions", ["package", "version"], versions, folded=True))
    if record.config:
        settings = [[name, to_json(value)] for name, value in flatten(record.config).items()]
        tables.append(Table("Every setting", ["setting", "value"], settings, folded=True))
    return tuple(tables)


def _origin(manifest: Mapping[str, Any]) -> list[list[str]]:
    hardware, code = manifest.get("hardware", {}), manifest.get("code", {})
    gpus = ", ".join(gpu["name"] for gpu in hardware.get("gpus", ())) or "none"
    commit = code.get("commit")
    changed = " with local changes" if code.get("dirty") else ""
    rows = {
        "started": manifest.get("started"),
        "command": " ".join(manifest.get("command", ())) or "from Python",
        "code": f"commit {commit}{changed}" if commit else "an installed package",
        "code, SHA-256": code.get("source_sha256"),
        "seeds": ", ".join(f"{name} {seed}" for name, seed in manifest.get("seeds", {}).items()),
        "device": hardware.get("device"),
        "GPUs": gpus,
        "processor": f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('threads')} threads",
        "system": hardware.get("system"),
    }
    return [[name, str(value)] for name, value in rows.items() if value]
