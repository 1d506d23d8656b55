"""`compare` on a pico model: records, tables, resuming, failures, processes, bad input."""

import copy
import json
import os
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
from world import World, lines, tree_bytes

from grasp_lora.baselines import METHODS
from grasp_lora.config import Config
from grasp_lora.errors import ConfigError, DataError, Interrupted, MissingExtraError, RunError, TrainingError
from grasp_lora.metrics.bootstrap import paired_bootstrap
from grasp_lora.pipeline.comparison import Asked, compare, compare_config, schedule, slots
from grasp_lora.pipeline.comparison.tuning import Tuning, choose
from grasp_lora.pipeline.comparison.units import cells_of
from grasp_lora.pipeline.stageio import StageIO
from grasp_lora.report import cost_quality
from grasp_lora.report.comparison import tables
from grasp_lora.report.paper import same_setting
from grasp_lora.runs import InterruptFlag, QuietProgress

MAIN = sys.modules["grasp_lora.pipeline.comparison.compare"]
RESUME = Asked(resume=True)
METHOD_NAMES = ["zero_shot", "target", "merged", "ties", "ratio_by_probe", "grasp_default"]


class SimulatedCrash(BaseException):
    """Nothing in the package catches it, as nothing catches a power cut."""


class Heard(QuietProgress):
    def __init__(self):
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def cells(world):
    """Two cells with the same source data."""
    files = {name: str(world.data / f"{name}.jsonl") for name in ("train", "dev", "micro_dev", "test")}
    return [
        {"name": "one", "target": files},
        {"name": "two", "target": files, "set": {"task.prompt": "{context} ? {question}="}},  # own target adapter
    ]


