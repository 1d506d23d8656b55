"""A comparison's parts, slots and limits: shared runs, GPUs dealt out, a time limit, tables apart from the runs."""

import json
import os
from concurrent.futures import Future

import pytest
from test_compare import RESUME, cells, results, settings, small
from world import World

from grasp_lora.config import ModelConfig
from grasp_lora.errors import ConfigError
from grasp_lora.pipeline.comparison import Asked, compare, compare_config, slots, units, worker
from grasp_lora.pipeline.comparison.agenda import Agenda
from grasp_lora.pipeline.comparison.parts import parts_of
from grasp_lora.pipeline.comparison.schedule import Results
from grasp_lora.pipeline.comparison.units import adapter_units, cells_of
from grasp_lora.pipeline.models import load_base
from grasp_lora.runs import flatten

VARIANT = {"name": "mild", "method": "grasp_default", "set": {"controller.anchor": 0}}
PART = {"name": "ours", "methods": ["merged", "grasp_default"], "variants": [VARIANT]}


def tree(folder):
    """Every file of the records and tables."""
    paths = [*folder.glob("results*.json"), *folder.glob("report/*.md")]
    return {path.name: path.read_text() for path in paths}


@pytest.fixture(scope="module")
def parted(tmp_path_factory, pico_folder):
    """A finished comparison with a part of its own row and cell."""
    world = World(tmp_path_factory.mktemp("parted"), pico_folder)
    config = small(world, methods=["zero_shot", "merged"], parts=[PART | {"cells": cells(world)}], reference="merged")
    return world, config, compare(config)


# --- parts ------------------------------------------------------------------------------------------------------


def test_parts_share_runs_and_have_tables_of_their_own(parted):
    world, _, done = parted
    assert [row["row"] for row in done.records["cells"][0]["rows"]] == ["zero_shot", "merged"]
    ours = done.parts["ours"]
    assert [cell["name"] for cell in ours["cells"]] == ["one", "two"]
    assert [row["row"] for row in ours["cells"][0]["rows"]] == ["merged", "grasp_default", "mild"]
    assert json.loads((world.root / "cmp" / "results-ours.json").read_text()) == json.loads(json.dumps(ours))
    assert "# ours" in done.tables
    assert {choice["row"] for choice in ours["tuning"]} == {"merged", "grasp_default", "mild"}
    assert (done.records["missing"], ours["missing"]) == (0, 0)
    assert (world.root / "cmp" / "report" / "cost-quality-ours.svg").exists()
    (merged,) = (world.root / "cmp" / "stages").glob("one.42.merged*")
    assert (merged / "attempts.json").read_text().split() == ["{", '"attempts":', "1", "}"]


def test_tables_are_made_again_without_a_run_and_without_a_model(parted, monkeypatch):
    world, config, done = parted
    before = tree(world.root / "cmp"), (world.root / "cmp" / "manifest.json").read_bytes()
    monkeypatch.setattr(worker, "load_base", lambda _model: pytest.fail("the base model was loaded"))
    for path in (world.root / "cmp").glob("results*.json"):
        path.unlink()
    again = compare(config, asked=Asked(resume=True, run=False))
    assert again.tables == done.tables
    assert (tree(world.root / "cmp"), (world.root / "cmp" / "manifest.json").read_bytes()) == before


