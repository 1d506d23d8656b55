"""What goes into a merge, and what a final run left: by which content later stages know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..adapters.peft_load import AdapterFactors
from ..runs import hash_file
from .stages import BANK, Run, trained_stage

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


def final_content(run: Run) -> dict[str, str]:
    """Return the hash of the final run's factors, masks included."""
    return {"final": hash_file(run.folder.stage("finalize").path / BANK)}
