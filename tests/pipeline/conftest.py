"""Fixtures of the pipeline's tests: a pico model on disk, a world of splits, and the command line in this process."""

import os
import sys
from dataclasses import dataclass

import pytest
from transformers.utils import logging
from world import World, write_model

from grasp_lora import cli as package


@pytest.fixture(scope="session", autouse=True)
def _no_bars():
    """In a process of its own the command line keeps these bars away before transformers is imported."""
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "pico-llama")


@pytest.fixture
def world(tmp_path, pico_folder):
    return World(tmp_path, pico_folder)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def error(self):
        """The one message of a failure: what stands behind `error: `."""
        assert "Traceback" not in self.err
        assert self.err.count("error: ") == 1, self.err
        return self.err.partition("error: ")[2].strip()


@pytest.fixture
def cli(monkeypatch, capsys):
    """`cli("run", "--config", file)` as the entry point runs it: exit code, standard output and error."""
    before = dict(os.environ)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["grasp-lora", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            package.main()
        said = capsys.readouterr()
        return Said(ended.value.code or 0, said.out, said.err)

    yield call
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def no_weights(monkeypatch):
    """Fail the test when the base model's weights are loaded."""

    def refuse(_config):
        raise AssertionError("the base model was loaded")

    for module in ("stages", "answering"):
        monkeypatch.setattr(f"grasp_lora.pipeline.{module}.load_base", refuse)
