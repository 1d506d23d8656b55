"""A run that is stopped or killed anywhere and goes on ends with the same bits."""

import json
import os
import signal

import pytest
from world import RIVALS, World, lines, tree_bytes

from grasp_lora.errors import ConfigError, Interrupted, RunError
from grasp_lora.pipeline import keeping, opening, scoring, stageio, stages, story
from grasp_lora.pipeline.story import run_pipeline
from grasp_lora.runs import InterruptFlag, RunFolder

CHANGES = {
    "evaluate__rivals": RIVALS,
    "run__checkpoint_every": 2,
    "train_source__dropout": 0.2,
    "prune__importance": "sensitivity",
    "finalize__mask": "dynamic",
}


class SimulatedCrash(BaseException):
    """Nothing in the package catches it, as nothing catches a power cut."""


class StopAfter(InterruptFlag):
    """A stop request that is there from the n-th time on that it is asked for."""

    def __init__(self, polls):
        self.polls, self.left = 0, polls
        super().__init__()

    @property
    def requested(self):
        self.polls += 1
        return self.polls > self.left

    @requested.setter
    def requested(self, _value):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pico_folder):
    """The uninterrupted run, and how often it asked whether to stop."""
    world = World(tmp_path_factory.mktemp("whole"), pico_folder)
    flag = StopAfter(10**9)
    with pytest.MonkeyPatch.context() as patch:
        stops_with(patch, flag)
        run_pipeline(world.config(**CHANGES))
    return world, flag.polls


def stops_with(monkeypatch, flag):
    class Caught:
        def __enter__(self):
            return flag

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(opening, "graceful_interrupt", lambda _told: Caught())


def same(left, right):
    """Results, histories, logs (without times), predictions and exports are equal to the bit."""
    ours, theirs = tree_bytes(left.root / "run"), tree_bytes(right.root / "run")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(("events.jsonl", "history.jsonl")):
            rows = [[{k: v for k, v in row.items() if k != "time"} for row in lines(w.root / "run" / name)]
                    for w in (left, right)]  # fmt: skip
            assert rows[0] == rows[1], name
            assert rows[0]
        elif name not in {"manifest.json", "config.yaml"}:
            assert ours[name] == theirs[name], name


@pytest.mark.parametrize("share", [0.02, 0.45, 0.95])
def test_stopped_anywhere_and_resumed(share, whole, world, monkeypatch):
    expected, polls = whole
    config = world.config(**CHANGES)
    stops_with(monkeypatch, StopAfter(int(share * polls)))
    with pytest.raises(Interrupted, match="--resume"):
        run_pipeline(config)
    stops_with(monkeypatch, StopAfter(10**9))
    run_pipeline(config, resume=True)
    same(world, expected)