def settings(world, **changes):
    section = {"methods": METHOD_NAMES, "cells": cells(world), "seeds": [42, 7], "lrs": [0.01, 0.02]}
    plain = {"evaluate__metrics": ["loss", "f1", "chrf"], "data__target": None, "run__dir": world.root / "cmp"}
    return compare_config(world.config(**plain, compare=section | changes.pop("compare", {}), **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pico_folder):
    """A finished comparison: two cells, two seeds, two learning rates, adapters trained here."""
    world = World(tmp_path_factory.mktemp("whole"), pico_folder)
    heard = Heard()
    return world, compare(settings(world), heard, command=["grasp-lora", "compare"]), heard


def results(world):
    """Every unit's result without what a clock or a process decides."""
    found = {}
    for path in sorted((world.root / "cmp" / "stages").glob("*/result.json")):
        result = json.loads(path.read_text())
        for key in ("seconds", "scoring_seconds", "peak_memory_bytes", "attempts"):
            result["cost"].pop(key)
        name = path.parent.name
        found[name.partition("_adapter.")[0]] = result  # an adapter's name holds a hash of its files' paths
    return found


# --- what comes out ---------------------------------------------------------------------------------------------


def test_the_records_hold_every_row_of_every_cell(whole):
    world, done, _ = whole
    records = json.loads((world.root / "cmp" / "results.json").read_text())
    assert records == json.loads(json.dumps(done.records))
    assert done.exit_code == 0
    assert records["failed"] == []
    for cell in records["cells"]:
        assert [row["row"] for row in cell["rows"]] == METHOD_NAMES
        assert cell["examples"] == 3
        for row in cell["rows"]:
            assert set(row["scores"]) == {"loss", "f1", "chrf"}
            # A corpus score has no value per example: no interval over seeds, no paired difference.
            assert row["scores"]["chrf"]["interval"] is None
            assert set(row["against"]) == (set() if row["row"] == "merged" else {"loss", "f1"})
            assert [seed["seed"] for seed in row["seeds"]] == [42, 7]
            assert (row["lr"] is not None) == METHODS[row["method"]].runs
            labels = {"train": 6, "dev": 3, "micro_dev": 3}
            for seed in row["seeds"]:
                assert seed["cost"]["labels"] == {name: labels[name] for name in METHODS[row["method"]].labels}


def test_adapters_are_trained_once_and_shared(whole):
    world, done, _ = whole
    trained = [(row["role"], row["seed"]) for row in done.records["adapters"]]
    # One source adapter per seed serves both cells; each cell has its own target adapter.
    assert sorted(trained) == [
        ("source", 7),
        ("source", 42),
        ("target", 7),
        ("target", 7),
        ("target", 42),
        ("target", 42),
    ]
    folders = {path.name for path in (world.root / "cmp" / "stages").iterdir()}
    for name in ("one.42.ties", "two.7.ties"):
        assert not list((world.root / "cmp" / "stages" / name / "stages").glob("*_adapter"))
        assert name in folders


def test_the_reference_is_compared_on_the_same_examples(whole):
    world, done, _ = whole
    stages = world.root / "cmp" / "stages"
    rows = {row["row"]: row for row in done.records["cells"][1]["rows"]}

    def losses(name):
        lr = f".lr{rows[name]['lr']:g}" if rows[name]["lr"] is not None else ""
        each = [lines(stages / f"two.{seed}.{name}{lr}" / "stages" / "evaluate_test" / "predictions.jsonl")
                for seed in (42, 7)]  # fmt: skip
        return [sum(row[i]["loss"] for row in each) / 2 for i in range(3)]

    expected = paired_bootstrap(losses("ties"), losses("merged"), resamples=20, seed=42)
    found = rows["ties"]["against"]["loss"]
    assert found["difference"] == pytest.approx(expected.difference)
    assert found["interval"] == pytest.approx(list(expected.interval))
    assert found["p"] == expected.p_value
    assert rows["ties"]["scores"]["loss"]["mean"] == pytest.approx(sum(losses("ties")) / 3)


def test_the_rate_with_the_better_dev_loss_is_taken_and_its_price_told(whole):
    _, done, _ = whole
    for choice in done.records["tuning"]:
        assert choice["lr"] == float(min(choice["dev_losses"], key=choice["dev_losses"].get))
        assert choice["token_passes"] > 0
    assert {c["row"] for c in done.records["tuning"]} == {"merged", "ratio_by_probe", "grasp_default"}


def test_tables_show_it_all(whole):
    world, done, heard = whole
    text = (world.root / "cmp" / "report" / "comparison.md").read_text()
    assert text == done.tables == tables(done.records)
    for row in METHOD_NAMES:
        assert METHODS[row].title in text
    for part in (
        "## Summary",
        "## one",
        "## two",
        "## Learning rates",
        "## Adapters",
        "± ",
        "peak MiB",
        "ratio [90 %]",
    ):
        assert part in text
    assert "## Failed" not in text
    assert "paper / here" not in text
    assert (world.root / "cmp" / "report" / "cost-quality.svg").read_text().startswith("<?xml")
    assert sum("test loss" in note for note in heard.notes) == 2 * (
        3 * 2 + 3 * 2 + 3
    )  # cells x (fixed + tried + later)


def test_no_record_holds_a_path_or_a_text_of_the_data(whole):
    world, _, _ = whole
    for name, content in tree_bytes(world.root / "cmp").items():
        if name == "results.json" or name.startswith("report/"):
            assert str(world.root).encode() not in content
            assert b"ab ab" not in content


def test_a_finished_comparison_resumes_to_itself_and_more_methods_may_join(whole):
    world, done, _ = whole
    before = results(world)
    again = compare(settings(world), asked=RESUME)
    assert results(world) == before
    assert again.records["cells"] == done.records["cells"]
    more = compare(settings(world, compare={"methods": [*METHOD_NAMES, "svd"]}), asked=RESUME)
    assert [row["row"] for row in more.records["cells"][0]["rows"]] == [*METHOD_NAMES, "svd"]
    after = results(world)
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {f"{cell}.{seed}.svd" for cell in ("one", "two") for seed in (42, 7)}


def test_the_grid_also_shows_what_hindsight_would_choose(world):
    done = compare(small(world, methods=["grid"], reference="grid"))
    (row,) = done.records["cells"][0]["rows"]
    (seed,) = row["seeds"]
    found = seed["hindsight"]
    assert list(found) == [f"p={step / 10:.1f}" for step in range(1, 9)]
    assert found[f"p={seed['ratio']:.1f}"] == pytest.approx(seed["scores"]["loss"])
    best = min(found, key=found.get)
    assert f"the best of grid of 8 is {best}: p=0.1 " in done.tables


# --- stopping and going on --------------------------------------------------------------------------------------


def small(world, **changes):
    section = {"cells": cells(world)[:1], "seeds": [42], "lrs": [0.01], "methods": ["merged", "ties", "grasp_default"]}
    return settings(world, compare=section | changes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, pico_folder):
    world = World(tmp_path_factory.mktemp("uninterrupted"), pico_folder)
    compare(small(world))
    return results(world)


@pytest.mark.parametrize("unit", ["target_adapter", "one.42.grasp_default.lr0.01"])
def test_killed_in_the_middle_of_a_unit(unit, uninterrupted, world, monkeypatch):
    log = StageIO._log

    def crash(self, kind, values):
        log(self, kind, values)
        if values.get("step") == 4 and f"stages/{unit}" in str(self.folder):
            raise SimulatedCrash

    end = schedule.Pool._end

    def dead(self, one, future, task):
        if isinstance(future.exception(), SimulatedCrash):
            raise SimulatedCrash  # the whole process, not only its thread
        end(self, one, future, task)

    with monkeypatch.context() as patch:
        patch.setattr(StageIO, "_log", crash)
        patch.setattr(schedule.Pool, "_end", dead)
        with pytest.raises(SimulatedCrash):
            compare(small(world))
    assert unit.removesuffix("_adapter") not in results(world)
    compare(small(world), asked=RESUME)
    assert results(world) == uninterrupted
    (attempts,) = (world.root / "cmp" / "stages").glob(f"{unit}*/attempts.json")
    assert json.loads(attempts.read_text()) == {"attempts": 2}
    records = json.loads((world.root / "cmp" / "results.json").read_text())
    assert "≥ " in tables(records)


def test_runs_of_other_code_are_told(world, monkeypatch):
    compare(small(world, methods=["zero_shot"], reference="zero_shot"))
    monkeypatch.setattr("grasp_lora.pipeline.comparison.worker._code", lambda: "another")
    done = compare(small(world, methods=["zero_shot", "merged"]), asked=RESUME)
    assert len(done.records["codes"]) == 2
    assert "made by 2 versions of the code" in done.tables


def test_a_result_under_other_settings_is_not_taken_for_this_one(world):
    compare(small(world, methods=["zero_shot", "merged"]))
    changed = [cells(world)[0] | {"set": {"finalize.lr_decay": 0.5}}]
    done = compare(small(world, methods=["zero_shot", "merged"], cells=changed), asked=RESUME)
    assert done.exit_code == RunError.exit_code
    assert len(done.records["failed"]) == 2
    assert "finalize.lr_decay: 0.85 in the run, 0.5 now" in done.records["failed"][0]["error"]


def test_a_unit_killed_before_its_settings_were_saved_starts_anew(world):
    config = small(world, methods=["zero_shot"], reference="zero_shot")
    compare(config)
    unit = world.root / "cmp" / "stages" / "one.42.zero_shot"
    for name in ("config.yaml", "result.json", "attempts.json"):
        (unit / name).unlink()
    done = compare(config, asked=RESUME)
    assert done.exit_code == 0
    assert (unit / "config.yaml").exists()


class StopAfter(InterruptFlag):
    """A stop request that is there from the n-th time on that it is asked for."""

    def __init__(self, polls):
        self.left = polls
        super().__init__()

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0

    @requested.setter
    def requested(self, _value):
        pass


@pytest.mark.parametrize("polls", [0, 2])
def test_stopped_on_request_and_resumed(polls, uninterrupted, world, monkeypatch):
    class Caught:
        def __init__(self, told):
            told()

        def __enter__(self):
            return StopAfter(polls)

        def __exit__(self, *_):
            return False

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(MAIN, "graceful_interrupt", Caught)
        with pytest.raises(Interrupted, match="--resume"):
            compare(small(world), heard)
    assert any("stopping" in text for text in heard.warnings)
    assert len(results(world)) < len(uninterrupted)
    compare(small(world), asked=RESUME)
    assert results(world) == uninterrupted


# --- failures ---------------------------------------------------------------------------------------------------

WILD = {"name": "wild", "method": "merged", "set": {"finalize.lr": 1e30}}


def test_a_failing_unit_is_told_and_the_rest_goes_on(world):
    heard = Heard()
    done = compare(small(world, variants=[WILD]), heard)
    assert done.exit_code == TrainingError.exit_code
    assert [row["row"] for row in done.records["cells"][0]["rows"]] == ["merged", "ties", "grasp_default"]
    (failed,) = done.records["failed"]
    assert failed["unit"] == "one.42.wild.lr0.01"
    assert "Lower the learning rate" in failed["error"]
    assert "## Failed" in done.tables
    assert any("wild, lr 0.01: failed" in text for text in heard.warnings)
    again = compare(small(world, variants=[WILD]), asked=RESUME)  # tried again, fails again
    assert again.records["failed"] == done.records["failed"]


def test_a_variant_is_a_row_of_its_own(world):
    mild = {"name": "mild", "method": "grasp_default", "set": {"controller.p_max": 0.2, "controller.p_init": 0.1}}
    done = compare(small(world, variants=[mild]))
    row = done.records["cells"][0]["rows"][-1]
    assert (row["row"], row["method"]) == ("mild", "grasp_default")
    assert row["title"].endswith("controller.p_max=0.2, controller.p_init=0.1")
    assert row["seeds"][0]["ratio"] <= 0.2


def test_what_waits_for_a_failed_adapter_fails_with_it(world):
    done = compare(settings(world, compare={"cells": cells(world)[:1], "seeds": [42], "lrs": [0.01]},
                            train_target__lr=1e30))  # fmt: skip
    assert done.exit_code == TrainingError.exit_code
    assert [row["row"] for row in done.records["cells"][0]["rows"]] == ["zero_shot"]
    errors = {row["unit"]: row["error"] for row in done.records["failed"]}
    assert errors["one.42.ties"].startswith("its target_adapter.")
    assert done.records["tuning"] == []


def test_a_defect_leaves_its_traceback_and_does_not_stop_the_others(world, monkeypatch):
    def broken(_context):
        return 1 / 0

    monkeypatch.setitem(METHODS, "ties", replace(METHODS["ties"], make=broken))
    done = compare(small(world))
    assert done.exit_code == 1
    (failed,) = done.records["failed"]
    assert failed["error"].startswith("ZeroDivisionError: division by zero (a defect; see ")
    trace = (world.root / "cmp" / "stages" / "one.42.ties" / "traceback.txt").read_text()
    assert "in broken" in trace


class InThisProcess:
    """A worker process that is none: work is done at once, and one unit takes the process with it."""

    made = 0

    def __init__(self, _workers, mp_context, initializer, initargs):
        InThisProcess.made += 1
        self.dead = False

    def submit(self, work, *given):
        if self.dead:
            raise BrokenProcessPool("dead")
        future = Future()
        if given and getattr(given[0], "row", None) == "zero_shot":
            self.dead = True
            future.set_exception(BrokenProcessPool("dead"))
        else:
            future.set_result(slots.run_unit(given[0], lambda: False) if work is slots._in_process else None)
        return future

    def shutdown(self, wait=True, cancel_futures=False):
        pass


def test_a_process_that_dies_fails_its_unit_alone_and_its_slot_gets_a_new_one(world, monkeypatch):
    monkeypatch.setattr(slots, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(InThisProcess, "made", 0)
    world.adapter("en")
    world.adapter("ar")
    done = compare(
        settings(world, compare={"cells": cells(world)[:1], "seeds": [42], "jobs": 2, "reference": "ties",
                                 "methods": ["zero_shot", "source", "target", "ties"]},
                 adapters__source=world.root / "en", adapters__target=world.root / "ar")
    )  # fmt: skip
    assert InThisProcess.made == 3
    assert done.exit_code == 1
    assert ["died" in row["error"] for row in done.records["failed"]] == [True]
    assert [row["row"] for row in done.records["cells"][0]["rows"]] == ["source", "target", "ties"]


@pytest.mark.slow
def test_units_in_processes_give_the_same_results(world, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = {"adapters__source": world.adapter("en"), "adapters__target": world.adapter("ar")}
    section = {"cells": cells(world)[:1], "seeds": [42], "reference": "ties", "methods": ["zero_shot", "ties"]}
    done = compare(settings(world, compare=section | {"jobs": 2}, **given))
    assert done.exit_code == 0
    assert "OMP_NUM_THREADS" not in os.environ
    found = results(world)
    compare(settings(world, compare=section, **given), asked=Asked(overwrite=True))
    for key, result in results(world).items():  # another number of threads may add in another order
        assert result["scores"][0]["value"] == pytest.approx(found[key]["scores"][0]["value"], rel=1e-4)


def test_without_matplotlib_there_is_no_plot_and_a_word_about_it(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    heard = Heard()
    done = compare(small(world, methods=["zero_shot"], reference="zero_shot"), heard)
    assert done.exit_code == 0
    assert any("grasp-lora[report]" in text for text in heard.warnings)
    with pytest.raises(MissingExtraError):
        cost_quality.cost_quality_plot(done.records, world.root / "plot.svg")


# --- learning rates ---------------------------------------------------------------------------------------------


class Tried:
    def __init__(self, cell, lr):
        self.cell, self.lr, self.row, self.key = cell, lr, "merged", f"{cell}.{lr}"


def judged(dev, passes=10):
    return {"dev_loss": dev, "cost": {"token_passes": passes, "seconds": 1.0}}


def test_only_cells_with_every_rate_choose():
    tried = [Tried(cell, lr) for cell in ("one", "two") for lr in (0.1, 0.2)]
    found = {"one.0.1": judged(1.0), "one.0.2": judged(2.0), "two.0.2": judged(-9.0)}
    choice = choose("merged", "qa", tried, found, (0.1, 0.2))
    assert (choice.lr, choice.dev_losses) == (0.1, {0.1: 1.0, 0.2: 2.0})
    assert (choice.token_passes, choice.seconds) == (20, 2.0)  # both runs at the other rate, whether they chose or not
    assert choose("merged", "qa", tried, {}, (0.1, 0.2)) is None


def test_a_rate_is_chosen_once_every_run_that_tries_one_has_ended():
    tuning = Tuning((0.1, 0.2))
    tuning.add("merged", "qa", [Tried("one", lr) for lr in (0.1, 0.2)])
    found = {"one.0.1": judged(2.0), "one.0.2": judged(1.0)}
    assert not tuning.settle({"one.0.1"}.__contains__, found)
    assert tuning.rate("merged", "qa") is None
    assert tuning.settle(found.__contains__, found)
    assert tuning.rate("merged", "qa") == 0.2
    assert not tuning.settle(found.__contains__, found)
    (choice,) = tuning.choices(["merged"], ["qa"], found)
    assert choice.lr == 0.2
    assert tuning.choices(["merged"], ["summarization"], found) == []
    failed = Tuning((0.1, 0.2))
    failed.add("merged", "qa", [Tried("one", 0.1)])
    assert failed.settle(lambda _key: True, {})
    assert failed.rate("merged", "qa") == 0.1


def test_without_dev_data_the_first_rate_is_taken(world):
    files = {name: str(world.data / f"{name}.jsonl") for name in ("train", "micro_dev", "test")}
    done = compare(small(world, cells=[{"name": "one", "target": files}], methods=["zero_shot", "target"],
                         reference="target", lrs=[0.01, 0.02]))  # fmt: skip
    assert done.exit_code == 0
    assert done.records["tuning"] == []


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"methods": ["mergd"]}, ConfigError, "unknown method 'mergd'. Did you mean 'merged'?"),
        ({"reference": "grid"}, ConfigError, "compare.reference: 'grid' is not compared here"),
        ({"generate": ["tis"]}, ConfigError, "compare.generate: 'tis' is not compared here. Did you mean 'ties'?"),
        ({"variants": [WILD | {"name": "svd"}]}, ConfigError, "'svd' is the name of a method"),
        ({"variants": [WILD | {"method": "mergde"}]}, ConfigError, "unknown method 'mergde'"),
        ({"cells": [{"name": "one", "target": {"train": "no.jsonl"}}]}, DataError, "no.jsonl"),
    ],
)  # fmt: skip
def test_bad_settings_stop_before_anything_is_made(changes, kind, message, world):
    with pytest.raises(kind) as raised:
        compare(small(world, **changes))
    assert message in str(raised.value)
    assert not (world.root / "cmp").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["ties", "ties"]}, "rows are named twice: ties"),
        ({"seeds": [1, 1]}, "seeds are named twice: 1"),
        ({"seeds": []}, "compare.seeds"),
        ({"cells": [{"name": "A cell"}]}, "a name is made of lower-case letters"),
        ({"cells": [{"name": "a", "target": {"tests": "x"}}]}, "compare.cells.target.tests"),
        ({"lrs": [0]}, "compare.lrs: Input should be greater than 0"),
        ({"cells": [{"name": "a", "langage": "ar"}]}, "'compare.cells.langage'. Did you mean 'language'?"),
    ],
)
def test_settings_of_the_wrong_form_are_refused(changes, message, world):
    with pytest.raises(ConfigError) as raised:
        small(world, **changes)
    assert message in str(raised.value)


