"""What goes into a merge, and what a final run left: by which content later stages know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..adapters.peft_load import AdapterFactors
from ..baselines import SEQUENTIAL
from ..runs import hash_file
from .stages import BANK, Run, trained_stage


def members(run: Run, adapters: Sequence[AdapterFactors]) -> Sequence[AdapterFactors]:
    """Return what is merged of `adapters`: with `adapters.continue_source`, the first fine-tuned on the target data."""
    if not run.config.adapters.continue_source:
        return adapters
    source, *rest = adapters
    tuned = trained_stage(run, SEQUENTIAL, "target", run.config.train_target, source)  # the rival's stage: trained once
    return [replace(tuned, name=source.name), *rest]


def final_content(run: Run) -> dict[str, str]:
    """Return the hash of the final run's factors, masks included."""
    return {"final": hash_file(run.folder.stage("finalize").path / BANK)}
