"""What a training leaves behind when it ends, by itself or by Ctrl-C: nothing that acts on the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from transformers import TrainerCallback

from grasp_lora.errors import ConfigError
from grasp_lora.integrations import GraspCallback, HoldRatioCallback, MergedModel
from integrations.trainer_world import World
from pico import pico_tokenizer


class Interrupt(TrainerCallback):
    """Ctrl-C at an event of the third update."""

    def __init__(self, event: str) -> None:
        def interrupt(_args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
            if state.global_step >= 2:
                raise KeyboardInterrupt

        setattr(self, event, interrupt)


def interrupted_in_a_forward(world: World, callback: Any, folder: Path) -> MergedModel:
    """Train until Ctrl-C comes inside the forward pass of the third update."""
    merged: MergedModel = callback.merged
    passes = []

    def interrupt(module: torch.nn.Module, _args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            passes.append(module)
            if len(passes) == 3:
                raise KeyboardInterrupt

    handle = merged.causal_lm.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.trainer(merged, callback, folder).train()
    handle.remove()
    return merged


def trained_plainly(world: World, merged: MergedModel, folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Train without a callback; return the share of pruned entries that moved, and the tensors of a checkpoint."""
    world.trainer(merged, TrainerCallback(), folder, save_strategy="steps", save_steps=1, max_steps=1).train()
    moved = (merged.values.detach()[~merged.bank.kept] != 0).double().mean()
    return moved, load_file(folder / "checkpoint-1" / "model.safetensors")


def assert_plain(world: World, merged: MergedModel, folder: Path) -> None:
    """Training without a callback masks no gradient, feeds nobody and writes no state of a callback."""
    moved, saved = trained_plainly(world, merged, folder)
    assert moved > 0.5
    assert {key.partition(".")[0] for key in saved} == {"bank", "plain"}
    assert b'"session": null' in bytes(saved["plain"].tolist())


def test_generating_after_an_interrupt_inside_a_forward_pass(tmp_path):
    world = World(prune={"importance": "activation"})
    merged = interrupted_in_a_forward(world, GraspCallback((made := world.merged()), world.micro), tmp_path)
    assert merged is made
    merged.eval()
    with torch.no_grad():
        text = merged.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, pad_token_id=pico_tokenizer().pad_token_id)
    assert text.shape == (1, 5)
    assert not merged.injection.gathers


def test_a_plain_training_after_an_interrupt_inside_a_forward_pass(tmp_path):
    world = World(prune={"importance": "activation"})
    merged = interrupted_in_a_forward(world, HoldRatioCallback(world.merged(), 0.6, world.micro), tmp_path / "first")
    assert_plain(world, merged, tmp_path / "plain")
    assert not merged.injection.gathers


@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_step_end"])
def test_a_plain_training_after_an_interrupt_between_passes(event, tmp_path):
    world = World()
    merged = world.merged()
    trainer = world.trainer(merged, HoldRatioCallback(merged, 0.6), tmp_path / "first")
    trainer.add_callback(Interrupt(event))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert_plain(world, merged, tmp_path / "plain")


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_a_plain_training_after_one_that_came_to_its_end(importance, tmp_path):
    world = World(prune={"importance": importance})
    merged = world.merged()
    callback = GraspCallback(merged, world.micro)
    world.trainer(merged, callback, tmp_path / "first").train()
    answer = callback.result()
    assert_plain(world, merged, tmp_path / "plain")
    assert callback.result().p_star == answer.p_star


def test_the_base_model_is_bare_after_an_interrupt_and_detach(tmp_path):
    world = World(prune={"importance": "activation"})
    prompt = torch.tensor([[5, 6, 7]])
    bare = world.model(prompt).logits
    merged = interrupted_in_a_forward(world, GraspCallback(world.merged(), world.micro), tmp_path)
    model = merged.detach()
    assert torch.equal(model(prompt).logits, bare)
    assert not merged.injection.gathers
    assert not merged.values._backward_hooks