def test_a_cell_with_an_unknown_setting_is_refused(world):
    with pytest.raises(ConfigError, match="unknown setting 'task.promt'"):
        compare(small(world, cells=[{"name": "one", "set": {"task.promt": "x"}}]))


def test_a_missing_library_is_told_before_hours_of_work(world, monkeypatch):
    monkeypatch.setattr(MAIN.importlib.util, "find_spec", lambda name: None if name == "optuna" else object())
    with pytest.raises(MissingExtraError, match=r"method optuna_gp .*--methods.*optuna.*grasp-lora\[baselines\]"):
        compare(small(world, methods=["merged", "optuna_gp"]))
    assert not (world.root / "cmp").exists()


def test_folders_are_respected(world):
    config = small(world, methods=["zero_shot"], reference="zero_shot")
    with pytest.raises(RunError, match="does not exist"):
        compare(config, asked=RESUME)
    compare(config)
    with pytest.raises(RunError, match="already holds a run"):
        compare(config)
    with pytest.raises(ConfigError, match="one of them"):
        compare(config, asked=Asked(resume=True, overwrite=True))
    test = world.data / "test.jsonl"
    test.write_text(test.read_text().replace("test2", "Test2"))
    with pytest.raises(RunError, match=r"one\.data\.target\.test: content \w{12} in the run, \w{12} now"):
        compare(config, asked=RESUME)
    assert compare(config, asked=Asked(overwrite=True)).exit_code == 0


