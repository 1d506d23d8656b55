"""The loop itself: what an update is, epochs, the best one, and what stops it."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.inject import Injection
from grasp_lora.data import collate, epoch_order
from grasp_lora.errors import Interrupted, RunError, TrainingError
from grasp_lora.pipeline.adapters import train_adapter
from grasp_lora.probing import example_losses
from grasp_lora.probing.joined import joins
from grasp_lora.runs import load_checkpoint
from grasp_lora.training import Plumbing, TrainingLoop
from grasp_lora.training.state import Position


def parts(dtype=torch.float64, train=5, **training):
    model = pico_model("llama", dtype)
    work = pico_setup(model, {"train_target": {"epochs": 2, "lr": 1e-2, "batch_size": 2, **training}}, train=train)
    return work, work.bank([pico_adapter(model, "en")])


def run(work, bank, plumbing=None, dev=False):
    with Injection(work.base.model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        judge = work.evaluator(attached, "dev") if dev else None
        loop = TrainingLoop(
            attached, work.items("train"), work.config.train_target, seed=3, dev=judge, plumbing=plumbing or Plumbing()
        )
        return loop.run()


def test_updates_are_those_of_adamw_written_out():
    work, bank = parts(accumulation=2, lr_decay=0.5, weight_decay=0.1, max_grad_norm=0.7)
    other = parts()[1]
    outcome = run(work, bank)
    assert (outcome.steps, outcome.epochs, outcome.stopped_early) == (4, 2, False)
    items, losses = work.items("train"), []
    optimizer = torch.optim.AdamW([other.values], lr=1.0, weight_decay=0.1)
    with Injection(work.base.model, other.modules) as injection:
        for epoch in range(2):
            order, sums = epoch_order(5, 3, epoch), 0.0
            for chosen in (order[:4], order[4:]):
                optimizer.zero_grad()
                with injection.active(other.merged()):
                    loss = example_losses(work.base.model, collate([items[i] for i in chosen], 0)).mean()
                loss.backward()
                norm = other.values.grad.norm()
                other.values.grad.mul_(min(1.0, 0.7 / (float(norm) + 1e-6)))
                optimizer.param_groups[0]["lr"] = 1e-2 * 0.5**epoch
                optimizer.step()
                sums += loss.item() * len(chosen)
            losses.append(sums / 5)
    torch.testing.assert_close(bank.values, other.values, rtol=0, atol=1e-10)
    assert outcome.train_losses == pytest.approx(losses, abs=1e-10)


def test_every_step_draws_its_own_dropout():
    """With one example and values that cannot move, only the dropout tells one step from the next."""
    losses = {}
    for dropout in (0.0, 0.5):
        work, bank = parts(train=1, lr=1e-300, epochs=4, dropout=dropout)
        losses[dropout] = {round(loss, 12) for loss in run(work, bank).train_losses}
    assert len(losses[0.0]) == 1
    assert len(losses[0.5]) == 4


def test_costs_count_every_token_once_forward_and_backward():
    work, bank = parts()
    outcome = run(work, bank, dev=True)
    assert outcome.trained_tokens == 2 * sum(len(item.input_ids) for item in work.items("train"))
    assert outcome.dev_tokens == 2 * sum(len(item.input_ids) for item in work.items("dev"))


def test_every_step_and_epoch_is_logged_as_it_happened():
    seen = []
    work, bank = parts()
    outcome = run(work, bank, Plumbing(log=lambda kind, values: seen.append((kind, values))), dev=True)
    steps = [values for kind, values in seen if kind == "step"]
    epochs = [values for kind, values in seen if kind == "epoch"]
    assert [values["step"] for values in steps] == list(range(1, outcome.steps + 1))
    assert [values["dev_loss"] for values in epochs] == list(outcome.dev_losses)
    assert [values["train_loss"] for values in epochs] == list(outcome.train_losses)


def test_the_best_epoch_is_left_in_the_bank_and_patience_counts_from_it():
    work, bank = parts(epochs=8, lr=0.3, patience=2)
    outcome = run(work, bank, dev=True)
    best = min(range(len(outcome.dev_losses)), key=outcome.dev_losses.__getitem__)
    assert outcome.best_epoch == best
    assert outcome.stopped_early
    assert len(outcome.dev_losses) == best + 3 < 8
    with Injection(work.base.model, bank.modules) as injection:
        again = float(work.evaluator(work.attach(injection, bank), "dev").losses().mean())
    assert again == outcome.dev_losses[best]


def poison(work, calls: int) -> None:
    """Make the model's logits NaN from its forward number `calls` on."""
    joins(work.base.model, 1)  # tried out before, in passes that do not count
    seen = []

    def hook(_module, _args, output):
        seen.append(1)
        return output * float("nan") if len(seen) >= calls else None

    work.base.model.lm_head.register_forward_hook(hook)


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(tmp_path):
    work, _ = parts(lr_decay=0.5)
    poison(work, 5)  # three passes of the first epoch, one of dev, then the first of the second
    io = Recorder("target_adapter", tmp_path, every=1)
    with pytest.raises(TrainingError, match=r"loss became nan at step 4 of target_adapter.*\(now 0.005\)"):
        train_adapter(work, "target", work.config.train_target, io, None)
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint.tensors.values())
    assert not work.base.model.training