def test_a_loop_of_ones_own_after_an_interrupt(tmp_path):
    world = World()
    merged = interrupted_in_a_forward(world, HoldRatioCallback(world.merged(), 0.6), tmp_path)
    assert merged.companion is not None
    merged.release()
    merged(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert merged.values.grad[~merged.bank.kept].count_nonzero() > 0
    assert json.loads(bytes(merged.state_dict()["plain"].tolist()))["session"] is None


def test_a_search_after_an_interrupted_one_is_the_same_as_without(tmp_path):
    world = World(prune={"importance": "activation"})
    merged = world.merged()
    before = merged.bank.state()
    interrupted_in_a_forward(world, GraspCallback(merged, world.micro), tmp_path)
    merged.bank.load_state(before)
    again = GraspCallback(merged, world.micro)
    world.trainer(merged, again, tmp_path).train()
    fresh = World(prune={"importance": "activation"})
    straight = GraspCallback(fresh.merged(), fresh.micro)
    fresh.trainer(straight.merged, straight, tmp_path).train()
    assert again.result() == straight.result()
    assert torch.equal(merged.values, straight.merged.values)


@pytest.mark.parametrize("searching_first", [True, False])
def test_two_callbacks_in_one_training(searching_first, tmp_path):
    world = World()
    merged = world.merged()
    both = [GraspCallback(merged, world.micro), HoldRatioCallback(merged, 0.5)]
    first, second = both if searching_first else both[::-1]
    trainer = world.trainer(merged, first, tmp_path)
    trainer.add_callback(second)
    with pytest.raises(ConfigError, match="a training takes one callback of grasp_lora, got two"):
        trainer.train()
    assert merged.companion is None
    trainer.remove_callback(second)
    trainer.train()


def test_the_session_of_the_best_checkpoint_is_let_go(tmp_path):
    world = World()
    merged = world.merged()
    best = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    world.trainer(merged, GraspCallback(merged, world.micro), tmp_path, load_best_model_at_end=True, **best).train()
    assert merged.take_saved() is None


# --- gradients that others drop --------------------------------------------------------------------------------


class DropGradients(TrainerCallback):
    """`model.zero_grad()` at an event, twice, as callbacks that measure gradients of their own do."""

    def __init__(self, event: str) -> None:
        def drop(_args: Any, _state: Any, _control: Any, model: torch.nn.Module, **_kwargs: Any) -> None:
            model.zero_grad()
            model.zero_grad()

        setattr(self, event, drop)


class SaveAtStepEnd(TrainerCallback):
    """Writes a checkpoint in `on_step_end` of step 4, as callbacks that react to signals do."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if state.global_step == 4:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_epoch_end", "on_step_begin", "on_step_end"])
@pytest.mark.parametrize("first", [False, True])
def test_gradients_that_another_callback_drops_change_nothing(event, first, tmp_path):
    """They are none where it does; the norm that is clipped and the statistics show who attends the passes."""
    ends = []
    for name, others in (("without", []), ("with", [DropGradients(event)])):
        world = World(prune={"importance": "activation"})
        callback = GraspCallback(merged := world.merged(), world.micro)
        trainer = world.trainer(merged, callback, tmp_path / name, max_grad_norm=0.01, save_strategy="epoch")
        for other in others:
            handler = trainer.callback_handler.callbacks
            handler.insert(0 if first else len(handler), other)
        trainer.train()
        saved = load_file(tmp_path / name / "checkpoint-12" / "model.safetensors")
        ends.append((callback.result(), saved["bank.values"], {key for key in saved if key != "plain"}))
        assert json.loads(bytes(saved["plain"].tolist()))["session"] is not None
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


@pytest.mark.parametrize("first", [False, True])
def test_a_checkpoint_that_another_callback_writes_at_the_end_of_a_step(first, tmp_path):
    world = World()
    merged = world.merged()
    trainer = world.trainer(merged, GraspCallback(merged, world.micro), tmp_path)
    other = SaveAtStepEnd()
    other.trainer, handler = trainer, trainer.callback_handler.callbacks
    handler.insert(0 if first else len(handler), other)
    trainer.train()
    merged.detach()
    merged = (again := World()).merged()
    callback = GraspCallback(merged, again.micro)
    again.trainer(merged, callback, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.result().rounds == 6


# --- optimizers and precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"), [("adafactor", None), ("rmsprop", None), ("sgd", "momentum=0.9"), ("adagrad", None)]
)
def test_no_optimizer_remembers_pruned_entries(name, arguments, tmp_path):
    world = World(finalize={"mask": "dynamic"})
    merged = world.merged()
    trainer = world.trainer(merged, HoldRatioCallback(merged, 0.6), tmp_path, optim=name, optim_args=arguments)
    trainer.train()
    state = trainer.optimizer.state[merged.values]
    moments = [value for value in state.values() if torch.is_tensor(value) and value.shape == merged.values.shape]
    assert moments
    for moment in moments:
        assert moment[~merged.bank.kept].abs().max() < 1e-29  # Adafactor adds 1e-30 to the square of every gradient
        assert moment[merged.bank.kept].abs().max() > 1e-9


def test_sensitivity_where_a_scaler_changes_the_gradients(tmp_path):
    world = World(prune={"importance": "sensitivity"})
    merged = world.merged()
    trainer = world.trainer(merged, GraspCallback(merged, world.micro), tmp_path)
    adam = torch.optim.AdamW([merged.values])
    scaled = AcceleratedOptimizer(adam, scaler=torch.amp.GradScaler("cpu"))
    trainer.callback_handler.optimizer = scaled
    with pytest.raises(ConfigError, match=r"sensitivity needs gradients as they are, but fp16=True scales them"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert merged.bank.density() == 1.0
