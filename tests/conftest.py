"""Shared by all tests: one thread, so that parallel workers do not fight for cores, and no deadlines."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)
