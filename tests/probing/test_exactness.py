"""The fast path gives the plain path's numbers: every family, both merge rules, float64 and float32."""

from __future__ import annotations

import pytest
import torch
from tests import plain
from tests.pico import FAMILIES, Recorder, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.masks import rank
from grasp_lora.adapters.point import MergePoint
from grasp_lora.data import collate
from grasp_lora.pipeline.models import freeze
from grasp_lora.pipeline.search import search
from grasp_lora.probing import Evaluator, example_losses

RULES = ("sum_factors", "sum_deltas")
# The eager attention of this family takes its softmax in float32, whatever the model's precision.
GRADIENT = {"gemma": 1e-7}
POINTS = (MergePoint(0.0), MergePoint(0.3, 0.6, (1.0, 0.4)), MergePoint(0.8, 1.1, (0.7, 1.0)))


def settings(rule: str, **sections: object) -> dict[str, object]:
    return {"merge": {"rule": rule, "weights": (1.0, -0.6)}, **sections}


def world(family: str, rule: str, dtype: torch.dtype, **sections: object):
    model = pico_model(family, dtype)
    work = pico_setup(model, settings(rule, **sections))
    return model, work, work.bank([pico_adapter(model, "en", size=0.3), pico_adapter(model, "ar", size=0.3)])


def round_losses(family: str, rule: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of one round by the fast and the plain path, by masks and by points with strength and weights."""
    model, work, bank = world(family, rule, dtype)
    ranking = rank(bank.dense().abs(), bank.segments("per_tensor"))
    bank.commit(ranking.kept(0.5))
    masks = [bank.kept, *(ranking.kept(p) for p in (0.0, 0.3, 0.95, 1.0))]
    rows = torch.stack([torch.where(ranking.kept(p.ratio), bank.dense(), 0.0) for p in POINTS])
    with Injection(model, bank.modules) as injection:
        items = work.items("micro_dev")
        probe = Evaluator(work.attach(injection, bank), items, batch_size=4, token_budget=400)
        fast = [probe.losses()[None], probe.candidate_losses(masks), probe.flat_losses(rows, POINTS)]
        slow = [
            plain.committed_losses(probe)[None],
            plain.candidate_losses(probe, masks),
            plain.flat_losses(probe, rows, POINTS),
        ]
    return torch.cat(fast), torch.cat(slow)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_in_one_pass_has_the_losses_of_the_plain_path(family, rule):
    fast, slow = round_losses(family, rule, torch.float64)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    assert len({round(float(row.mean()), 6) for row in fast}) >= 7  # the points are different ones


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_in_float32_agrees_to_five_digits(family, rule):
    fast, slow = round_losses(family, rule, torch.float32)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_plain_path_with_and_without_checkpointing(family, rule):
    model, work, bank = world(family, rule, torch.float64)
    items = work.items("train")[:5]
    weights = plain.written(model, bank)
    torch.stack([plain.example_loss(model, weights, item) for item in items]).mean().backward()
    wanted = bank.values.grad.clone()
    assert wanted.abs().max() > 1e-3
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            freeze(model, work.config.model.model_copy(update={"gradient_checkpointing": True})).train()
        bank.values.grad = None
        with Injection(model, bank.modules) as injection, injection.active(bank.merged()):
            example_losses(model, collate(items, 0)).mean().backward()
        torch.testing.assert_close(bank.values.grad, wanted, rtol=0, atol=GRADIENT.get(family, 1e-10))


def whole_search(family: str, rule: str, dtype: torch.dtype, checkpointing: bool, steps: int | None = None):
    """A search that keeps its adapter, so that masks and values at its end can be seen."""
    training = {"epochs": 2 if steps is None else 1, "lr": 1e-3, "batch_size": 2, "accumulation": 2}
    sections = {
        "model": {"gradient_checkpointing": checkpointing},
        "search": training,
        "finalize": {"adapter": "reuse"},
        "prune": {"importance": "activation"},
        "controller": {
            "interval": 1, "early_stop": False, "p_min": 0.2,
            "policy": "ratio_strength" if rule == "sum_deltas" else "ratio",
        },
    }  # fmt: skip
    model, work, _ = world(family, rule, dtype, **sections)
    if steps is not None:
        work = pico_setup(model, settings(rule, **sections), train=4 * steps)
    io = Recorder("search")
    return search(work, [pico_adapter(model, name, size=0.3) for name in ("en", "ar")], io), io.rows


def differences(fast, slow, key: str) -> float:
    """The largest relative difference of a round's losses."""
    pairs = [(torch.tensor(a[key]), torch.tensor(b[key])) for a, b in zip(fast, slow, strict=True)]
    return max(float(((a - b).abs() / b.abs()).max()) for a, b in pairs)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_search_is_that_of_the_plain_path(family, rule, monkeypatch):
    """Probes, training and importance with checkpointing on, against the plain path without it."""
    fast, rows = whole_search(family, rule, torch.float64, True)
    plain.patch(monkeypatch)
    slow, others = whole_search(family, rule, torch.float64, False)
    assert [row["density"] for row in rows] == [row["density"] for row in others]
    for key in ("baseline", "candidates"):  # fits between the rounds stop at tolerances of their own
        assert differences(rows[:1], others[:1], key) <= 1e-10
        assert differences(rows, others, key) <= 1e-6
    assert not fast.final.bank.kept.all()
    assert fast.p_star == pytest.approx(slow.p_star, abs=1e-8)
    assert torch.equal(fast.final.bank.kept, slow.final.bank.kept)
    torch.testing.assert_close(fast.final.bank.values, slow.final.bank.values, rtol=0, atol=1e-8)
    assert fast.outcome.trained_tokens == slow.outcome.trained_tokens
    assert fast.probe_tokens == slow.probe_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_and_one_round_in_float32_agree_to_five_digits(family, monkeypatch):
    fast, rows = whole_search(family, "sum_factors", torch.float32, False, steps=1)
    plain.patch(monkeypatch)
    slow, others = whole_search(family, "sum_factors", torch.float32, False, steps=1)
    assert fast.outcome.steps == slow.outcome.steps == 1
    for key in ("baseline", "candidates"):
        assert differences(rows, others, key) <= 1e-5
    assert fast.outcome.train_losses == pytest.approx(slow.outcome.train_losses, rel=1e-5)
