"""A run that was stopped and resumed with new objects equals the uninterrupted one to the bit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup, stopped_and_resumed

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.point import MergePoint
from grasp_lora.errors import RunError
from grasp_lora.pipeline.adapters import train_adapter
from grasp_lora.pipeline.finalize import finalize
from grasp_lora.pipeline.search import search
from grasp_lora.training import FixedRatio, MaskSelector, TrainingLoop

# What a run must not lose: Adam's moments, the dropout stream, the best epoch, patience.
TRAINING = {"epochs": 4, "lr": 2e-2, "lr_decay": 0.7, "batch_size": 4, "accumulation": 1, "dropout": 0.2, "patience": 2}


def made(config: dict[str, Any], family: str = "llama", size: float = 0.3, **changes: Any):
    model = pico_model(family, **changes)
    adapters = [pico_adapter(model, "en", size=size), pico_adapter(model, "ar", size=size)]
    return pico_setup(model, config, train=10), adapters


def same(one: object, other: object) -> bool:
    """Equality to the bit, through dataclasses, tuples and arrays."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return one == other


@pytest.mark.parametrize("stops", [(1,), (3, 1), (5, 4)])
def test_adapter_training(stops, tmp_path):
    def stage(io):
        work, adapters = made({"train_target": TRAINING, "lora": {"r": 2}})
        trained = train_adapter(work, "target", work.config.train_target, io, adapters[0])
        return [(f.A, f.B) for f in trained.factors.modules.values()], trained.outcome

    wanted = stage(Recorder("target_adapter"))
    assert wanted[1].dev_losses
    assert same(stopped_and_resumed(stage, "target_adapter", tmp_path, stops), wanted)


@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity"])
@pytest.mark.parametrize("preset", ["default", "released"])
def test_search(preset, importance, tmp_path):
    config = {
        "search": TRAINING | {"lr": 1e-4, "patience": None},
        "controller": {"preset": preset, "interval": 1, "candidates": 4, "early_stop": False},
        "prune": {"importance": importance, "scope": "global" if importance == "sensitivity" else "per_tensor"},
    }
    rows: list[dict[str, Any]] = []

    def stage(io):
        work, adapters = made(config, size=1.0)  # so large that pruning pays
        try:
            return search(work, adapters, io)
        finally:
            rows.extend(io.rows)

    wanted = stage(Recorder("search"))
    uninterrupted = list(rows)
    assert any(row["committed"] for row in uninterrupted)
    rows.clear()
    assert same(stopped_and_resumed(stage, "search", tmp_path, (3, 4)), wanted)
    assert rows == uninterrupted


def test_a_search_stopped_in_its_last_step_still_says_why_it_ended(tmp_path):
    def stage(io):
        work, adapters = made({"search": TRAINING, "controller": {"interval": 2, "rounds": 2}})
        return search(work, adapters, io)

    wanted = stage(Recorder("search"))
    assert wanted.stop_reason == "all 2 rounds are done"
    assert wanted.outcome.steps == 4
    assert same(stopped_and_resumed(stage, "search", tmp_path, (4,)), wanted)


@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity"])
@pytest.mark.parametrize("mask", ["static", "dynamic"])
def test_final_run(mask, importance, tmp_path):
    config = {"finalize": TRAINING | {"mask": mask}, "prune": {"importance": importance}}

    def stage(io):
        work, adapters = made(config)
        final = finalize(work, adapters, 0.37, io)
        return list(final.bank.state().values()), final.density, final.flips, final.outcome

    wanted = stage(Recorder("finalize"))
    assert same(stopped_and_resumed(stage, "finalize", tmp_path, (2, 3)), wanted)


def test_a_model_with_its_own_dropout_and_checkpointing(tmp_path):
    drop = {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2}
    config = {
        "finalize": TRAINING | {"mask": "dynamic"},
        "prune": {"importance": "sensitivity"},
        "model": {"gradient_checkpointing": True},
    }

    def stage(io):
        work, adapters = made(config, "gpt2", **drop)
        final = finalize(work, adapters, 0.37, io)
        return list(final.bank.state().values()), final.flips, final.outcome

    assert same(stopped_and_resumed(stage, "finalize", tmp_path, (4,)), stage(Recorder("finalize")))


def test_a_checkpoint_is_a_snapshot_that_later_steps_leave_alone():
    work, adapters = made({"finalize": TRAINING})
    bank = work.bank(adapters)
    with Injection(work.base.model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        selector = MaskSelector(bank, injection, work.config.prune, None)

        def loop(stop_at=None):
            fixed = FixedRatio(bank, selector, MergePoint(0.3), dynamic=False)
            io = Recorder("finalize", None, stop_at)
            return TrainingLoop(
                attached, work.items("train"), work.config.finalize, seed=1, callbacks=[fixed], plumbing=io.plumbing()
            )

        first = loop()
        first.run()
        tensors, plain = first.state()
        kept = {name: value.clone() for name, value in tensors.items()}
        for other in (first, loop(), loop()):
            if other is not first:
                other.load(tensors, plain)
            other.position.epoch = 0  # train on
            other.run()
            assert all(torch.equal(tensors[name], value) for name, value in kept.items())


def test_a_checkpoint_of_another_version_is_refused():
    work, adapters = made({"finalize": TRAINING})
    bank = work.bank(adapters)
    with Injection(work.base.model, bank.modules) as injection:
        loop = TrainingLoop(work.attach(injection, bank), work.items("train"), work.config.finalize, seed=3)
        tensors, plain = loop.state()
        with pytest.raises(RunError, match="Position has momentum, so another version"):
            loop.load(tensors, plain | {"position": plain["position"] | {"momentum": 0.0}})
