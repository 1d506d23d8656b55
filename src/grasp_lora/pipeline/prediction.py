"""How long a run would take, before it does it: the plan's passes at what passes cost on this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from ..config import Config
from ..errors import AdapterError, ConfigError, ModelError, TrainingError, first_line
from .bench.calibrate import Typical, calibrate
from .bench.recorded import recorded_costs
from .costs import CostModel, Prediction
from .plan import Plan, make_plan


def predicted_plan(config: Config, record: str | Path | None = None) -> Plan:
    """Return the plan of `run` with the seconds it would take.

    What passes cost is measured now, in seconds, on layers with random weights, or taken from a record of `bench` on a
    machine like the one that will run. A measurement that fails leaves the plan, and says why. Raises what `make_plan`
    raises, and `RunError` for a record that is none.
    """
    plan = make_plan(config)
    start = time.perf_counter()
    try:
        costs = _costs(config, plan) if record is None else recorded_costs(config, Path(record))
    except (AdapterError, ConfigError, ModelError, TrainingError, torch.OutOfMemoryError) as error:
        return replace(plan, prediction=Prediction("", {}, (0.0, 0.0), time.perf_counter() - start, _why(error)))
    reasons = {stage.name: costs.why_not(stage.loads) for stage in plan.stages}
    stages = {stage.name: costs.seconds(stage.loads) for stage in plan.stages if reasons[stage.name] is None}
    total = sum(low for low, _ in stages.values()), sum(high for _, high in stages.values())
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason is not None)
    return replace(plan, prediction=Prediction(costs.source, stages, total, time.perf_counter() - start, why or None))


def _why(error: Exception) -> str:
    """Return what went wrong in a line; a training's advice is for a run, which has checkpoints to go on from."""
    if isinstance(error, TrainingError) and isinstance(error.__context__, torch.OutOfMemoryError):
        error = error.__context__
    first = first_line(error)
    return first.partition(". ")[0] if isinstance(error, TrainingError) else first


def _costs(config: Config, plan: Plan) -> CostModel:
    if config.model.quantization != "none":
        raise ModelError("Quantized weights are not made at random. Give a record of `bench` to predict seconds.")
    return calibrate(config, _typical(plan))


def _typical(plan: Plan) -> Typical:
    # Examples of the target where some are trained on; a search may train on none.
    trained = [stage for stage in plan.stages if stage.trained and stage.name != "source_adapter"]
    decoded = [load for stage in plan.stages for load in stage.loads if load.kind == "decode" and load.passes]
    answers = max((load.tokens // load.passes for load in decoded), default=1)
    tokens = sum(load.tokens for stage in trained for load in stage.loads if load.kind == "train")
    return Typical(max(1, tokens // max(1, sum(stage.trained for stage in trained))), max(1, answers))