def test_a_rate_may_be_taken_from_another_row(world):
    variant = {"name": "follows", "method": "merged", "rate_of": "ties_tuned", "set": {"finalize.epochs": 1}}
    done = compare(small(world, methods=["ties_tuned"], variants=[variant], reference="ties_tuned", lrs=[0.01, 1e-6]))
    rows = {row["row"]: row["lr"] for row in done.records["cells"][0]["rows"]}
    assert rows["follows"] == rows["ties_tuned"]
    assert {choice["row"] for choice in done.records["tuning"]} == {"ties_tuned"}
    assert len(list((world.root / "cmp" / "stages").glob("one.42.follows*"))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["merged", "curve"]}, "'curve' takes the learning rate of 'grid', which is not compared here"),
        ({"variants": [VARIANT | {"rate_of": "mild"}, VARIANT | {"name": "b", "rate_of": "grip"}]}, "of 'grip'"),
        ({"parts": [PART | {"variants": [VARIANT | {"name": "x"}]}], "variants": [VARIANT | {"name": "x", "set": {}}]},
         "the row 'x' means two things"),
        ({"parts": [PART | {"cells": [{"name": "one", "target": {"train": "a.jsonl"}}]}]}, "the cell 'one.42' means"),
        ({"parts": [PART | {"reference": "grid"}]}, "compare.reference: 'grid' is not compared here"),
        ({"parts": [PART | {"methods": ["mergd"], "variants": []}]}, "unknown method 'mergd'"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together(changes, message, world):
    with pytest.raises(ConfigError) as raised:
        compare(small(world, **changes))
    assert message in str(raised.value)
    assert not (world.root / "cmp").exists()


def test_a_rate_of_a_row_that_is_compared_on_other_tasks_only(world):
    other = [cells(world)[0] | {"name": "far", "task": "summarization", "set": {"task.prompt": "{article}="}}]
    variant = VARIANT | {"rate_of": "merged"}
    part = {"name": "p", "methods": ["zero_shot"], "variants": [variant], "cells": other, "reference": "zero_shot"}
    with pytest.raises(ConfigError, match="not compared on a cell of task summarization"):
        Agenda(world.root, parts_of(small(world, methods=["merged"], parts=[part])))


def test_parts_are_chosen_by_name(world):
    config = small(world, parts=[PART, PART | {"name": "more"}])
    assert [p.name for p in compare_config(config, parts=["more"]).compare.parts] == ["more"]
    assert compare_config(config, ["ties"]).compare.parts == ()
    with pytest.raises(ConfigError, match="no part 'mor' here. Did you mean 'more'"):
        compare_config(config, parts=["mor"])
    with pytest.raises(ConfigError, match="parts are named twice: ours"):
        small(world, parts=[PART, PART])
    with pytest.raises(ConfigError, match="ours: rows are named twice: merged"):
        small(world, parts=[PART | {"methods": ["merged", "merged"]}])


# --- order and limits -------------------------------------------------------------------------------------------


def test_adapters_with_most_data_come_first_and_then_what_others_wait_for(world):
    agenda = Agenda(world.root, parts_of(small(world, lrs=[0.01, 0.02], seeds=[42, 7], parts=[PART])))
    known = agenda.known()
    assert [unit.role for unit in known[:4]] == ["source", "source", "target", "target"]
    assert {unit.rank for unit in known[:4]} == {0}
    ranks = {unit.key: unit.rank for unit in known[4:]}
    assert ranks["one.42.ties"] == 2
    assert ranks["one.42.merged.lr0.01"] == ranks["one.42.grasp_default.lr0.02"] == 1
    assert ranks["one.42.mild.lr0.01"] == 3
    found = Results({unit.key: {"dev_loss": 1.0, "cost": {}} for unit in known if unit.lr == 0.02},
                    {unit.key: None for unit in known if unit.lr == 0.01})  # fmt: skip
    later = agenda.more(found)
    assert {unit.key: unit.rank for unit in later} == {
        "one.7.merged.lr0.01": 2, "one.7.grasp_default.lr0.01": 2, "one.7.mild.lr0.01": 4
    }  # fmt: skip
    assert agenda.more(found) == []
    assert agenda.size == 4 + 2 * 4 + 3  # adapters, rows on both seeds, and the rate that is not taken


def test_after_the_time_limit_nothing_starts_and_the_tables_say_what_is_missing(world):
    config = small(world, methods=["zero_shot", "merged"])
    done = compare(compare_config(config, time_limit=1e-9))
    assert done.exit_code == 0
    assert done.records["missing"] == 2
    assert "Not run yet: 2 of this table's runs" in done.tables
    assert results(world) == {}
    whole = compare(config, asked=RESUME)
    assert whole.records["missing"] == 0
    assert "Not run yet" not in whole.tables


def test_tables_may_be_left_for_later(world):
    done = compare(small(world, methods=["zero_shot"], reference="zero_shot"), asked=Asked(tables=False))
    assert (done.records, done.tables) == ({}, "")
    assert list(results(world)) == ["one.42.zero_shot"]
    assert not (world.root / "cmp" / "results.json").exists()


# --- slots ------------------------------------------------------------------------------------------------------


class Started:
    """Instead of a process: the environment that it would have started with."""

    seen: list = []

    def __init__(self, _workers, mp_context, initializer, initargs):
        Started.seen.append((os.environ.get(slots.VISIBLE), os.environ.get(slots.THREADS)))

    def submit(self, _work, *_given):
        return Future()

    def shutdown(self, wait=True, cancel_futures=False):
        pass


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, ["0", "1", "0"]),
        ("cuda", "5, 7", ["5", "7", "5"]),
        ("cuda:1", "5,7", ["5,7"] * 3),
        ("cpu", None, [None] * 3),
    ],
)
def test_gpus_are_dealt_out_and_cores_shared(device, visible, expected, monkeypatch):
    monkeypatch.setattr(slots, "ProcessPoolExecutor", Started)
    monkeypatch.setattr(Started, "seen", [])
    monkeypatch.setattr(slots, "resolve_device", lambda name: slots.torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(slots.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(slots.os, "cpu_count", lambda: 7)
    for name, value in ((slots.VISIBLE, visible), (slots.THREADS, None)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    made = slots.Slots(3, ModelConfig(device=device))
    made.warm_up(2)
    assert len(Started.seen) == 2
    for _ in range(3):
        made.submit(object())
    assert made.free == 0
    assert Started.seen == [(gpu, "2") for gpu in expected]
    assert os.environ.get(slots.VISIBLE) == visible
    assert slots.THREADS not in os.environ


def test_a_base_model_that_served_other_runs_gives_the_same_bits(parted, tmp_path, pico_folder, monkeypatch):
    """What a long-lived process computes is what a new one would."""
    shared, _, _ = parted
    kept = {path.parent.name: json.loads(path.read_text()) for path in
            (shared.root / "cmp" / "stages").glob("two.42.*/result.json")}  # fmt: skip
    world = World(tmp_path, pico_folder)
    monkeypatch.setattr(worker, "_base", load_base)  # anew for every run
    compare(settings(world, compare={"cells": cells(world)[1:], "seeds": [42], "lrs": [0.01],
                                     "methods": ["merged", "grasp_default"]}))  # fmt: skip
    for key, result in results(world).items():
        if key in kept:
            for what in ("scores", "dev_loss", "ratio", "interval", "details", "density"):
                assert result[what] == kept[key][what], (key, what)
    assert {"two.42.merged.lr0.01", "two.42.grasp_default.lr0.01"} <= results(world).keys() & kept.keys()


def test_adapters_depend_on_what_is_set_and_not_on_settings_that_a_later_version_adds(world, monkeypatch):
    (cell,) = cells_of(small(world), 42)
    before = [unit.key for unit in adapter_units(world.root, cell)]
    monkeypatch.setattr(units, "flatten", lambda tree: flatten(tree) | {"speed.later": "auto"})
    assert [unit.key for unit in adapter_units(world.root, cell)] == before
    (other,) = cells_of(small(world, cells=[cells(world)[0] | {"set": {"speed.cuda_graphs": False}}]), 42)
    made = adapter_units(world.root, other)
    assert not made[0].config.speed.cuda_graphs
    assert [unit.key for unit in made] != before