def test_stopped_again_and_again(whole, world, monkeypatch):
    expected, polls = whole
    config, tries, resume = world.config(**CHANGES), 0, False
    while True:
        tries += 1
        stops_with(monkeypatch, StopAfter(polls // 9))
        try:
            run_pipeline(config, resume=resume)
            break
        except Interrupted:
            resume = True
    assert tries > 5
    same(world, expected)


def test_terminated_before_every_stage_in_turn(whole, world, monkeypatch):
    """A real SIGTERM, as a scheduler sends it, when each stage begins for the first time."""
    begun, begin = [], stages.begin

    def terminate(run, stage, **made_from):
        if stage.name not in begun:
            begun.append(stage.name)
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(run, stage, **made_from)

    for module in (stages, keeping, scoring, story):
        monkeypatch.setattr(module, "begin", terminate)
    handlers, told, resume = signal.getsignal(signal.SIGTERM), [], False
    while True:
        try:
            run_pipeline(world.config(**CHANGES), resume=resume)
            break
        except Interrupted as stopped:
            told.append(str(stopped))
            resume = True
    assert told == [f"stopped before {name}; what is done is kept. Go on with --resume." for name in begun]
    assert begun[:4] == ["source_adapter", "target_adapter", "search", "finalize"]
    assert {"keep", "export", *(f"evaluate_{name}" for name in (*RIVALS, "grasp"))} <= set(begun)
    assert signal.getsignal(signal.SIGTERM) is handlers
    same(world, whole[0])


@pytest.mark.parametrize("moment", ["write_manifest", "stage"])
def test_killed_right_after_the_folder_was_made(moment, whole, world, monkeypatch):
    def crash(*_args, **_settings):
        raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, moment, crash)
        with pytest.raises(SimulatedCrash):
            run_pipeline(world.config(**CHANGES))
    run_pipeline(world.config(**CHANGES), resume=True)
    same(world, whole[0])


@pytest.mark.parametrize(("stage", "step"), [("source_adapter", 1), ("search", 5), ("finalize", 5)])
def test_killed_between_checkpoints(stage, step, whole, world, monkeypatch):
    log = stageio.StageIO._log

    def crash(self, kind, values):
        log(self, kind, values)
        if self.name == stage and values.get("step") == step:
            raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(stageio.StageIO, "_log", crash)
        with pytest.raises(SimulatedCrash):
            run_pipeline(world.config(**CHANGES))
    events = lines(world.root / "run" / "stages" / stage / "events.jsonl")
    assert events[-1]["step"] == step
    run_pipeline(world.config(**CHANGES), resume=True)
    same(world, whole[0])


def test_killed_while_the_export_is_written(whole, world, monkeypatch):
    def crash(*_args, **_settings):
        raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr("grasp_lora.pipeline.export.save_sparse", crash)
        with pytest.raises(SimulatedCrash):
            run_pipeline(world.config(**CHANGES))
    run_pipeline(world.config(**CHANGES), resume=True)
    same(world, whole[0])


def test_a_finished_run_resumes_to_itself(whole):
    world, _ = whole
    before = tree_bytes(world.root / "run")
    run_pipeline(world.config(**CHANGES), resume=True)
    assert tree_bytes(world.root / "run") == before


def test_another_configuration_is_refused_with_the_list(whole):
    world, _ = whole
    before = tree_bytes(world.root / "run")
    with pytest.raises(RunError) as refused:
        run_pipeline(world.config(**{**CHANGES, "search__lr": 0.5, "seed": 1}), resume=True)
    message = str(refused.value)
    assert "seed: 42 in the run, 1 now" in message
    assert "search.lr: 0.02 in the run, 0.5 now" in message
    assert "finalize" not in message
    assert tree_bytes(world.root / "run") == before


def test_changed_inputs_are_refused(world):
    config = world.config(data__target__test=None, evaluate__rivals=["zero_shot"])
    run_pipeline(config)
    before = tree_bytes(world.root / "run")
    path = world.data / "dev.jsonl"
    path.write_text(path.read_text().replace("dev2", "Dev2"))
    with pytest.raises(RunError, match=r"data\.target\.dev: content \w{12} in the run, \w{12} now"):
        run_pipeline(config, resume=True)
    assert tree_bytes(world.root / "run") == before


def test_where_a_run_is_kept_may_change(world):
    config = world.config(data__target__test=None)
    run_pipeline(config)
    (world.root / "run").rename(world.root / "moved")
    moved = world.config(data__target__test=None, run__dir=world.root / "moved", run__checkpoint_every=7)
    assert run_pipeline(moved, resume=True).folder == world.root / "moved"


def test_overwrite_replaces_and_never_mixes(world, tmp_path):
    config = world.config(data__target__test=None)
    run_pipeline(config)
    run_pipeline(world.config(data__target__test=None, seed=3), overwrite=True)
    assert json.loads((world.root / "run" / "manifest.json").read_text())["seeds"]["run"] == 3
    with pytest.raises(ConfigError, match="one of them"):
        run_pipeline(config, resume=True, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="not a run folder"):
            run_pipeline(world.config(run__dir=other), overwrite=overwrite)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_resume_needs_a_run(world):
    with pytest.raises(RunError, match="does not exist"):
        run_pipeline(world.config(), resume=True)
    assert not (world.root / "run").exists()
