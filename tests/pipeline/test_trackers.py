"""Runs that report to experiment trackers: what TensorBoard's own reader finds, and what a missing package says."""

from __future__ import annotations

import importlib.util
import json

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from world import lines

from grasp_lora.runs import QuietProgress, TrackedProgress


@pytest.fixture
def recorded(world, cli):
    """A whole run's TensorBoard values: tag -> [(step, value)], in the run folder."""
    said = cli("run", "--config", world.file(), "--quiet", "--report-to", "tensorboard")
    assert said.code == 0, said.err
    accumulator = EventAccumulator(str(world.root / "run" / "trackers" / "run"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tensorboard_has_the_losses_and_the_rounds_of_a_run(world, recorded):
    stages = world.root / "run" / "stages"
    steps = [event for event in lines(stages / "search" / "events.jsonl") if event["kind"] == "step"]
    assert recorded["search/loss"] == [(event["step"], pytest.approx(event["loss"])) for event in steps]
    assert [step for step, _ in recorded["search/lr"]] == [event["step"] for event in steps]
    rounds = lines(stages / "search" / "history.jsonl")
    for name, value in {"ratio": "p", "sigma": "std", "mean": "mean"}.items():
        expected = [(row["step"], pytest.approx(row["after"][value])) for row in rounds]
        assert recorded[f"search/{name}"] == expected
    assert recorded["search/density"] == [(row["step"], pytest.approx(row["density"])) for row in rounds]
    assert recorded["search/reward_best"] == [
        (row["step"], pytest.approx(max(row["rewards"]), abs=1e-6)) for row in rounds
    ]
    assert recorded["search/reward_2"] == [(row["step"], pytest.approx(row["rewards"][1], abs=1e-6)) for row in rounds]
    assert recorded["search/strength"] == [(row["step"], pytest.approx(row["applied"][1])) for row in rounds]
    epochs = [event for event in lines(stages / "finalize" / "events.jsonl") if event["kind"] == "epoch"]
    assert [value for _, value in recorded["finalize/dev_loss"]] == [pytest.approx(e["dev_loss"]) for e in epochs]
    assert len(recorded["search/p_star"]) == 1
    assert {"source_adapter/loss", "target_adapter/dev_loss"} <= recorded.keys()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
@pytest.mark.parametrize("command", ["run", "search", "train-adapter", "finalize"])
def test_a_missing_tracker_says_how_to_install_it_and_nothing_is_written(name, command, world, cli, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted, *rest: None if wanted == name else find(wanted, *rest)
    )
    said = cli(command, "--config", world.file(), "--report-to", name)
    assert said.code == 8
    assert said.error == (
        f"run.report_to={name} needs the package `{name}`, which is not installed. Install it with: "
        f"pip install 'grasp-lora[{name}]'"
    )
    assert not (world.root / "run").exists()


def test_an_unknown_tracker(world, cli):
    said = cli("run", "--config", world.file(), "--report-to", "tensorbord")
    assert said.code == 2
    assert "run.report_to" in said.error


def test_nothing_is_tracked_unless_asked(world, cli):
    assert cli("train-adapter", "--config", world.file(), "--quiet").code == 0
    assert not (world.root / "run" / "trackers").exists()


class Kept:
    """A tracker with the interface of accelerate's."""

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, []

    def log(self, values, step=None):
        self.rows.append((values, step))


def test_trackers_with_steps_of_their_own_get_the_step_as_a_value():
    wandb, mlflow = Kept("wandb"), Kept("mlflow")
    progress = TrackedProgress(QuietProgress(), [wandb, mlflow])
    with progress.stage("source adapter", 3) as task:
        task.event("step", {"step": 1, "loss": 2.0})
        task.event("epoch", {"epoch": 0, "dev_loss": 1.5})
    assert mlflow.rows == [
        ({"source_adapter/loss": 2.0}, 1),
        ({"source_adapter/epoch": 0, "source_adapter/dev_loss": 1.5}, 1),
    ]
    assert wandb.rows[0] == ({"source_adapter/loss": 2.0, "source_adapter/step": 1}, None)


class Talkative:
    """A tracker that greets on standard output, as some do."""

    name = "trackio"

    def __init__(self, project: str, **settings: str) -> None:
        self.project = project

    def start(self):
        print("welcome to", self.project)  # noqa: T201

    def store_init_configuration(self, values):
        assert values["task.language"] == "en"
        assert all(isinstance(value, (int, float, str)) for value in values.values())

    def log(self, values, step=None):
        assert step is None

    def finish(self):
        print("good-bye")  # noqa: T201


def test_a_talkative_tracker_leaves_standard_output_to_the_results(world, cli, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find("json" if name == "trackio" else name, *rest)
    )
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", Talkative)
    said = cli("train-adapter", "--config", world.file(), "--report-to", "trackio", "--json", "--quiet")
    assert json.loads(said.out)["steps"] == 4
    assert said.err.splitlines() == ["welcome to grasp-lora", "good-bye"]
