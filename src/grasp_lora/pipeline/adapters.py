"""Adapters in: load what the user has, train what is missing, with the same loop as every other stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..adapters.bank import AdapterBank
from ..adapters.discover import resolve_target_modules
from ..adapters.inject import Injection
from ..adapters.peft_load import AdapterFactors, Factor, load_adapter
from ..baselines import ALONE
from ..config import LoraConfig, TrainingConfig
from ..rng import torch_generator
from ..training import Outcome, TrainingLoop
from ..training.setup import Setup
from .stageio import StageIO


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter trained here and how its training went."""

    factors: AdapterFactors
    outcome: Outcome


def new_adapter(setup: Setup, name: str, lora: LoraConfig, seed: int) -> AdapterFactors:
    """Return a fresh adapter as PEFT starts one: A uniform in +-1/sqrt(d_in) (Kaiming, a = sqrt 5), B zero."""
    modules = resolve_target_modules(setup.base.model, lora.target_modules)
    scaling = lora.alpha / (math.sqrt(lora.r) if lora.rslora else lora.r)
    factors = {}
    for module in sorted(modules):
        d_out, d_in = setup.base.shapes[module]
        draw = torch.rand(lora.r, d_in, generator=torch_generator(seed, "lora", name, module))
        factors[module] = Factor((2 * draw - 1) / math.sqrt(d_in), torch.zeros(d_out, lora.r), scaling)
    return AdapterFactors(name=name, origin="trained here", sha256="", modules=factors)


def train_adapter(
    setup: Setup, role: str, training: TrainingConfig, io: StageIO, start: AdapterFactors | None = None
) -> TrainedAdapter:
    """Train one adapter on a language's train split; the best epoch by dev loss is kept where dev data is given.

    `role` is `source` or `target`. With `start`, training goes on from that adapter (sequential fine-tuning) and keeps
    its ranks and scalings; otherwise a fresh one of shape `lora` is made.
    """
    seed = setup.config.seed
    name = io.name
    begin = start or new_adapter(setup, role, setup.config.lora, seed)
    double = next(setup.base.model.parameters()).dtype == torch.float64
    bank = AdapterBank([begin], ALONE, torch.float64 if double else torch.float32).to(setup.base.device)
    with Injection(setup.base.model, bank.modules) as injection:
        attached, dev = setup.attach(injection, bank), None
        if setup.has("dev", role):
            dev = setup.evaluator(attached, "dev", role=role, batch_size=training.eval_batch_size)
        items = setup.items("train", role)
        loop = TrainingLoop(attached, items, training, seed=seed, dev=dev, plumbing=io.plumbing())
        with io.running(loop, training.epochs * loop.updates_per_epoch):
            outcome = loop.run()
    return TrainedAdapter(_factors(bank, begin, name), outcome)


def _factors(bank: AdapterBank, begin: AdapterFactors, name: str) -> AdapterFactors:
    tensors = bank.tensors()
    modules = {
        module: Factor(tensors[f"{module}.0.A"], tensors[f"{module}.0.B"], factor.scaling)
        for module, factor in begin.modules.items()
    }
    return AdapterFactors(name=name, origin="trained here", sha256="", modules=modules)


def read_adapter(setup: Setup, source: str, name: str) -> AdapterFactors:
    """Load a PEFT folder or hub id after a preflight against the base model's shapes; raises `AdapterError`."""
    base = setup.base
    return load_adapter(
        source, base.shapes, name=name, base_id=base.name, base_revision=base.revision, head=base.head,
        allow_other_base=setup.config.adapters.allow_other_base,
    )  # fmt: skip
