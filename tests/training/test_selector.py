"""The selector: which passes feed the importance, from which selection on."""

from __future__ import annotations

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.importance import activation, magnitude
from grasp_lora.adapters.inject import ChannelNorms, Injection
from grasp_lora.adapters.masks import rank
from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import PruneConfig
from grasp_lora.data import collate
from grasp_lora.errors import TrainingError
from grasp_lora.probing import example_losses
from grasp_lora.training import FixedRatio, MaskSelector, TrainingLoop


@pytest.fixture
def parts():
    model = pico_model("llama", torch.float64)
    work = pico_setup(model, {"finalize": {"epochs": 1, "batch_size": 4, "accumulation": 1}})
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    with Injection(model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        yield work, bank, attached, work.evaluator(attached, "micro_dev")


def selector(parts, importance, scope="per_tensor"):
    _, bank, attached, probe = parts
    return MaskSelector(bank, attached.injection, PruneConfig(importance=importance, scope=scope), probe)


def train_pass(parts, chosen, count=4, start=0):
    """A training forward and backward that feeds the selector; returns its norms, gathered on their own."""
    work, bank, attached, _ = parts
    norms = ChannelNorms()
    batch = collate(work.items("train")[start : start + count], 0)
    with attached.injection.active(bank.merged()):
        with attached.injection.gathering(norms, batch.attention_mask):
            example_losses(attached.model, batch)
        with chosen.gathering(batch.attention_mask):
            loss = example_losses(attached.model, batch)
        loss.sum().backward()
    chosen.after_backward()
    return norms


@pytest.mark.parametrize("scope", ["per_tensor", "global"])
def test_magnitude_ranks_the_values_as_they_are(parts, scope):
    bank = parts[1]
    wanted = rank(magnitude(bank), bank.segments(scope))
    assert torch.equal(selector(parts, "magnitude", scope).ranking().ranks, wanted.ranks)


def test_activation_takes_the_micro_dev_pass_first_and_training_passes_afterwards(parts):
    _, bank, _, probe = parts
    chosen = selector(parts, "activation")
    train_pass(parts, chosen)  # before the first selection: does not count
    first = ChannelNorms()
    probe.losses(norms=first)
    assert torch.equal(chosen.ranking().ranks, rank(activation(bank, first.norms()), bank.segments("per_tensor")).ranks)
    one, two = train_pass(parts, chosen), train_pass(parts, chosen, 3, 6)
    probe.losses()  # probing feeds nothing
    both = {name: (one.squares[name] + two.squares[name]).sqrt() for name in one.squares}
    wanted = rank(activation(bank, both), bank.segments("per_tensor"))
    assert torch.equal(chosen.ranking().ranks, wanted.ranks)
    later = train_pass(parts, chosen, 2, 9)  # since the selection before, nothing older
    assert torch.equal(chosen.ranking().ranks, rank(activation(bank, later.norms()), bank.segments("per_tensor")).ranks)


def test_sensitivity_starts_from_the_micro_dev_gradient_and_leaves_none_behind(parts):
    _, bank, _, probe = parts
    chosen = selector(parts, "sensitivity")
    found = chosen.ranking()
    assert bank.values.grad is None
    probe.accumulate_gradient()
    product = (bank.dense() * bank.values.grad).abs()
    # One observation: mean 0.15 |wg|, deviation 0.15 x 0.85 |wg|.
    assert torch.equal(found.ranks, rank((0.15 * product) * (0.15 * 0.85 * product), bank.segments("per_tensor")).ranks)


def test_other_rules_need_micro_dev_examples(parts):
    _, bank, attached, _ = parts
    for importance in ("activation", "sensitivity"):
        with pytest.raises(ValueError, match=f"{importance} needs an evaluator"):
            MaskSelector(bank, attached.injection, PruneConfig(importance=importance), None)
    assert MaskSelector(bank, attached.injection, PruneConfig(), None).ranking().sizes == bank.segments("per_tensor")


def test_importance_that_is_not_finite_is_an_error_of_the_run(parts):
    bank = parts[1]
    with torch.no_grad():
        bank.values[3] = float("nan")
    with pytest.raises(TrainingError, match="magnitude gave values that are not finite"):
        selector(parts, "magnitude").ranking()


@pytest.mark.parametrize("importance", ["activation", "sensitivity"])
def test_gradients_of_pruned_entries_feed_the_statistics_but_not_the_optimizer(parts, importance):
    work, bank, attached, _ = parts
    chosen = selector(parts, importance)
    seen = []
    fixed = FixedRatio(bank, chosen, MergePoint(0.5), dynamic=False)
    original = fixed.after_backward

    def watched():
        before = bank.values.grad.clone()
        original()
        seen.append((before, bank.values.grad.clone(), bank.kept.clone()))

    fixed.after_backward = watched
    loop = TrainingLoop(
        attached, work.items("train"), work.config.finalize, seed=1, callbacks=[fixed], selector=chosen,
        plumbing=Recorder("finalize").plumbing(),
    )  # fmt: skip
    loop.run()
    assert len(seen) == 3
    for before, after, kept in seen:
        assert bool((before[~kept] != 0).any())
        assert not bool(after[~kept].any())
        assert torch.equal(after[kept], before[kept])
    moments = loop.optimizer.state[bank.values]
    assert not bool(moments["exp_avg"][~bank.kept].any() or moments["exp_avg_sq"][~bank.kept].any())
    assert not bool(bank.values[~bank.kept].any())


def test_a_look_that_waits_for_the_device_can_be_left_for_later(parts):
    """Between two looks at the losses nothing is looked at; the next look, or the flips, tell of what was no number."""
    _, bank, _, _ = parts
    chosen = selector(parts, "magnitude")
    callback = FixedRatio(bank, chosen, MergePoint(0.5), dynamic=True)
    callback.start()
    assert callback.after_step(1, torch.tensor(2.0)) is False
    assert callback.flips == [0.0]
    with torch.no_grad():
        bank.values[bank.kept.nonzero()[0]] = torch.nan
    callback.after_step(2, torch.tensor(2.0))
    for _ in range(2):  # it is not forgotten for having been told
        with pytest.raises(TrainingError, match="not finite"):
            _ = callback.flips
    with pytest.raises(TrainingError, match="not finite"):
        callback.after_step(3, 2.0)


def test_loading_forgets_updates_that_nobody_has_looked_at(parts):
    _, bank, _, _ = parts
    callback = FixedRatio(bank, selector(parts, "magnitude"), MergePoint(0.5), dynamic=True)
    callback.start()
    values, state = bank.state(), callback.state()
    with torch.no_grad():
        bank.values[bank.kept.nonzero()[0]] = torch.nan
    callback.after_step(1, torch.tensor(2.0))
    bank.load_state(values)
    callback.load_state(*state)
    assert callback.flips == []
