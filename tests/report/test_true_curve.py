"""The true curve of the ratio, regrets on it, and the page: from records made up of a known curve."""

import copy

import numpy as np
import pytest

from grasp_lora.adapters.point import MergePoint
from grasp_lora.metrics.bootstrap import paired_bootstrap
from grasp_lora.report.curves_page import curves_page
from grasp_lora.report.true_curve import BEYOND, GRID, chooses_ratio_alone, chosen_ratios, curve, regrets, smoothed

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SEEDS = (42, 1337, 9001)


def loss(ratio, side, seed=0):
    """A valley with its floor at 0.6 (dev) or 0.7 (test), shifted from seed to seed."""
    return 2.0 + 0.25 * (ratio - (0.6 if side == "dev" else 0.7)) ** 2 + 0.01 * seed


def measured(ratios, index):
    return {
        "details": {"dev_losses": {f"{p:g}": loss(p, "dev", index) for p in ratios}},
        "hindsight": {f"p={p:g}": loss(p, "test", index) for p in ratios},
    }


def chose(ratio, index, passes=10, **more):
    return {
        "seed": SEEDS[index], "ratio": ratio, "dev_loss": loss(ratio, "dev", index), "details": {}, "hindsight": {},
        "scores": {"loss": loss(ratio, "test", index)}, "cost": {"token_passes": passes, "seconds": 1.0}, **more,
    }  # fmt: skip


def row(name, ratios, **more):
    seeds = [chose(ratio, index, **more) for index, ratio in enumerate(ratios)]
    return {"row": name, "title": f"by {name}", "lr": 0.001, "seeds": seeds}


def records():
    cell = {
        "name": "qa-ar",
        "rows": [
            row(GRID, (0.5, 0.6, 0.8), passes=80),
            row(BEYOND, (0.0, 0.0, 0.0), passes=30),
            row("ours", (0.6, 0.65, 0.6), passes=20),
        ],
    }
    for index in range(3):
        for place, ratios in ((0, RATIOS[1:9]), (1, (0.0, 0.9, 0.95))):
            cell["rows"][place]["seeds"][index] |= measured(ratios, index)
    hardware = {"device": "cpu", "cpu": "a processor", "gpus": []}
    versions = {"torch": "2", "transformers": "5", "peft": "0"}
    provenance = {"hardware": hardware, "versions": versions, "code": {"commit": None, "dirty": None},
                  "config": {"model": {"dtype": "bfloat16"}}}  # fmt: skip
    return {"model": "m", "jobs": 1, "seeds": list(SEEDS), "provenance": provenance,
            "cells": [cell, copy.deepcopy(cell) | {"name": "qa-zh"}]}  # fmt: skip


def test_the_curve_is_the_mean_over_seeds_at_every_ratio():
    found = curve(records()["cells"][0], "test")
    assert found.ratios == RATIOS
    assert found.means == pytest.approx([loss(p, "test", 1) for p in RATIOS])
    assert found.spreads == pytest.approx([0.01] * len(RATIOS))


def test_a_seed_without_both_rows_does_not_count():
    cell = records()["cells"][0]
    cell["rows"][1]["seeds"].pop()
    assert curve(cell, "dev").means == pytest.approx([loss(p, "dev", 0.5) for p in RATIOS])
    cell["rows"][1]["seeds"].clear()
    with pytest.raises(ValueError, match="qa-ar has no seed with both rows"):
        curve(cell, "dev")


def test_smoothing_keeps_a_smooth_curve_and_takes_noise_away():
    ratios = np.array(RATIOS)
    true = 2.0 + 0.25 * (ratios - 0.6) ** 2
    assert np.abs(smoothed(RATIOS, list(true))(ratios) - true).max() < 0.01
    straight = 1.0 - 0.5 * np.log1p(-ratios)  # what the penalty does not see
    assert smoothed(RATIOS, list(straight))(ratios) == pytest.approx(straight, abs=1e-6)
    noise = np.random.default_rng(0).normal(size=(200, len(RATIOS)))
    left = np.array([smoothed(RATIOS, list(each))(ratios) for each in noise])
    assert (left.std(axis=0)[1:8] < 0.75).all()
    with pytest.raises(ValueError, match="5 ratios"):
        smoothed(RATIOS[:4], [1.0] * 4)


