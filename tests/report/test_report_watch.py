"""Following a run by its folder: what is shown while it works, and when the following ends."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from grasp_lora.errors import RunError
from grasp_lora.report.state import expected_stages, read_state
from grasp_lora.report.watch import POLL, line, view, watch
from grasp_lora.runs.lock import LOCK_FILE, FolderLock, who_works
from report.synthetic import STEPS, write_run


def at_work(run, stage="finalize", steps=30):
    """Make the run one that is at `steps` of a stage."""
    folder = run / "stages" / stage
    (folder / "result.json").unlink()
    (run / "results.json").unlink()
    path = folder / "events.jsonl"
    events = [json.loads(text) for text in path.read_text().splitlines()]
    kept = [e for e in events if e.get("step", 0) <= steps and ("step" in e or e.get("epoch", 0) < steps // 20)]
    kept = [e | {"seq": n, "time": {"unix": 1000.0 + 2 * e.get("step", 20)}} for n, e in enumerate(kept)]
    path.write_text("".join(json.dumps(e) + "\n" for e in kept))
    return run


def owned(run, pid, machine=None):
    import socket

    (run / LOCK_FILE).write_text(json.dumps({"pid": pid, "machine": machine or socket.gethostname()}))
    return run


class Time:
    """Sleeping runs the next of `then`, so that a test decides what happens between two looks."""

    def __init__(self, *then):
        self.then, self.slept = list(then), []

    def sleep(self, seconds):
        self.slept.append(seconds)
        if self.then:
            self.then.pop(0)()

    def clock(self):
        return 1070.0 + sum(self.slept)


def plain():
    return Console(file=io.StringIO(), width=200)


def test_who_works_is_read_and_not_locked(run):
    assert who_works(run) == "nobody"
    with_lock = FolderLock(run)
    assert who_works(run) == "here"
    with_lock.release()
    assert who_works(run) == "nobody"
    assert who_works(owned(run, 1, "elsewhere")) == "elsewhere"
    (run / LOCK_FILE).unlink()
    assert who_works(run) == "nobody"


def test_a_killed_owner_is_nobody(run):
    ended = subprocess.Popen([sys.executable, "-c", ""])  # no fork: since Python 3.12 it warns where there are threads
    ended.wait()
    assert who_works(owned(run, ended.pid)) == "nobody"


def test_the_state_of_a_run_at_work(run):
    state = read_state(owned(at_work(run), os.getpid()))
    assert (state.status, state.owner, state.current) == ("running", "here", "finalize")
    assert (state.step, state.total) == (30, STEPS)
    assert state.values == {"loss": pytest.approx(0.1), "dev loss": pytest.approx(1.2)}
    assert state.left == pytest.approx(2.0 * (STEPS - 30))
    assert state.last_event == 1060.0
    assert {stage.name: stage.status for stage in state.stages}["evaluate_grasp"] == "done"
    assert {stage.name: stage.status for stage in state.stages}["target_adapter"] == "waiting"
    assert "30/60" in line(state, 1062.0)
    assert "ago" not in line(state, 1062.0)
    assert "last event 1:20 min ago" in line(state, 1140.0)


def test_a_search_shows_ratio_and_spread(run):
    state = read_state(owned(at_work(run, "search"), os.getpid()))
    after = [json.loads(row) for row in (run / "stages/search/history.jsonl").read_text().splitlines()][-1]["after"]
    assert (state.values["ratio"], state.values["sigma"]) == (after["p"], after["std"])
    assert f"sigma {after['std']:.4f}" in line(state, 1062.0)


def test_a_search_of_several_coordinates_shows_where_each_stands(tmp_path):
    run = write_run(tmp_path / "run", policy="ratio_strength")
    state = read_state(owned(at_work(run, "search"), os.getpid()))
    last = [json.loads(row) for row in (run / "stages/search/history.jsonl").read_text().splitlines()][-1]
    assert (state.values["ratio"], state.values["strength"]) == (last["after"]["p"], last["applied"][1])


def test_the_stages_expected_are_those_that_a_run_makes():
    config = {"adapters": {"source": "x"}, "data": {"target": {"test": "t"}},
              "evaluate": {"rivals": ["target", "sequential", "merged"], "deployment": True}}  # fmt: skip
    assert expected_stages(config) == [
        "target_adapter", "search", "finalize", "evaluate_target", "rival_sequential", "evaluate_sequential",
        "rival_merged", "evaluate_merged", "evaluate_grasp", "export", "deployment",
    ]  # fmt: skip
    assert expected_stages({})[-1] == "export"


def test_watching_ends_when_the_run_is_finished(run):
    console, results = plain(), (run / "results.json").read_text()
    owned(at_work(run), os.getpid())

    def finish():
        (run / "stages" / "finalize" / "result.json").write_text("{}")
        (run / "results.json").write_text(results)
        (run / LOCK_FILE).write_text("")

    time = Time(lambda: None, finish)
    state = watch(run, console, sleep=time.sleep, clock=time.clock)
    assert state.status == "finished"
    assert time.slept == [POLL, POLL]
    shown = console.file.getvalue().splitlines()
    assert len(shown) == 2  # nothing changed between the first two looks
    assert shown[0].startswith("final run  30/60  loss 0.1000  dev loss 1.2000  1:00 min left at most")
    assert shown[1] == "one  the run is finished"


def test_watching_ends_when_nobody_works_any_more_but_not_at_the_first_glance(run):
    console = plain()
    owned(at_work(run), os.getpid())
    vanish = lambda: (run / LOCK_FILE).write_text("")  # noqa: E731
    time = Time(vanish, lambda: owned(run, os.getpid()), vanish)
    state = watch(run, console, sleep=time.sleep, clock=time.clock)
    assert (state.status, state.current) == ("stopped", "finalize")
    assert len(time.slept) == 4
    assert "go on with --resume" in console.file.getvalue().splitlines()[-1]


def test_a_terminal_sees_stages_bar_and_ending(run):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    time = Time()
    watch(at_work(run), console, sleep=time.sleep, clock=time.clock)
    shown = console.file.getvalue()
    for words in ("one: stopped", "✓ search", "■ final run", "· target adapter", "30/60", "loss 0.1000"):
        assert words in shown
    assert time.slept == []


def test_what_is_no_run_cannot_be_watched(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        watch(tmp_path, plain())


def test_a_run_before_its_first_stage(tmp_path):
    run = write_run(tmp_path / "run", {})
    import shutil

    shutil.rmtree(run / "stages")
    (run / "results.json").unlink()
    state = read_state(owned(run, os.getpid()))
    assert (state.current, state.step, state.values) == (None, None, {})
    console = plain()
    console.print(view(state, 0.0))
    assert "run: running" in console.file.getvalue()
