"""The evaluator: the same losses in any batches, nothing changed by it, costs counted."""

from __future__ import annotations

import pytest
import torch
from tests.pico import pico_adapter, pico_model, pico_setup, undrawn

from grasp_lora.adapters.inject import ChannelNorms, Injection
from grasp_lora.adapters.masks import rank
from grasp_lora.probing import Evaluator, evaluator


@pytest.fixture
def parts():
    model = pico_model("llama", torch.float64)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    with Injection(model, bank.modules) as injection:
        yield work, bank, work.attach(injection, bank)


def masks(bank, *ratios):
    ranking = rank(bank.dense().abs(), bank.segments("global"))
    return [ranking.kept(p) for p in ratios]


def test_losses_do_not_depend_on_batches_or_budget(parts):
    work, bank, attached = parts
    items = work.items("micro_dev")
    whole = Evaluator(attached, items)
    wanted, many = whole.losses(), whole.candidate_losses(masks(bank, 0.2, 0.8))
    assert wanted.dtype == torch.float64
    assert many.shape == (2, 6)
    for batch_size, budget in ((1, 65536), (4, 65536), (16, 1), (16, 120)):
        other = Evaluator(attached, items, batch_size=batch_size, token_budget=budget)
        torch.testing.assert_close(other.losses(), wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.candidate_losses(masks(bank, 0.2, 0.8)), many, rtol=0, atol=1e-10)


def test_losses_stand_in_the_order_of_the_examples(parts):
    work, _, attached = parts
    items = work.items("micro_dev")
    wanted = Evaluator(attached, items).losses()
    backwards = Evaluator(attached, items[::-1]).losses()
    torch.testing.assert_close(backwards.flip(0), wanted, rtol=0, atol=1e-10)


def test_probing_changes_nothing(parts):
    work, bank, attached = parts
    bank.commit(masks(bank, 0.4)[0])
    attached.model.train()
    before = {name: value.clone() for name, value in bank.state().items()}
    weights = {name: value.clone() for name, value in attached.model.state_dict().items()}
    probe = work.evaluator(attached, "micro_dev")
    with undrawn():
        probe.candidate_losses(masks(bank, 0.1, 0.9))
        probe.losses(norms=ChannelNorms())
        probe.accumulate_gradient()
    assert all(torch.equal(value, before[name]) for name, value in bank.state().items())
    assert all(torch.equal(value, weights[name]) for name, value in attached.model.state_dict().items())
    assert all(module.training for module in attached.model.modules())


