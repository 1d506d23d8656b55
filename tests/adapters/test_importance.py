"""Importance rules against autograd and against the written-out recursions."""

from __future__ import annotations

import pytest
import torch
from tests.pico import pico_adapter, pico_model

from grasp_lora.adapters import importance
from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.importance import Sensitivity, activation, activation_pair, magnitude
from grasp_lora.adapters.masks import rank
from grasp_lora.adapters.peft_load import AdapterFactors, Factor
from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import MergeConfig
from grasp_lora.errors import ModelError


def gradients(a, b, x):
    """|dS/dA|, |dS/dB| of S = sum_ij |(BA)_ij| x_j by autograd."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    ((b @ a).abs() * x).sum().backward()
    return a.grad.abs(), b.grad.abs()


@pytest.mark.parametrize("rows", [1, 3, 11, 2048])
def test_closed_form_is_autograds_in_any_blocks_of_rows(rows, monkeypatch):
    monkeypatch.setattr(importance, "_ROWS", rows)
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    b = torch.randn(11, 4, generator=draw, dtype=torch.float64)
    x = torch.rand(9, generator=draw, dtype=torch.float64)
    for ours, theirs in zip(activation_pair(a, b, x), gradients(a, b, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_activation_uses_each_adapters_own_product_and_the_stashed_values():
    model = pico_model("llama")
    adapters = [pico_adapter(model, "en", scaling=4.0), pico_adapter(model, "ar", scaling=0.5)]
    bank = AdapterBank(adapters, MergeConfig(), torch.float64)
    norms = {name: torch.linspace(0.1, 2.0, 32) for name in bank.modules}
    whole = activation(bank, norms)
    bank.commit(rank(whole, bank.segments("per_tensor")).kept(0.6))
    assert torch.equal(activation(bank, norms), whole)
    pieces = iter(bank.split(whole))
    for module in bank.modules:
        for adapter in adapters:
            factor = adapter.modules[module]
            c = factor.scaling**0.5
            wanted = gradients(c * factor.A.double(), c * factor.B.double(), norms[module].double())
            for theirs in wanted:
                torch.testing.assert_close(next(pieces), theirs, rtol=0, atol=1e-10)


def test_the_weights_in_force_count_as_they_do_for_magnitude():
    model = pico_model("llama")
    bank = AdapterBank([pico_adapter(model, name) for name in ("en", "ar")], MergeConfig(), torch.float64)
    norms = {name: torch.linspace(0.1, 2.0, 32) for name in bank.modules}
    before = activation(bank, norms)
    bank.stand_at(MergePoint(0.0, 0.7, (1.0, 0.25)))
    pieces = zip(bank.slots, bank.split(activation(bank, norms)), bank.split(before), strict=True)
    for slot, found, old in pieces:
        torch.testing.assert_close(found, old * (0.5 if slot.adapter == 1 else 1.0), rtol=1e-12, atol=0)


def test_activation_names_a_module_that_no_token_reached():
    bank = AdapterBank([pico_adapter(pico_model("llama"), "en")], MergeConfig())
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj: no token"):
        activation(bank, {})


def test_magnitude_sees_the_constants_when_all_tensors_are_ranked_together():
    strong = Factor(torch.full((1, 2), 1.0), torch.full((2, 1), 1.0), 4.0)
    weak = Factor(torch.full((1, 2), 1.5), torch.full((2, 1), 1.5), 1.0)
    adapters = [AdapterFactors("s", "", "", {"m": strong}), AdapterFactors("w", "", "", {"m": weak})]
    bank = AdapterBank(adapters, MergeConfig())
    assert magnitude(bank).tolist() == [2.0] * 4 + [1.5] * 4
    assert rank(magnitude(bank), bank.segments("global")).kept(0.5).tolist() == [True] * 4 + [False] * 4
    ignoring = AdapterBank(adapters, MergeConfig(scaling="ignore"))
    assert rank(magnitude(ignoring), ignoring.segments("global")).kept(0.5).tolist() == [False] * 4 + [True] * 4
    bank.commit(torch.arange(8) % 2 == 0)
    assert magnitude(bank).tolist() == [2.0] * 4 + [1.5] * 4


def test_sensitivity_is_adaloras_recursion():
    bank = AdapterBank([pico_adapter(pico_model("llama"), "en")], MergeConfig(), torch.float64)
    seen = Sensitivity(bank)
    n = bank.values.numel()
    kept = torch.arange(n) % 3 > 0
    mean, unsure = [0.0] * 6, [0.0] * 6
    for turn in range(5):
        gradient = torch.randn(n, generator=torch.Generator().manual_seed(turn), dtype=torch.float64)
        bank.values.grad = gradient.clone()
        seen.observe()
        for i in range(6):
            now = abs(float(bank.dense()[i]) * float(gradient[i]))
            mean[i] = 0.85 * mean[i] + 0.15 * now
            unsure[i] = 0.85 * unsure[i] + 0.15 * abs(now - mean[i])
        if turn == 2:  # pruned entries go on with their stashed value
            bank.commit(kept)
    assert seen.observed == 5
    assert seen.scores()[:6].tolist() == pytest.approx([m * u for m, u in zip(mean, unsure, strict=True)], rel=1e-12)
    assert bool((seen.scores()[~kept] > 0).all())


def test_sensitivity_needs_a_gradient():
    with pytest.raises(ValueError, match="backward"):
        Sensitivity(AdapterBank([pico_adapter(pico_model("llama"), "en")], MergeConfig())).observe()
