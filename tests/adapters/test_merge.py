"""Merge rules against their formulas and against PEFT's `add_weighted_adapter`."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from tests.pico import pico_adapter, pico_model

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.merge import RULES, check_ranks, constant, merge_pairs
from grasp_lora.adapters.peft_load import AdapterFactors, Factor
from grasp_lora.config import MergeConfig
from grasp_lora.errors import AdapterError

D_OUT, D_IN = 7, 5


def pairs(*ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(len(ranks))
    return [
        (
            torch.randn(r, D_IN, generator=draw, dtype=torch.float64),
            torch.randn(D_OUT, r, generator=draw, dtype=torch.float64),
        )
        for r in ranks
    ]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("strength", [1.0, 0.0, 0.3])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, -2.0, 1.5), (-1.0, -1.0, 0.0)])
def test_both_rules_are_their_formulas(weights, strength):
    scalings = (4.0, 2.0, 0.5)
    c = [constant(w, s) for w, s in zip(weights, scalings, strict=True)]
    sign = [-1.0 if w < 0 else 1.0 for w in weights]
    equal, unequal = pairs(3, 3, 3), pairs(1, 4, 2)
    a, b = merge_pairs("sum_factors", equal, c, sign, strength)
    left = sum(ck * pair[1] for ck, pair in zip(c, equal, strict=True))
    right = sum(sk * ck * pair[0] for sk, ck, pair in zip(sign, c, equal, strict=True))
    assert a.shape == (3, D_IN)
    assert b.shape == (D_OUT, 3)
    close(b @ a, strength * left @ right)
    a, b = merge_pairs("sum_deltas", unequal, c, sign, strength)
    assert a.shape == (7, D_IN)
    wanted = sum(w * s * pair[1] @ pair[0] for w, s, pair in zip(weights, scalings, unequal, strict=True))
    close(b @ a, strength * wanted)


def test_constant_is_the_root_of_weight_times_scaling():
    assert constant(-2.0, 8.0) == 4.0
    assert constant(0.0, 4.0) == 0.0


@pytest.mark.parametrize("rule", list(RULES))
def test_candidates_in_front_are_merged_one_by_one(rule):
    stacked = [tuple(torch.stack([part, 2 * part, -part]) for part in pair) for pair in pairs(3, 3)]
    a, b = merge_pairs(rule, stacked, [1.5, 0.5], [1.0, -1.0], 0.7)
    for row in range(3):
        one = merge_pairs(rule, [(x[row], y[row]) for x, y in stacked], [1.5, 0.5], [1.0, -1.0], 0.7)
        close(a[row], one[0])
        close(b[row], one[1])


def wrapped(adapters: list[AdapterFactors]) -> peft.PeftModel:
    """The pico Llama with the adapters attached by PEFT, alpha = scaling times rank."""
    model, made = pico_model("llama"), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in adapters:
            first = next(iter(adapter.modules.values()))
            rank = first.A.shape[0]
            settings = peft.LoraConfig(
                r=rank, lora_alpha=round(first.scaling * rank), target_modules=list(adapter.modules)
            )
            if made is None:
                made = peft.get_peft_model(model, settings, adapter_name=adapter.name)
            else:
                made.add_adapter(adapter.name, settings)
            for module, factor in adapter.modules.items():
                layer = made.get_base_model().get_submodule(module)
                layer.lora_A[adapter.name].weight.data.copy_(factor.A)
                layer.lora_B[adapter.name].weight.data.copy_(factor.B)
    assert made is not None
    return made


@pytest.mark.parametrize(("rule", "theirs"), [("sum_factors", "linear"), ("sum_deltas", "cat")])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.75, -1.5)])
def test_merged_deltas_are_pefts(rule, theirs, weights):
    model = pico_model("llama")
    second = 4 if rule == "sum_factors" else 2
    adapters = [pico_adapter(model, "en", scaling=4.0), pico_adapter(model, "ar", rank=second, scaling=2.0)]
    made = wrapped(adapters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.add_weighted_adapter(["en", "ar"], list(weights), "both", combination_type=theirs)
    merged = AdapterBank(adapters, MergeConfig(rule=rule, weights=weights)).merged()
    assert set(merged) == set(adapters[0].modules)
    for module, (a, b) in merged.items():
        delta = made.get_base_model().get_submodule(module).get_delta_weight("both").detach()
        assert delta.abs().max() > 0.01
        close((b @ a).detach(), delta, 1e-6)


def test_ignoring_the_scaling_sets_it_to_one():
    model = pico_model("llama")
    scaled, plain = pico_adapter(model, "en", scaling=4.0), pico_adapter(model, "en", scaling=1.0)
    ours = AdapterBank([scaled], MergeConfig(scaling="ignore")).merged()
    for module, (a, b) in AdapterBank([plain], MergeConfig()).merged().items():
        assert torch.equal(ours[module][0], a)
        assert torch.equal(ours[module][1], b)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_module_of_one_adapter_alone_keeps_that_adapters_update(rule):
    model = pico_model("llama")
    one, two = pico_adapter(model, "en", modules=["q_proj"]), pico_adapter(model, "ar", modules=["v_proj"])
    merged = AdapterBank([one, two], MergeConfig(rule=rule, weights=(1.0, -0.5))).merged()
    assert len(merged) == 4
    for weight, adapter in ((1.0, one), (-0.5, two)):
        for module, factor in adapter.modules.items():
            a, b = merged[module]
            close((b @ a).detach(), weight * factor.scaling * factor.B @ factor.A, 1e-6)


def test_unequal_ranks_are_refused_by_the_rule_that_sums_factors():
    model = pico_model("llama")
    adapters = [pico_adapter(model, "en", rank=4), pico_adapter(model, "ar", rank=2)]
    with pytest.raises(AdapterError, match=r"equal rank.*q_proj.*en: r=4, ar: r=2.*sum_deltas"):
        AdapterBank(adapters, MergeConfig(rule="sum_factors"))
    assert AdapterBank(adapters, MergeConfig(rule="sum_deltas")).names == ("en", "ar")
    check_ranks("sum_factors", "m", [("en", 4), ("ar", 4)])


def test_unequal_ranks_are_seen_when_two_adapters_share_a_name():
    model = pico_model("llama")
    adapters = [pico_adapter(model, "same", rank=4), pico_adapter(model, "same", rank=2)]
    with pytest.raises(AdapterError, match="same: r=4, same: r=2"):
        AdapterBank(adapters, MergeConfig(rule="sum_factors"))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), ()])
def test_weights_must_be_as_many_as_adapters(weights):
    model = pico_model("llama")
    with pytest.raises(AdapterError, match=rf"merge.weights.*\(2\), got {len(weights)}"):
        AdapterBank([pico_adapter(model, "en"), pico_adapter(model, "ar")], MergeConfig(weights=weights))


def test_adapters_without_tensors_are_refused():
    with pytest.raises(AdapterError, match="no LoRA tensors"):
        AdapterBank([AdapterFactors("en", "en", "", {})], MergeConfig())


def test_slots_are_ordered_by_module_adapter_and_a_before_b():
    factor = Factor(torch.zeros(2, 3), torch.zeros(4, 2), 1.0)
    one = AdapterFactors("one", "", "", {"b": factor, "a": factor})
    two = AdapterFactors("two", "", "", {"a": factor})
    bank = AdapterBank([one, two], MergeConfig())
    assert [slot.key for slot in bank.slots] == ["a.0.A", "a.0.B", "a.1.A", "a.1.B", "b.0.A", "b.0.B"]
    assert [slot.start for slot in bank.slots] == [0, 6, 14, 20, 28, 34]
    assert bank.modules == ("a", "b")
