"""Ablations on a pico model: one setting at a time, adapters trained once, resumable, a failed cell not fatal."""

from __future__ import annotations

import json

import pytest

from grasp_lora.config import build_config
from grasp_lora.controller import resolve
from grasp_lora.data import load_examples
from grasp_lora.errors import ConfigError, Interrupted
from grasp_lora.pipeline import ablate as module
from grasp_lora.pipeline.ablate import ABLATIONS, Asked, ablate, cells_of, check_ablations
from grasp_lora.pipeline.ablation_table import markdown, plot, table_rows

SHORT = {"controller__policy": "ratio", "search__epochs": 1, "controller__interval": 2, "controller__candidates": 2}


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def given(world):
    """Adapters that are there, six micro-dev examples, few steps."""
    from world import write_rows

    from pico import pico_rows

    write_rows(world.data / "micro_dev.jsonl", pico_rows(6, "micro_dev"))
    adapters = {f"adapters__{role}": world.adapter(role) for role in ("source", "target")}
    return world, {**SHORT, **adapters, "data__micro_dev_size": 6}


def test_cells_vary_one_setting_and_share_what_is_configured(world):
    config = world.config(controller__candidates=3, controller__interval=10)
    cells = cells_of(config, tuple(ABLATIONS), 2, examples=16)
    assert len(cells) == 2 * (4 + 6 * 3)
    preset = resolve(config.controller)
    values = {name: [c.value for c in cells if c.ablation == name and c.seed == 42] for name in ABLATIONS}
    assert values["micro_dev_size"] == [4, 8, 16, 32]
    assert values["entropy_bonus"] == [0, preset.entropy_bonus, pytest.approx(3 * preset.entropy_bonus)]
    assert values["anchor"] == [0, preset.anchor, pytest.approx(10 * preset.anchor)]
    assert (values["max_step"], values["candidates"]) == ([0.05, 0.1, 1.0], [1, 3, 7])
    assert (values["interval"], values["importance"]) == ([5, 10, 20], ["magnitude", "activation", "sensitivity"])
    shared = [c for c in cells if c.name == "as-set-s43"]
    assert {c.ablation for c in shared} == set(ABLATIONS)
    assert [c.size for c in cells if c.ablation == "micro_dev_size" and c.seed == 42] == [4, 8, None, 32]
    base = build_config(json.loads(shared[0].config.model_dump_json()))
    for cell in cells:
        name = ABLATIONS[cell.ablation].setting
        section, key = name.split(".")
        if cell.name.startswith("as-set"):
            continue
        changed = {
            f"{s}.{k}"
            for s, settings in cell.config.model_dump().items() if isinstance(settings, dict)
            for k, v in settings.items() if v != base.model_dump()[s][k]
        }  # fmt: skip
        assert changed == (set() if cell.size else {name})


def test_unknown_ablations_and_no_seed_are_refused(world):
    with pytest.raises(ConfigError, match="Did you mean 'anchor'"):
        check_ablations(["ancor"])
    with pytest.raises(ConfigError, match="--seeds: at least 1"):
        check_ablations(["anchor"], 0)


def test_ablations_end_to_end(cli, given):
    world, changes = given
    file, out = world.file(**changes), world.root / "out"
    words = ["ablate", "--config", file, "--what", "micro_dev_size,candidates", "--out", out, "--finalize", "--quiet"]
    said = cli(*words, "--json")
    assert said.code == 3  # one cell could not be done
    found = json.loads(said.out)["ablations"]
    sizes, counts = found["micro_dev_size"]["cells"], found["candidates"]["cells"]
    assert [cell["micro_dev"] for cell in sizes] == [4, None, None, None]
    assert "has 6 examples, so 8 cannot be drawn" in sizes[1]["error"]
    assert [cell["value"] for cell in counts] == [1, 3, 7]
    for cell in [sizes[0], *counts]:
        assert cell["error"] is None
        assert 0 <= cell["interval"][0] <= cell["p_star"] <= cell["interval"][1] <= 0.95
        assert cell["rounds"] == 1
        assert cell["token_passes"] > 0
        assert cell["seconds"] > 0
        assert cell["dev_loss"] > 0
        assert cell["test_loss"] > 0
    # A first look of eight ratios and one round of C, each with its baseline.
    assert [cell["evaluations"] for cell in counts] == [9 + 2, 9 + 4, 9 + 8]
    assert read(out / "ablations.json")["ablations"] == found
    assert (out / "ablations.md").read_text() == markdown(found)
    assert not (out / "adapters" / "stages").exists()  # given adapters are used as they are

    again = cli(*words, "--json")
    assert again.code == 6
    assert "--resume" in again.error
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    again = cli(*words, "--json", "--resume")
    assert json.loads(again.out)["ablations"] == found
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")} == before

    shown = cli(*words, "--resume").out
    assert "candidates (controller.candidates)" in shown
    assert "●" in shown
    assert "has 6 examples, so 32 cannot be drawn" in shown