def test_a_dev_loss_that_is_not_finite_stops_the_run():
    work, bank = parts()
    poison(work, 4)
    with pytest.raises(TrainingError, match=r"dev loss became nan at step 3 of training"):
        run(work, bank, dev=True)


def test_values_that_are_not_finite_are_never_returned_or_saved(monkeypatch):
    saved = []
    monkeypatch.setattr(TrainingLoop, "_rate", lambda _loop: float("nan"))
    for plumbing in (Plumbing(), Plumbing(save=lambda *state: saved.append(state), checkpoint_every=1)):
        work, bank = parts(epochs=1, batch_size=5)
        with pytest.raises(TrainingError, match="stopped being finite by step 1"):
            run(work, bank, plumbing)
    assert saved == []


def test_stopping_saves_first_and_says_how_to_go_on():
    saved = []
    work, bank = parts()
    plumbing = Plumbing(name="final", save=lambda *state: saved.append(state), poll=lambda: True)
    with pytest.raises(Interrupted, match=r"stopped after step 1 of final.*--resume"):
        run(work, bank, plumbing)
    assert len(saved) == 1
    assert saved[0][1]["position"]["step"] == 1


@pytest.mark.parametrize("when", ["start", "after_step"])
def test_running_out_of_memory_says_what_to_lower(when):
    class Hungry:
        def __getattr__(self, name):
            def hook(*_args):
                if name == when:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return False

            return hook

    work, bank = parts()
    with Injection(work.base.model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        loop = TrainingLoop(attached, work.items("train"), work.config.train_target, seed=1, callbacks=[Hungry()])
        with pytest.raises(TrainingError, match=r"out of GPU memory at step \d.*batch_size.*gradient_checkpointing"):
            loop.run()


def test_the_model_is_left_as_it_came():
    work, bank = parts()
    before = {name: value.clone() for name, value in work.base.model.state_dict().items()}
    run(work, bank)
    assert not any(module.training for module in work.base.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in work.base.model.state_dict().items())
    assert all(parameter.grad is None for parameter in work.base.model.parameters())


def test_modules_that_do_not_train_come_back_as_they_were():
    work, bank = parts()
    model = work.base.model.train()
    model.model.embed_tokens.eval()
    before = [module.training for module in model.modules()]
    run(work, bank, dev=True)
    assert [module.training for module in model.modules()] == before
    model.eval()


class Watching:
    """A callback that is told of `stop` and `fail` by step, and of nothing else."""

    def __init__(self, stop: int = 0, fail: int = 0) -> None:
        self.stop, self.fail = stop, fail

    def start(self) -> None:
        pass

    def attach(self, optimizer) -> None:
        pass

    def after_backward(self) -> None:
        pass

    def after_step(self, step, loss) -> bool:
        if step == self.fail:
            raise TrainingError("what came of it")
        return step == self.stop

    def state(self):
        return {}, {}

    def load_state(self, tensors, plain) -> None:
        pass


def watched(callback, poisoned: int = 0, plumbing=None):
    """Run with losses that are read every 50 steps, as on a GPU every 10."""
    work, bank = parts(epochs=4)
    if poisoned:
        poison(work, poisoned)
    with Injection(work.base.model, bank.modules) as injection:
        loop = TrainingLoop(
            work.attach(injection, bank), work.items("train"), work.config.train_target, seed=3, callbacks=[callback],
            plumbing=plumbing or Plumbing(),
        )  # fmt: skip
        loop._read_every = 50
        return loop.run()


def test_a_run_that_a_callback_stops_has_told_of_every_step():
    told = []
    plumbing = Plumbing(log=lambda kind, values: told.append(values["step"]) if kind == "step" else None)
    assert watched(Watching(stop=8), plumbing=plumbing).steps == 8
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(TrainingError, match="the loss became nan at step 8 of training"):
        watched(Watching(stop=8), poisoned=8)


def test_a_loss_that_was_no_number_explains_what_came_of_it():
    with pytest.raises(TrainingError, match="the loss became nan at step 4 of training"):
        watched(Watching(fail=5), poisoned=4)
    with pytest.raises(TrainingError, match="what came of it"):
        watched(Watching(fail=5))


@pytest.mark.parametrize("name", ["step", "epoch", "loss_sum", "start_dev_loss"])
def test_a_checkpoint_that_lacks_where_it_stands_is_refused(name):
    saved = []
    work, bank = parts()
    plumbing = Plumbing(save=lambda *state: saved.append(state), poll=lambda: True)
    with pytest.raises(Interrupted):
        run(work, bank, plumbing)
    tensors, plain = saved[0]
    del plain["position"][name]
    with Injection(work.base.model, bank.modules) as injection:
        loop = TrainingLoop(work.attach(injection, bank), work.items("train"), work.config.train_target, seed=3)
        with pytest.raises(RunError, match=f"Position lacks {name}"):
            loop.load(tensors, plain)
        with pytest.raises(RunError, match="1 callback"):
            loop.load(tensors, {**saved[0][1], "position": asdict(Position()), "callbacks": [{}]})