def test_regret_is_read_off_the_curve():
    found = curve(records()["cells"][0], "dev")
    best, least = found.minimum
    assert best == pytest.approx(0.6, abs=0.03)
    assert least == pytest.approx(2.01, abs=5e-3)
    assert found.regret(best) == 0.0
    assert found.regret(0.2) == pytest.approx(0.04, abs=5e-3)
    assert found.regret(1.0) == found.regret(0.95)  # nothing was measured beyond


def test_regrets_of_all_cells_and_seeds_are_compared_in_pairs():
    all_of = records()
    ours, grid = regrets(all_of, "ours", "dev"), regrets(all_of, GRID, "dev")
    assert len(ours.values) == len(grid.values) == 6
    assert ours.mean < grid.mean
    assert ours.interval[0] <= ours.mean <= ours.interval[1]
    assert grid.against is None
    assert ours.against == paired_bootstrap(ours.values, grid.values)


def test_a_row_that_chose_more_than_a_ratio_has_no_regret():
    all_of = records()
    seeds = all_of["cells"][0]["rows"][2]["seeds"]
    seeds[0]["details"] = {"point": MergePoint(0.6).to_dict()}
    assert chooses_ratio_alone(seeds[0])
    assert regrets(all_of, "ours", "dev") is not None
    for point in (
        MergePoint(0.6, strength=0.5),
        MergePoint(0.6, weights=(1.0, 0.5)),
        MergePoint(0.6, ratios={"a": 0.1}),
    ):
        seeds[0]["details"] = {"point": point.to_dict()}
        assert not chooses_ratio_alone(seeds[0])
    assert regrets(all_of, "ours", "dev") is None
    assert chosen_ratios(all_of["cells"][0], "ours") is None
    assert "| by ours | - | - | - | - | 0.0k | 0.25 | 1.0 |" in curves_page(all_of)
    seeds.pop()
    assert regrets(all_of, "ours", "dev") is None


def test_a_ratio_of_another_merge_is_not_on_this_curve():
    all_of = records()
    assert regrets(all_of, "ours", "test") is not None
    all_of["cells"][0]["rows"][2]["method"] = "grasp_recommended"
    assert regrets(all_of, "ours", "test") is None


def test_the_page_says_it_all():
    text = curves_page(records())
    assert "Base model: m, bfloat16. " in text
    for part in ("## Regret", "### qa-ar", "### qa-zh", "Smoothed minimum: dev 2.0", "| dev, smoothed |", "0.25"):
        assert part in text
    assert "by curve" not in text  # it measures
    assert "| by ours | 0.600, 0.650, 0.600 |" in text
    assert "- by ours, dev: mean regret " in text
    assert "lower." in text
    # Its own final runs: the loss of the run that chose, which is no regret.
    (line,) = [line for line in text.splitlines() if line.startswith("| by ours | 2.0")]
    expected = np.mean([loss(p, "dev", i) for i, p in enumerate((0.6, 0.65, 0.6))])
    assert line.split(" | ")[1] == f"{expected:.3f}"


def test_a_row_without_a_ratio_shows_its_final_runs_alone():
    all_of = records()
    for seed in all_of["cells"][0]["rows"][2]["seeds"]:
        seed |= {"ratio": None, "dev_loss": None}
    text = curves_page(all_of)
    assert "| by ours | -, -, - | - | - | 0.001 |" in text
    assert "| by ours | - | - | - | - |" in text  # no regret
    assert "| by ours | - | - | 2.0" in text  # no dev loss, but one of test
