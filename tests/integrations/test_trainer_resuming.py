"""Resuming a trainer's checkpoint: settings that make another training of it are refused, harmless ones are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from grasp_lora.errors import RunError
from grasp_lora.integrations import GraspCallback, HoldRatioCallback, MergedModel
from integrations.trainer_world import SETTINGS, World

SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}


def saved(folder: Path, world: World, make: Any, **changes: Any) -> str:
    """Train to the end and return the checkpoint at step 4."""
    merged = world.merged()
    world.trainer(merged, make(merged, world), folder, **SAVED | changes).train()
    merged.detach()
    return str(folder / "checkpoint-4")


def resume(
    checkpoint: str | bool, world: World, make: Any, folder: Path | None = None, **changes: Any
) -> tuple[Any, MergedModel]:
    """Resume in a new process's place: another model object, merge and callback."""
    merged = world.merged()
    callback = make(merged, world)
    trainer = world.trainer(merged, callback, folder or Path(checkpoint).parent, **SAVED | changes)
    trainer.train(resume_from_checkpoint=checkpoint)
    return callback, merged


def searching(merged: MergedModel, world: World) -> GraspCallback:
    return GraspCallback(merged, world.micro)


def controller(**changes: Any) -> dict[str, Any]:
    return {"controller": {**SETTINGS["controller"], **changes}}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("searched"), World(), searching)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (controller(candidates=5), "controller.candidates was 3, is 5"),
        (controller(p_max=0.5), r"controller.p_max was 0\.95, is 0\.5"),
        (controller(interval=3), "controller.interval was 2, is 3"),
        (controller(policy="ratio"), "controller.policy was ratio_strength, is ratio"),
        (controller(preset="released"), "settings: controller.preset was default, is released"),
        (controller(seed=9), "seed was 42, is 9"),
        ({"seed": 9}, "seed was 42, is 9"),
        ({"prune": {"importance": "activation"}}, "prune.importance was magnitude, is activation"),
        ({"prune": {"scope": "global"}}, "prune.scope was per_tensor, is global"),
        ({"finalize": {"adapter": "reuse"}}, "finalize.adapter was fresh, is reuse"),
    ],
)
def test_a_search_that_is_resumed_under_other_settings(settings, message, searched):
    with pytest.raises(RunError, match=rf"the checkpoint at step 4 .*{message}.*(start anew)"):
        resume(searched, World(**settings), searching)


@pytest.mark.parametrize("change", [lambda rows: rows[:3], lambda rows: rows[::-1]])
def test_a_search_that_is_resumed_with_other_micro_dev_rows(change, searched):
    with pytest.raises(RunError, match="micro_dev was 6 rows with SHA-256 .*, is . rows"):
        resume(searched, World(), lambda merged, world: GraspCallback(merged, change(world.micro)))


def test_defaults_written_out_and_more_epochs_are_no_other_settings(searched):
    same = World(**controller(p_max=0.95, seed=42, policy="ratio_strength", rounds=40))
    callback, _ = resume(searched, same, searching, num_train_epochs=2, logging_strategy="steps", logging_steps=3)
    assert callback.history[-1]["step"] == 24


def test_a_checkpoint_without_settings_is_refused(searched):
    merged = (world := World()).merged()
    trainer = world.trainer(merged, callback := searching(merged, world), Path(searched).parent)
    take = merged.take_saved

    def older() -> Any:
        tensors, plain = take()
        return tensors, {key: value for key, value in plain.items() if key != "settings"}

    merged.take_saved = older
    with pytest.raises(RunError, match="controller.preset was not recorded, is default"):
        trainer.train(resume_from_checkpoint=searched)
    assert callback.history == []


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_a_search_that_had_ended_keeps_its_answer_and_its_adapters(importance, accumulated, tmp_path):
    """Although a trainer makes one more update, or begins one, before it stops."""
    settings = {**controller(rounds=2, interval=1), "prune": {"importance": importance}}
    changes = {"gradient_accumulation_steps": accumulated, "save_steps": 1}
    world = World(**settings)
    first = GraspCallback(merged := world.merged(), world.micro)
    world.trainer(merged, first, tmp_path, **SAVED | changes).train()
    answer, bank = first.result(), merged.bank.state()
    assert answer.stop_reason == "all 2 rounds are done"
    checkpoint: Any = str(tmp_path / "checkpoint-2")
    for rounds in (2, 1):
        settings["controller"]["rounds"] = rounds
        callback, again = resume(checkpoint, World(**settings), searching, tmp_path, **changes)
        assert callback.result() == answer
        assert callback.history == first.history
        assert all(torch.equal(value, bank[name]) for name, value in again.bank.state().items())
        checkpoint = True  # the last one, which the training that was resumed has written


