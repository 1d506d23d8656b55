"""Lines of the cost model from a record of `bench`, scaled to another model by its parameters."""

from __future__ import annotations

import math
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
_NO_ANSWERS = "the record has no time of answers, a batch of which did not fit into its machine's memory"


def recorded_costs(config: Config, path: Path) -> CostModel:
    """Return the cost model of the first workload in a record; raises `RunError` for a file that is no such record.

    Without a time of answers in the record, the cost model has no line for them and says why.
    """
    record, model = read_json(path), _body(config)
    try:
        return _costs(record, model, path.name)
    except KeyError as error:
        lacks = f"it lacks {error}"
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        lacks = "what it holds is of another kind"
    raise RunError(
        f"{path} is no record of `grasp-lora bench` with a workload in it ({lacks}). Give the file that bench wrote."
    )


def _body(config: Config) -> int:
    model: Any = skeleton(config.model)
    return body_parameters(model)


def _costs(record: Any, body: int, name: str) -> CostModel:
    """Return the cost model for so many body parameters; what the record lacks is a `KeyError` or the like."""
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}")
    found = next((result for result in record["results"] if "pieces" in result), None)
    if found is None:
        raise KeyError("pieces")
    ratio = body / found["body_parameters"]
    lines = _lines(found, ratio)
    hardware = record["hardware"]
    gpus = [gpu["name"] for gpu in hardware["gpus"]]
    where = gpus[0] if gpus and hardware["device"] != "cpu" else hardware["cpu"]
    source = f"{found['workload']} in {name}, measured on {where}, times {ratio:.3g} for the parameters"
    return CostModel(lines, source, MARGIN, {} if "decode" in lines else {"decode": _NO_ANSWERS})


def _lines(found: Mapping[str, Any], ratio: float) -> dict[Kind, Line]:
    pieces, size, answers, tokens = found["pieces"], found["sizes"], found["generation"], found["mean_tokens"]
    probed = (1 + found["config"]["controller"]["candidates"]) * size["micro_dev"] * tokens["micro_dev"]
    lines: dict[Kind, Line] = {
        "train": _per_token(pieces["training step"], _examples(found) * tokens["train"], ratio),
        "forward": _per_token(pieces["probing alone"], probed, ratio),
        "round": _fixed(pieces["round without probing"]),
        "select": _fixed(pieces["selection of an update"]),
    }
    if "out_of_memory" not in answers:
        read = size["generated"] * size["prompt"] * lines["forward"].per_token[0] / ratio
        steps = size["generated"] * (size["new_tokens"] - 1)
        decode = ratio * max(answers["median_s"] - read, 0.0) / steps
        lines["decode"] = Line((0.0, 0.0), (decode, decode))
    return lines


def _examples(found: Mapping[str, Any]) -> float:
    """Return the examples of the mean training step: the last one of an epoch may hold fewer."""
    training, train = found["config"]["search"], found["sizes"]["train"]
    return float(train / -(-train // (training["batch_size"] * training["accumulation"])))


def _per_token(piece: Mapping[str, Any], tokens: float, ratio: float) -> Line:
    mean = ratio * _seconds(piece) / tokens
    return Line((0.0, 0.0), (mean, mean))


def _fixed(piece: Mapping[str, Any]) -> Line:
    return Line((_seconds(piece), _seconds(piece)))


def _seconds(piece: Mapping[str, Any]) -> float:
    mean = float(piece["mean_s"])
    if not (math.isfinite(mean) and mean >= 0.0):
        raise ValueError(f"{mean} s")
    return mean