def test_adapters_are_trained_once_and_subsets_are_nested(world, monkeypatch):
    from world import write_rows

    from pico import pico_rows

    write_rows(world.data / "micro_dev.jsonl", pico_rows(10, "micro_dev"))
    seen = []
    search_stage = module.search_stage
    monkeypatch.setattr(
        module, "search_stage", lambda run, adapters: seen.append((run, adapters)) or search_stage(run, adapters)
    )
    config = world.config(**SHORT, data__micro_dev_size=10)
    found = ablate(config, Asked(("micro_dev_size",), seeds=2, out=world.root / "out"))
    assert {path.name for path in (world.root / "out/adapters/stages").iterdir()} == {
        "source_adapter",
        "target_adapter",
    }
    assert len(seen) == 4
    assert len({id(adapters) for _, adapters in seen}) == 1
    assert len({id(run.setup.base) for run, _ in seen}) == 1
    order = [example.id for example in load_examples(str(world.data / "micro_dev.jsonl"), "qa", {})]
    subsets = [[e.id for e in run.splits.target["micro_dev"]] for run, _ in seen]
    small, small_43, large, large_43 = subsets
    assert (len(small), len(large)) == (4, 8)
    assert set(small) < set(large)
    assert set(small_43) < set(large_43)
    assert small != small_43
    assert [i for i in order if i in set(large)] == large
    errors = [cell["error"] is None for cell in found["ablations"]["micro_dev_size"]["cells"]]
    assert errors == [True] * 4 + [False] * 4


def test_an_interrupted_ablation_goes_on(given, monkeypatch):
    world, changes = given
    config = world.config(**changes)
    asked = Asked(("max_step",), out=world.root / "out")
    calls = []
    search_stage = module.search_stage

    def twice(run, adapters):
        calls.append(run.folder.path.name)
        if len(calls) == 2:
            raise Interrupted("stopped")
        return search_stage(run, adapters)

    monkeypatch.setattr(module, "search_stage", twice)
    with pytest.raises(Interrupted):
        ablate(config, asked)
    assert not (world.root / "out" / "ablations.json").exists()
    found = ablate(config, asked, resume=True)
    assert calls == ["max_step-0.05-s42", "as-set-s42", "as-set-s42", "max_step-1-s42"]
    assert all(cell["error"] is None for cell in found["ablations"]["max_step"]["cells"])
    ablate(config, asked, overwrite=True)
    assert len(calls) == 7


def test_a_final_run_may_be_added_later(given):
    world, changes = given
    config = world.config(**changes)
    (plain, *_) = ablate(config, Asked(("interval",), out=world.root / "out"))["ablations"]["interval"]["cells"]
    assert (plain["dev_loss"], plain["test_loss"]) == (None, None)
    asked = Asked(("interval",), finalize=True, out=world.root / "out")
    (more, *_) = ablate(config, asked, resume=True)["ablations"]["interval"]["cells"]
    assert more["test_loss"] > 0
    assert {k: v for k, v in more.items() if "loss" not in k} == {k: v for k, v in plain.items() if "loss" not in k}


def cell(value, seed, p_star, interval, error=None, strength=1.0, **more):
    figures = {"dev_loss": None, "test_loss": None, "point": {"ratio": p_star, "strength": strength}}
    return {"value": value, "seed": seed, "p_star": p_star, "interval": interval, "rounds": 3, "evaluations": 20,
            "token_passes": 2000, "seconds": 1.25, "error": error, **figures, **more}  # fmt: skip


def test_table_and_plot():
    cells = [cell(5, 1, 0.5, [0.4, 0.6]), cell(5, 2, 0.6, [0.5, 0.8]), cell(20, 1, None, None, "no memory"),
             cell(20, 2, 0.0, None, seconds=None, test_loss=1.5)]  # fmt: skip
    columns, rows = table_rows(cells)
    assert columns[-2:] == ["dev loss", "test loss"]
    assert rows[0] == [
        "5", "2", "0.550 (0.500 to 0.600)", "[0.450, 0.700]", "3.0", "20.0", "2,000", "1.2", "-", "-",
    ]  # fmt: skip
    assert rows[1] == ["20", "1 of 2", "0.000", "-", "3.0", "20.0", "2,000", "-", "-", "1.500"]
    stronger = [cell(5, 1, 0.5, None, strength=0.5), cell(5, 2, 0.5, None, strength=0.8)]
    columns, ((*_, strength, _rounds, _evaluations, _passes, _seconds),) = table_rows(stronger)
    assert (columns[4], strength) == ("strength", "0.650")
    first, second, ruler = plot(cells)
    assert first == " 5 │" + " " * 20 + "─────●────●──────────" + " " * 10 + "│"
    assert second == "20 │●" + " " * 50 + "│"
    assert ruler.index("1") == len(first) - 2
    assert "- 20, seed 1: no memory" in markdown({"interval": {"setting": "controller.interval", "cells": cells}})
