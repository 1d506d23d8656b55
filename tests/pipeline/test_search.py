"""A search on a pico model: its history agrees with itself, with the tensors and with the plain way to do it."""

from __future__ import annotations

import json

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.masks import prune_count
from grasp_lora.controller import Controller
from grasp_lora.errors import DataError
from grasp_lora.pipeline.search import search
from grasp_lora.probing import Evaluator

SEARCH = {"epochs": 3, "lr": 1e-4, "batch_size": 2, "accumulation": 1}


def run(io=None, dtype=torch.float32, family="llama", size=1.0, **config):
    model = pico_model(family, dtype)
    work = pico_setup(model, {"search": SEARCH, "controller": {"interval": 2}, **config})
    adapters = [pico_adapter(model, "en", size=size), pico_adapter(model, "ar", size=size)]
    io = io or Recorder("search")
    return search(work, adapters, io), io, work.bank(adapters)


@pytest.mark.parametrize("scope", ["per_tensor", "global"])
@pytest.mark.parametrize("preset", ["default", "released"])
def test_the_history_is_measured_and_consistent(preset, scope):
    config = {"controller": {"preset": preset, "interval": 2}, "prune": {"scope": scope}}
    found, io, bank = run(**config)
    n, density, spent = bank.values.numel(), 1.0, 0
    assert any(row["committed"] for row in io.rows)
    for row in io.rows:
        baseline = torch.tensor(row["baseline"], dtype=torch.float64)
        candidates = torch.tensor(row["candidates"], dtype=torch.float64)
        assert candidates.shape == (len(row["samples"]), 6)
        assert row["rewards"] == pytest.approx((baseline.mean() - candidates.mean(dim=1)).tolist(), abs=1e-12)
        if row["committed"]:
            pruned = sum(prune_count(row["mask_ratio"], size) for size in bank.segments(scope))
            assert row["density"] == (n - pruned) / n
            assert abs(row["density"] - (1 - row["mask_ratio"])) <= len(bank.segments(scope)) / n
        else:
            assert row["density"] == density
            assert row["flipped"] == 0
        if preset == "default":
            assert row["mask_ratio"] in (None, row["after"]["p"])
        assert row["pruned"] - row["revived"] == round((density - row["density"]) * n)
        density, spent = row["density"], spent + 1 + len(row["samples"])
    assert found.evaluations == spent
    assert found.outcome.steps == 18
    assert found.rounds == 9
    low, high = (0.1, 0.8) if preset == "released" else (0.0, 0.95)
    assert low <= found.p_star <= high


def test_the_baseline_of_a_round_is_the_committed_mask_of_the_last():
    """With a learning rate of almost nothing, a committed candidate's loss is the next baseline."""
    controller = {"preset": "released", "interval": 1}
    _, io, _ = run(dtype=torch.float64, search=SEARCH | {"lr": 1e-12}, controller=controller)
    checked = 0
    for row, later in zip(io.rows, io.rows[1:], strict=False):
        if row["committed"]:
            assert row["candidates"][row["samples"].index(row["mask_ratio"])] == pytest.approx(
                later["baseline"], abs=1e-7
            )
            checked += 1
        else:
            assert row["baseline"] == pytest.approx(later["baseline"], abs=1e-7)
    assert checked >= 2


def one_by_one(self: Evaluator, masks) -> torch.Tensor:
    """The plain way: commit each mask to the bank, measure, and put everything back."""
    bank, before, rows = self._bank, self._bank.state(), []
    for kept in masks:
        bank.commit(kept)
        rows.append(self.losses())
        bank.load_state(before)
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize("preset", ["default", "released"])
def test_probing_in_one_pass_is_committing_one_by_one(preset, family, monkeypatch):
    config = {"controller": {"preset": preset, "interval": 2}, "prune": {"importance": "activation"}}
    together, io, _ = run(dtype=torch.float64, family=family, **config)
    monkeypatch.setattr(Evaluator, "candidate_losses", one_by_one)
    plain, other, _ = run(dtype=torch.float64, family=family, **config)
    assert len(io.rows) == len(other.rows)
    for row, wanted in zip(io.rows, other.rows, strict=True):
        for key in ("baseline", "candidates"):
            ours, theirs = (torch.tensor(r[key], dtype=torch.float64) for r in (row, wanted))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert row["density"] == wanted["density"]
        assert row["samples"] == pytest.approx(wanted["samples"], abs=1e-7)
    assert together.p_star == pytest.approx(plain.p_star, abs=1e-7)
    assert together.outcome.train_losses == pytest.approx(plain.outcome.train_losses, abs=1e-10)