def test_revived_entries_are_probed_at_their_stashed_value(parts):
    work, bank, attached = parts
    probe = work.evaluator(attached, "micro_dev")
    whole = probe.losses()
    bank.commit(masks(bank, 0.7)[0])
    assert (probe.losses() - whole).abs().max() > 1e-3
    everything = torch.ones_like(bank.kept)
    torch.testing.assert_close(probe.candidate_losses([everything])[0], whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_mean_loss_whatever_mode_the_model_is_in(checkpointing):
    model = pico_model("gpt2", torch.float64, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    work = pico_setup(model, {"model": {"gradient_checkpointing": checkpointing}})
    bank = work.bank([pico_adapter(model, "en")])
    layers = []
    handle = model.transformer.h[0].register_forward_hook(lambda module, *_: layers.append(module.training))
    with Injection(model, bank.modules) as injection:
        probe = work.evaluator(work.attach(injection, bank), "micro_dev", batch_size=2)
        model.train()
        probe.accumulate_gradient()
        gradient, step, mean = bank.values.grad.clone(), 1e-6, []
        direction = torch.linspace(-1, 1, len(gradient), dtype=torch.float64)
        for sign in (1, -1):
            with torch.no_grad():
                bank.values.add_(sign * step * direction)
                mean.append(float(probe.losses().mean()))
                bank.values.sub_(sign * step * direction)
    handle.remove()
    assert float(gradient @ direction) == pytest.approx((mean[0] - mean[1]) / (2 * step), rel=1e-6)
    assert layers[0] is checkpointing


def test_costs_are_tokens_without_padding(parts):
    work, bank, attached = parts
    tokens = sum(len(item.input_ids) for item in work.items("micro_dev"))
    probe = work.evaluator(attached, "micro_dev", batch_size=4)
    probe.losses()
    assert probe.token_passes == tokens
    probe.candidate_losses(masks(bank, 0.1, 0.2, 0.3))
    assert probe.token_passes == 4 * tokens


def test_every_kind_of_pass_is_measured_as_it_runs(parts, monkeypatch):
    """Each gets a budget of its own, from passes of its own kind that leave nothing behind."""
    work, bank, attached = parts
    budgets, ran = {"bare": 1000, "merged": 900, "gathering": 800, "candidates": 700, "gradient": 60}, []

    def note(*_):
        site, gathers = attached.injection._sites[0], attached.injection.gathers
        ran.append((torch.is_grad_enabled(), site.a is not None, site.groups, gathers))

    def fitting(self, run, count):
        run(self._batch([0], count))
        return list(budgets.values())[len(probe._budgets)]

    attached.model.register_forward_pre_hook(note)
    monkeypatch.setattr(Evaluator, "_fitting", fitting)
    probe, norms, three = work.evaluator(attached, "micro_dev"), ChannelNorms(), masks(bank, 0.1, 0.2, 0.3)
    kinds = [
        (probe.bare_losses, (False, False, None, False)),
        (probe.losses, (False, True, None, False)),
        (lambda: probe.losses(norms=norms), (False, True, None, True)),
        (lambda: probe.candidate_losses(three), (False, True, 2, False)),
        (probe.accumulate_gradient, (True, True, None, False)),
    ]
    for call, wanted in kinds:
        ran.clear()
        call()
        assert ran[0] == wanted
    gradient, passes = bank.values.grad.clone(), len(ran) - 1  # the first was measured
    assert passes > 1  # since they hold few tokens
    for call, _ in kinds:  # nothing is measured anew
        ran.clear()
        call()
    assert probe._budgets == budgets
    assert len(ran) == passes
    torch.testing.assert_close(bank.values.grad, 2 * gradient)
    assert norms.tokens == 2 * sum(len(item.input_ids) for item in work.items("micro_dev"))


def test_rounds_go_on_in_smaller_passes_where_memory_has_less_room_than_was_measured(parts, monkeypatch):
    work, bank, attached = parts
    probe, three = work.evaluator(attached, "micro_dev"), masks(bank, 0.1, 0.2, 0.3)
    wanted, sizes, losses = probe.candidate_losses(three), [], Evaluator._losses
    cost, longest = probe.token_passes, max(len(item.input_ids) for item in work.items("micro_dev"))

    def full(self, batch, count):
        sizes.append(batch.input_ids.numel())
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("full")
        return losses(self, batch, count)

    monkeypatch.setattr(Evaluator, "_losses", full)
    room = 2 * 3 * longest
    torch.testing.assert_close(probe.candidate_losses(three), wanted, rtol=0, atol=1e-10)
    assert max(sizes) > room
    assert probe.token_passes == 2 * cost
    sizes.clear()
    probe.candidate_losses(three)
    assert max(sizes) <= room  # it is remembered
    room = 3 * longest - 1
    with pytest.raises(torch.OutOfMemoryError):
        probe.candidate_losses(three)
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        probe.losses(norms=ChannelNorms())


def test_norms_and_gradients_are_gathered_anew_where_a_pass_did_not_fit(parts, monkeypatch):
    work, bank, attached = parts
    wanted, plain = ChannelNorms(), work.evaluator(attached, "micro_dev")
    plain.losses(norms=wanted)
    plain.accumulate_gradient()
    gradient, losses, done = bank.values.grad.clone(), Evaluator._losses, []
    probe = work.evaluator(attached, "micro_dev")

    def full(self, batch, count):
        done.append(batch.input_ids.numel())
        found = losses(self, batch, count)
        if len(done) == 1:
            raise torch.OutOfMemoryError("full")
        return found

    monkeypatch.setattr(Evaluator, "_losses", full)
    norms = ChannelNorms()
    probe.losses(norms=norms)
    assert len(done) > 2
    assert norms.tokens == wanted.tokens
    for module, square in wanted.squares.items():
        torch.testing.assert_close(norms.squares[module], square, rtol=1e-12, atol=0)
    done.clear()
    bank.values.grad = None
    probe.accumulate_gradient()
    assert len(done) > 2
    torch.testing.assert_close(bank.values.grad, gradient, rtol=0, atol=1e-12)
    done.clear()  # what was there before is not lost with a pass that does not fit
    with pytest.raises(torch.OutOfMemoryError):
        probe.losses(norms=norms)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_pass_back_gets_fewer_tokens_on_a_gpu(monkeypatch):
    monkeypatch.setattr(evaluator, "_TOKENS", 10**15)
    model = pico_model("llama", num_hidden_layers=8).to("cuda").requires_grad_(False)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en")])
    with Injection(model, bank.modules) as injection:
        probe = work.evaluator(work.attach(injection, bank), "micro_dev")
        probe.bare_losses()
        probe.accumulate_gradient()
    assert probe._budgets["gradient"] < probe._budgets["bare"] / 2


def test_an_empty_list_is_refused(parts):
    with pytest.raises(ValueError, match="at least one example"):
        Evaluator(parts[2], [])
