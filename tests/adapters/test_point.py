"""A bank that stands at a point: strengths and weights outside the tensors, own ratios per tensor."""

from __future__ import annotations

import pytest
import torch
from tests.pico import pico_adapter, pico_model

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.masks import prune_count, rank
from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import MergeConfig


@pytest.fixture(scope="module")
def adapters():
    model = pico_model("llama", torch.float64)
    return [pico_adapter(model, "en"), pico_adapter(model, "ar")]


def delta(pair):
    a, b = pair
    return b @ a


@pytest.mark.parametrize("rule", ["sum_factors", "sum_deltas"])
def test_standing_at_a_point_is_the_merge_with_its_settings(adapters, rule):
    point = MergePoint(0.0, 0.6, (0.5, 1.2))
    moved = AdapterBank(adapters, MergeConfig(rule=rule, strength=0.8), torch.float64)
    moved.stand_at(point)
    fixed = AdapterBank(adapters, MergeConfig(rule=rule, strength=0.48, weights=(0.5, 1.2)), torch.float64)
    for module, pair in fixed.merged().items():
        assert delta(moved.merged()[module]).detach() == pytest.approx(delta(pair).detach(), rel=1e-12)
    assert moved.constants() == pytest.approx(fixed.constants(), rel=1e-12)


@pytest.mark.parametrize("rule", ["sum_factors", "sum_deltas"])
def test_every_row_of_candidates_has_its_own_point(adapters, rule):
    points = [MergePoint(0.0), MergePoint(0.0, 0.3), MergePoint(0.0, 1.0, (0.2, 0.9))]
    bank = AdapterBank(adapters, MergeConfig(rule=rule), torch.float64)
    stacked = bank.merged(torch.stack([bank.values.detach()] * 3), points)
    for row, point in enumerate(points):
        bank.stand_at(point)
        for module, pair in bank.merged().items():
            a, b = stacked[module]
            assert delta((a[row], b[row])).detach() == pytest.approx(delta(pair).detach(), rel=1e-12)


def test_what_a_bank_stands_at_is_kept_and_restored(adapters):
    bank = AdapterBank(adapters, MergeConfig())
    bank.stand_at(MergePoint(0.2, 0.7, (0.9, 0.4)))
    other = AdapterBank(adapters, MergeConfig())
    other.load_state(bank.state())
    assert (other.strength, other.weights) == (0.7, (0.9, 0.4))
    assert other.standing(0.2) == MergePoint(0.2, 0.7, (0.9, 0.4))


@pytest.mark.parametrize("owners", [("en", "ar"), ("q_proj", "v_proj")])
def test_own_ratios_prune_each_tensor_by_its_own_count(adapters, owners):
    bank = AdapterBank(adapters, MergeConfig(), torch.float64)
    point = MergePoint(0.4, ratios=dict(zip(owners, (0.2, 0.7), strict=True)))
    ratios = bank.ratios(point, "per_tensor")
    kept = rank(bank.dense().abs(), bank.segments("per_tensor")).kept(ratios)
    for slot, ratio, tensor in zip(bank.slots, ratios, bank.split(kept), strict=True):
        own = bank.names[slot.adapter] if owners[0] in bank.names else slot.module.rpartition(".")[2]
        assert ratio == dict(zip(owners, (0.2, 0.7), strict=True))[own]
        assert int((~tensor).sum()) == prune_count(ratio, slot.size)


def test_a_global_ranking_knows_one_ratio(adapters):
    bank = AdapterBank(adapters, MergeConfig())
    assert bank.ratios(MergePoint(0.4, ratios={"en": 0.1}), "global") == 0.4