def test_the_same_seed_is_the_same_search_and_another_is_not():
    one, first, _ = run()
    two, second, _ = run()
    assert first.rows == second.rows
    assert (one.p_star, one.interval, one.outcome) == (two.p_star, two.interval, two.outcome)
    _, other, _ = run(controller={"interval": 2, "seed": 7})
    assert other.rows[0]["samples"] != first.rows[0]["samples"]
    assert other.rows[0]["baseline"] == first.rows[0]["baseline"]


def test_the_history_grows_on_disk_row_by_row(tmp_path):
    _, io, _ = run(Recorder("search", tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(lines) == len(io.rows)
    for line, row in zip(lines, io.rows, strict=True):
        assert all(line[key] == row[key] for key in row)


def test_micro_dev_is_never_taken_from_elsewhere():
    model = pico_model("llama")
    work = pico_setup(model, {"search": SEARCH}, micro_dev=0)
    with pytest.raises(DataError, match=r"data\.target\.micro_dev: no examples.*never taken from another split"):
        search(work, [pico_adapter(model, "en")], Recorder("search"))
    assert not any(module._forward_hooks for module in model.modules())


def test_dev_is_needed_only_for_patience():
    model = pico_model("llama")
    work = pico_setup(model, {"search": SEARCH | {"patience": 1, "epochs": 1}, "controller": {"interval": 2}})
    found = search(work, [pico_adapter(model, "en")], Recorder("search"))
    assert len(found.outcome.dev_losses) == 1
    without = pico_setup(model, {"search": SEARCH | {"patience": 1}}, dev=0)
    with pytest.raises(DataError, match=r"data\.target\.dev: no examples"):
        search(without, [pico_adapter(model, "en")], Recorder("search"))


def test_a_ratio_that_will_be_used_under_another_importance_is_said():
    for used, expected in ((None, []), ("magnitude", []), ("activation", ["importance_differs"])):
        found, _, _ = run(finalize={"importance": used})
        codes = [diagnostic.code for diagnostic in found.diagnostics]
        assert [code for code in codes if code == "importance_differs"] == expected


def test_micro_dev_is_held_against_dev_where_dev_is_judged(monkeypatch):
    seen = []
    observe = Controller.observe
    monkeypatch.setattr(Controller, "observe", lambda self, **kinds: seen.append(kinds) or observe(self, **kinds))
    for patience, adapter in ((None, "fresh"), (9, "fresh"), (9, "reuse")):
        seen.clear()
        found, _, _ = run(search=SEARCH | {"patience": patience}, finalize={"adapter": adapter})
        expected = (
            [found.outcome.dev_losses[-1]] if (patience, adapter) == (9, "fresh") else []
        )  # the last round's step
        assert [kinds["dev"] for kinds in seen if "dev" in kinds] == expected
    seen.clear()
    controller = {"interval": 4, "early_stop": False}
    found, io, _ = run(search=SEARCH | {"patience": 9}, controller=controller)
    assert (io.rows[-1]["step"], found.outcome.steps) == (16, 18)  # in the third epoch of six steps each
    baseline = torch.tensor(io.rows[-1]["baseline"])
    told = [kinds for kinds in seen if "dev" in kinds]
    assert [kinds["dev"] for kinds in told] == list(found.outcome.dev_losses[1:])
    assert [kinds["dev_error"] for kinds in told] == pytest.approx([float(baseline.std()) / 6**0.5] * 2)
