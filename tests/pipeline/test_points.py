"""Searches over several coordinates and adapters that the search itself trained, on pico models."""

from __future__ import annotations

import json

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup
from world import World

from grasp_lora import api
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.masks import rank
from grasp_lora.adapters.point import MergePoint
from grasp_lora.errors import ConfigError, RunError
from grasp_lora.pipeline.finalize import finalize
from grasp_lora.pipeline.opening import working
from grasp_lora.pipeline.search import search
from grasp_lora.pipeline.stages import all_adapters, final_stage
from grasp_lora.pipeline.story import run_pipeline

SEARCH = {"epochs": 4, "lr": 1e-4, "batch_size": 2, "accumulation": 1}
POLICIES = ["ratio_strength", "ratio_weights", "ratio_per_adapter", "ratio_per_module_type"]


def searched(policy="ratio_strength", dtype=torch.float64, finalizing=None, **controller):
    model = pico_model("llama", dtype)
    config = {
        "search": SEARCH,
        "controller": {"interval": 2, "policy": policy, **controller},
        "finalize": {"epochs": 2, "lr": 1e-4, **(finalizing or {})},
    }
    work = pico_setup(model, config)
    adapters = [pico_adapter(model, "en", size=1.0), pico_adapter(model, "ar", size=1.0)]
    io = Recorder("search")
    return work, adapters, io, search(work, adapters, io)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_logged_is_what_the_point_gives(policy):
    """The first round's losses, measured again by hand with strengths and masks of their own."""
    work, adapters, io, found = searched(policy)
    row = io.rows[0]
    assert len(row["points"]) == len(row["candidates"]) == 8 * (len(row["axes"]) + 1)
    assert [point[0] for point in row["points"]] == row["samples"]
    bank = work.bank(adapters)
    ranking = rank((bank.dense() * bank.constants()).abs(), bank.segments("per_tensor"))
    with Injection(work.base.model, bank.modules) as injection:
        probe = work.evaluator(work.attach(injection, bank), "micro_dev")
        for index in (0, 5):
            values = dict(zip(row["axes"], row["points"][index], strict=True))
            own = {name.partition(":")[2]: v for name, v in values.items() if name.startswith("ratio:")}
            weights = tuple(v for name, v in values.items() if name.startswith("weight:"))
            point = MergePoint(values.get("ratio", 0.0), values.get("strength", 1.0), weights, own)
            bank.stand_at(point)
            one = probe.candidate_losses([ranking.kept(bank.ratios(point, "per_tensor"))])[0]
            assert row["candidates"][index] == pytest.approx(one.tolist(), rel=1e-9)
    assert found.best.ratio == found.p_star


def test_the_committed_point_is_where_the_next_baseline_stands():
    _, _, io, _ = searched(early_stop=False)
    assert any(row["committed"] for row in io.rows)
    for before, after in zip(io.rows, io.rows[1:], strict=False):
        assert after["held"] == before["applied"]


def test_a_final_run_takes_the_strength_that_was_learned():
    work, adapters, _, found = searched()
    assert found.best.strength != 1.0
    final = finalize(work, adapters, found.best, Recorder("finalize"))
    assert (final.bank.strength, final.point) == (found.best.strength, found.best)
    plain = finalize(work, adapters, found.best.ratio, Recorder("finalize"))
    assert plain.bank.strength == 1.0
    assert plain.density == final.density


def test_the_export_carries_the_strength(tmp_path):
    work, adapters, _, _ = searched()
    final = finalize(work, adapters, MergePoint(0.5, 0.25), Recorder("finalize"))
    exported = api.export(work, final, tmp_path / "out")
    with Injection(work.base.model, final.bank.modules) as injection, injection.active(final.bank.merged()):
        memory = work.base.model(input_ids=torch.arange(3, 43).reshape(2, 20)).logits
    from peft import PeftModel

    served = PeftModel.from_pretrained(pico_model("llama", torch.float64), str(exported.adapter))
    logits = served(input_ids=torch.arange(3, 43).reshape(2, 20)).logits
    assert (logits - memory).abs().max() < 1e-5 * memory.abs().max()


REUSE = {"adapter": "reuse"}


def test_reuse_goes_on_at_the_learned_point_and_dev_picks_among_epochs_there():
    work, adapters, io, found = searched(finalizing=REUSE, early_stop=False)
    assert found.final is not None
    assert found.final.point == found.best
    assert found.outcome.steps == 24  # the run is not ended by the answer: 4 epochs of 6 updates
    assert found.stop_reason == "half of the epochs are done"
    assert io.rows[-1]["step"] <= 12
    # Dev judges the second epoch, which ends at the answer, and the two after it; not the one before.
    assert len(found.outcome.dev_losses) == 3
    assert found.final.bank.density() == pytest.approx(1 - found.best.ratio, abs=0.01)
    assert api.finalize(work, adapters, found) is found.final


def test_reuse_ends_the_probing_with_the_rounds():
    _, _, io, found = searched(finalizing=REUSE, rounds=2)
    assert found.stop_reason == "all 2 rounds are done"
    assert io.rows[-1]["round"] <= 2
    assert found.outcome.steps == 24


@pytest.fixture
def reused(tmp_path, pico_folder):
    world = World(tmp_path, pico_folder)
    return world, world.config(finalize__adapter="reuse")


def test_a_run_that_reuses_has_no_second_run(reused):
    world, config = reused
    result = run_pipeline(config)
    assert "finalize" not in result.results["cost"]
    assert result.results["finalize"]["reused"] is True
    stage = json.loads((world.root / "run" / "stages" / "finalize" / "result.json").read_text())
    assert stage["point"] == result.results["point"]
    again = run_pipeline(config, resume=True)
    assert again.results["systems"] == result.results["systems"]
    with working(config, resume=True) as run, pytest.raises(ConfigError, match=r"finalize\.adapter"):
        final_stage(run, all_adapters(run), 0.5)


def test_reuse_without_a_search_is_an_error(reused):
    _, config = reused
    with working(config) as run, pytest.raises(RunError, match="no learned ratio"):
        final_stage(run, all_adapters(run))
