"""What is merged: the adapters as they came, or the source adapter fine-tuned on the target data in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..adapters.peft_load import AdapterFactors
from .stages import Run, trained_stage

SEQUENTIAL = "rival_sequential"  # the stage is that of the rival: the same adapter, trained once


def members(run: Run, adapters: Sequence[AdapterFactors]) -> Sequence[AdapterFactors]:
    """Return what is merged of `adapters`: with `adapters.continue_source`, the first fine-tuned on the target data."""
    if not run.config.adapters.continue_source:
        return adapters
    return [sequential_adapter(run, adapters[0]), *adapters[1:]]


def sequential_adapter(run: Run, start: AdapterFactors, name: str = SEQUENTIAL) -> AdapterFactors:
    """Return the adapter `start` fine-tuned on the target's train split with the settings of `train_target`."""
    tuned = trained_stage(run, name, "target", run.config.train_target, start)
    return replace(tuned, name=start.name)
