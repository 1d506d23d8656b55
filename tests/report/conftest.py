"""A finished synthetic run, read once, and copies of it that a test may change."""

import shutil

import pytest

from grasp_lora.report.content import run_content
from grasp_lora.report.records import read_run
from report.synthetic import write_run


@pytest.fixture(scope="session")
def kept_run(tmp_path_factory):
    """A finished run; nobody writes into it."""
    return write_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="session")
def record(kept_run):
    return read_run(kept_run)


@pytest.fixture(scope="session")
def content(record):
    return run_content(record, "run1", "one")


@pytest.fixture
def run(kept_run, tmp_path):
    """A copy of the finished run that the test may change."""
    return shutil.copytree(kept_run, tmp_path / "one")
