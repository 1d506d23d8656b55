"""The controller in a training loop: when it probes, what it commits, what it writes down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.pico import pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.importance import magnitude
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.masks import prune_count, rank
from grasp_lora.config import ControllerConfig
from grasp_lora.controller import Decision, PolicyState, Proposal
from grasp_lora.controller.session import RatioSearch
from grasp_lora.training import MaskSelector, TrainingLoop


class Script:
    """Stands in for a controller: proposes the same ratios in each round and commits what it was told to."""

    def __init__(self, commits: dict[int, float], stop_after: int | None = None) -> None:
        self.commits, self.stop_after = commits, stop_after
        self.told: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.seen: dict[str, list[float]] = {}
        self.p = 0.0

    def ask(self, round_index: int) -> Proposal | None:
        return Proposal(round_index, (0.2, 0.5, 0.9)) if round_index in self.commits else None

    def tell(self, proposal: Proposal, baseline: Any, candidates: Any) -> Decision:
        self.told.append((proposal.round, torch.as_tensor(baseline), torch.as_tensor(candidates)))
        ratio = self.commits[proposal.round]
        before = PolicyState(proposal.round, 0.4, 0.1, self.p, self.p)
        committed = ratio >= 0
        self.p = ratio if committed else self.p
        after = PolicyState(proposal.round, 0.5, 0.1, self.p, self.p)
        rewards = tuple(float(r) for r in baseline.mean() - candidates.mean(axis=1))
        return Decision(rewards, committed, ratio if committed else None, self.p, before, after)

    def should_stop(self) -> str | None:
        return "enough" if self.stop_after is not None and len(self.told) >= self.stop_after else None

    def observe(self, **seen: float) -> None:
        for key, value in seen.items():
            self.seen.setdefault(key, []).append(value)


def run(commits, preset="default", stop_after=None, epochs=4, **config):
    """Twelve steps (or fewer) with a scripted controller; what the session saw and left."""
    model = pico_model("llama", torch.float64)
    work = pico_setup(model, {"search": {"epochs": epochs, "lr": 1e-2, "batch_size": 4}})
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    script, rows, gradients = Script(commits, stop_after), [], []
    settings = ControllerConfig(preset=preset, interval=3, **config)
    with Injection(model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        probe = work.evaluator(attached, "micro_dev")
        selector = MaskSelector(bank, injection, work.config.prune, probe)
        session = RatioSearch(bank, selector, probe, script, settings, rows.append)  # type: ignore[arg-type]
        original = session.after_backward

        def watched():
            original()
            gradients.append((bank.kept.clone(), bank.values.grad.clone(), bank.dense()))

        session.after_backward = watched  # type: ignore[method-assign]
        loop = TrainingLoop(
            attached, work.items("train"), work.config.search, seed=1, callbacks=[session], selector=selector
        )
        outcome = loop.run()
    return bank, session, script, rows, gradients, outcome


def test_rounds_come_every_interval_and_once_before_training():
    _, session, script, rows, _, outcome = run({0: 0.3, 1: -1.0, 3: 0.4, 4: -1.0})
    assert [(row["round"], row["step"]) for row in rows] == [(0, 0), (1, 3), (3, 9), (4, 12)]
    assert (session.rounds, session.evaluations, outcome.steps) == (4, 16, 12)
    assert len(script.seen["train"]) == 4  # also for the round that probed nothing
    told = [float(baseline.mean()) for _, baseline, _ in script.told]
    assert script.seen["start"] + script.seen["micro"] == told  # one before training, three after
    errors = [float(np.std(baseline.numpy(), ddof=1)) / len(baseline) ** 0.5 for _, baseline, _ in script.told]
    assert script.seen["micro_error"] == pytest.approx(errors[1:])
    assert all(error > 0 for error in script.seen["train_error"])  # three steps a round
    assert script.seen["flips"] == [row["flipped"] for row in rows if row["committed"]]


def test_rows_are_what_was_measured():
    bank, _, script, rows, _, _ = run({0: 0.3, 1: 0.55, 2: -1.0, 3: 0.1})
    n, sizes, before = bank.values.numel(), bank.segments("per_tensor"), 0.0
    for row, (index, baseline, candidates) in zip(rows, script.told, strict=True):
        assert row["round"] == index
        assert row["baseline"] == baseline.tolist()
        assert row["candidates"] == candidates.tolist()
        assert row["rewards"] == pytest.approx((baseline.mean() - candidates.mean(dim=1)).tolist(), abs=1e-12)
        if row["committed"]:
            assert row["density"] == 1 - sum(prune_count(row["mask_ratio"], size) for size in sizes) / n
        assert row["pruned"] - row["revived"] == round(
            (before - row["density"]) * n if before else (1 - row["density"]) * n
        )
        assert row["flipped"] == (row["pruned"] + row["revived"]) / n
        before = row["density"]
    assert rows[2]["pruned"] == rows[2]["revived"] == 0
    assert rows[3]["revived"] > 0
    assert bank.density() == rows[-1]["density"]
    assert int(bank.values.count_nonzero()) == round(bank.density() * n)


def test_default_masks_gradients_and_ranks_anew_with_the_stashed_values():
    _, _, _, rows, gradients, _ = run({0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5})
    for kept, gradient, _ in gradients:
        assert not bool(gradient[~kept].any())
    assert sum(row["pruned"] > 0 for row in rows[1:]) > 0
    before, after = gradients[0][0], gradients[3][0]
    assert not torch.equal(after, before)
    assert int(after.sum()) == int(before.sum())


def test_the_last_mask_is_the_ranking_of_the_values_it_was_made_from():
    bank = run({4: 0.4})[0]  # committed after the last step
    assert torch.equal(bank.kept, rank(magnitude(bank), bank.segments("per_tensor")).kept(0.4))


def test_released_keeps_the_first_ranking_and_lets_gradients_through():
    bank, _, _, rows, gradients, _ = run({1: 0.5, 2: 0.3, 3: 0.5, 4: 0.5}, "released")
    first, wider, last = gradients[3][0], gradients[6][0], gradients[9][0]
    assert torch.equal(first, last)
    assert torch.equal(bank.kept, first)
    assert bool((wider | ~first).all())  # nested: one ranking
    assert [row["pruned"] for row in rows][2:] == [rows[1]["revived"], 0]
    kept, gradient, _ = gradients[4]
    assert bool((gradient[~kept] != 0).any())
    assert not bool(bank.values[~bank.kept].any())


def test_pruned_values_are_held_at_zero_between_rounds():
    for preset in ("default", "released"):
        bank, _, _, _, gradients, _ = run({1: 0.6}, preset)
        stashed = gradients[3][2][~gradients[3][0]]
        for kept, _, dense in gradients[3:]:
            assert torch.equal(dense[~kept], stashed)
        assert not bool(torch.signbit(bank.values[~bank.kept]).any() or bank.values[~bank.kept].any())


def test_it_ends_when_the_controller_or_the_limit_says_so():
    _, session, _, _, _, outcome = run({1: -1.0, 2: -1.0, 3: -1.0}, stop_after=2)
    assert (session.stop_reason, outcome.steps, outcome.stopped_early) == ("enough", 6, True)
    _, session, _, _, _, outcome = run({1: -1.0, 2: -1.0}, rounds=3)
    assert (session.stop_reason, outcome.steps) == ("all 3 rounds are done", 9)
    _, session, _, _, _, outcome = run({1: -1.0})
    assert (session.stop_reason, outcome.steps, outcome.stopped_early) == (None, 12, False)
