"""Lines of the cost model from a record of `bench`, scaled to another model by its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import RunError
from ...runs import read_json
from ..costs import CostModel, Kind, Line
from ..models import skeleton
from .record import FORMAT
from .workloads import body_parameters

MARGIN = 0.4  # scaling by parameters leaves launches, attention and the head out


def recorded_costs(config: Config, path: Path) -> CostModel:
    """Return the cost model of the first workload in a record; raises `RunError` for a file that is no such record."""
    record = read_json(path)
    results = record.get("results") if isinstance(record, dict) and record.get("format") == FORMAT else None
    found = next((result for result in results or () if "pieces" in result), None)
    if found is None:
        raise RunError(
            f"{path} is no record of `grasp-lora bench` with a workload in it. Give the file that bench wrote."
        )
    model: Any = skeleton(config.model)
    ratio = body_parameters(model) / float(found["body_parameters"])
    gpus = [gpu["name"] for gpu in record["hardware"]["gpus"]]
    where = gpus[0] if gpus and record["hardware"]["device"] != "cpu" else record["hardware"]["cpu"]
    source = f"{found['workload']} in {path.name}, measured on {where}, times {ratio:.3g} for the parameters"
    return CostModel(_lines(found, ratio), source, MARGIN)


def _lines(found: Mapping[str, Any], ratio: float) -> dict[Kind, Line]:
    pieces, size, answers = found["pieces"], found["sizes"], found["generation"]
    probed = (1 + found["config"]["controller"]["candidates"]) * size["micro_dev"] * found["mean_tokens"]["micro_dev"]
    forward = _per_token(pieces["probing alone"], probed, ratio)
    read = size["generated"] * size["prompt"] * forward.per_token[0] / ratio
    steps = size["generated"] * (size["new_tokens"] - 1)
    decode = ratio * max(answers["median_s"] - read, 0.0) / steps
    return {
        "train": _per_token(pieces["training step"], found["mean_tokens"]["train"], ratio),
        "forward": forward,
        "decode": Line((0.0, 0.0), (decode, decode)),
        "round": _fixed(pieces["round without probing"]),
        "select": _fixed(pieces["selection of an update"]),
    }


def _per_token(piece: Mapping[str, Any], tokens: float, ratio: float) -> Line:
    mean = ratio * piece["mean_s"] / tokens
    return Line((0.0, 0.0), (mean, mean))


def _fixed(piece: Mapping[str, Any]) -> Line:
    return Line((piece["mean_s"], piece["mean_s"]))