def test_more_rounds_than_are_done_let_a_search_go_on(tmp_path):
    world = World(**controller(rounds=2))
    merged = world.merged()
    world.trainer(merged, searching(merged, world), tmp_path, **SAVED).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    callback, _ = resume(checkpoint, World(**controller(rounds=3)), searching)
    assert (callback.result().rounds, callback.result().stop_reason) == (3, "all 3 rounds are done")
    callback, _ = resume(checkpoint, World(**controller(rounds=3)), searching, max_steps=5)
    assert (callback.result().rounds, callback.result().stop_reason) == (2, None)


@pytest.mark.parametrize("held", [False, True])
def test_the_steps_count_where_a_search_keeps_its_adapter_until_the_answer_is_held(held, tmp_path):
    """At the latest half of the steps end such a search: 6 of 12, or 2 of 5, before the checkpoint at step 4."""
    world = World(finalize={"adapter": "reuse"})
    checkpoint = saved(tmp_path, world, searching, max_steps=5 if held else 12)
    again = World(finalize={"adapter": "reuse"})
    if held:
        callback, merged = resume(checkpoint, again, searching, max_steps=8)
        assert merged.bank.density() == pytest.approx(1 - callback.result().p_star, abs=0.01)
        return
    with pytest.raises(RunError, match="half of the training's steps was 6, is 5"):
        resume(checkpoint, again, searching, max_steps=10)


def held_at(where: Any, micro: slice | None = None) -> Any:
    return lambda merged, world: HoldRatioCallback(merged, where, None if micro is None else world.micro[micro])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (held_at(0.2), {}, r"settings: ratio was 0\.7, is 0\.2\. "),
        (held_at(0.7), {"finalize": {"mask": "dynamic"}}, "finalize.mask was static, is dynamic"),
        (held_at(0.7), {"prune": {"scope": "global"}}, "prune.scope was per_tensor, is global"),
    ],
)
def test_a_ratio_that_is_held_and_resumed_under_other_settings(make, settings, message, tmp_path):
    checkpoint = saved(tmp_path, World(), held_at(0.7))
    with pytest.raises(RunError, match=message):
        resume(checkpoint, World(**settings), make)


def test_micro_dev_rows_of_a_held_ratio_count_where_the_importance_looks_at_them(tmp_path):
    checkpoint = saved(tmp_path / "magnitude", World(), held_at(0.7))
    _, merged = resume(checkpoint, World(), held_at(0.7, slice(3)))
    assert merged.bank.density() == pytest.approx(0.3, abs=0.01)
    activation = {"prune": {"importance": "activation"}}
    checkpoint = saved(tmp_path / "activation", World(**activation), held_at(0.7, slice(6)))
    with pytest.raises(RunError, match="micro_dev was 6 rows .* is 3 rows"):
        resume(checkpoint, World(**activation), held_at(0.7, slice(3)))


def test_the_order_of_the_adapters_is_part_of_a_checkpoint(searched):
    """Their weights, and their places in the flat parameter, go by it."""
    world = World()
    world.adapters.reverse()
    with pytest.raises(RunError, match="adapter 1 was en with SHA-256 .*, is ar with .*; adapter 2 was ar with"):
        resume(searched, world, searching)


def test_defaults_of_the_merge_written_out_are_no_other_settings(searched):
    callback, _ = resume(searched, World(merge={"weights": [1.0, 1.0], "strength": 1.0}), searching)
    assert callback.history[-1]["step"] == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [0.5, 1.0]}, r"merge\.weights was \[1\.0, 1\.0\], is \[0\.5, 1\.0\]"),
        (
            {"scaling": "ignore", "strength": 0.5},
            r"merge.scaling was fold, is ignore; merge\.strength was 1\.0, is 0\.5",
        ),
    ],
)
def test_another_merge_is_refused_with_what_differs_alone(settings, message, searched):
    with pytest.raises(RunError, match=f"^the checkpoint is of a training with other settings: {message}\\. Resume"):
        resume(searched, World(merge=settings), searching)


def test_a_refused_checkpoint_leaves_nothing_at_work(searched):
    world = World(seed=9)
    merged = world.merged()
    trainer = world.trainer(merged, searching(merged, world), Path(searched).parent)
    with pytest.raises(RunError):
        trainer.train(resume_from_checkpoint=searched)
    assert merged.companion is None
    merged(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert merged.values.grad.count_nonzero() > 0