def test_paths_of_cells_start_at_the_root(world):
    target = {"train": "data/train.jsonl", "test": "hf:x:y"}
    cell = {"name": "one", "task": "qa", "language": "zh", "target": target}
    config = settings(world, compare={"root": str(world.root), "cells": [cell]})
    (cell,) = cells_of(config, 7)
    assert cell.config.data.target.train == str(world.root / "data" / "train.jsonl")
    assert cell.config.data.target.test == "hf:x:y"
    assert (cell.config.task.language, cell.config.seed) == ("zh", 7)


# --- the command line -------------------------------------------------------------------------------------------


def test_the_command(cli, world):
    file = world.file("c.yaml", compare={"lrs": [0.01], "reference": "merged"}, run__dir=world.root / "cmp",
                      evaluate__metrics=["loss"])  # fmt: skip
    said = cli("compare", "--config", str(file), "--methods", "zero_shot, merged", "--jobs", "1", "--quiet")
    assert said.code == 0
    assert "## qa-en" in said.out
    assert "| merged, not pruned, fine-tuned (`merged`)" in said.out
    said = cli("compare", "--config", str(file), "--methods", "zero_shot,merged", "--resume", "--json", "--quiet")
    assert [row["row"] for row in json.loads(said.out)["cells"][0]["rows"]] == ["zero_shot", "merged"]
    assert cli("compare", "--config", str(file), "--methods", "nothing").code == 2
    said = cli("compare", "--config", str(file), "--methods", "ties,ties")
    assert (said.code, "named twice: ties" in said.error) == (2, True)
    said = cli("compare", "--config", str(file), "--jobs", "3", "--print-config")
    assert "jobs: 3" in said.out
    wild = world.file("w.yaml", run__dir=world.root / "wild", evaluate__metrics=["loss"],
                      compare={"lrs": [0.01], "methods": ["zero_shot", "merged"], "variants": [WILD]})  # fmt: skip
    said = cli("compare", "--config", str(wild), "--quiet")
    assert said.code == TrainingError.exit_code
    assert "## Failed" in said.out


def test_without_a_folder_of_its_own_it_has_a_default():
    assert compare_config(Config()).run.dir == "runs/compare"


# --- the paper's numbers ----------------------------------------------------------------------------------------


def test_the_papers_numbers_stand_beside_ours_only_in_its_setting(whole):
    _, done, _ = whole
    records = copy.deepcopy(done.records) | {
        "model": "meta-llama/Meta-Llama-3-8B-Instruct",
        "lora": {"r": 8, "alpha": 32.0},
    }
    cell = records["cells"][0]
    cell |= {"language": "ar", "examples": 100}
    assert same_setting(records, cell)
    shown = tables(records)
    assert "| paper / here | bertscore_raw | em | f1 |" in shown
    assert f"| TIES | 67.19 / - | 2.00 / - | 13.28 / {cell['rows'][3]['scores']['f1']['mean']:.2f} |" in shown
    for change in ({"examples": 99}, {"language": "en"}, {"task": "summarization", "language": "en"}):
        assert not same_setting(records, cell | change)
    assert not same_setting(records | {"lora": {"r": 16, "alpha": 32.0}}, cell)
    assert not same_setting(records | {"model": "Llama-3-8B"}, cell)
