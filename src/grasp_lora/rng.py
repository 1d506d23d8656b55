"""Own random generators, derived by name from one seed; the global state of torch, numpy and random is never read.

Two streams with different names are independent, so adding a consumer never changes what another one draws.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and a simulated controller never needs it
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every name, by SHA-256; stable across machines."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU `torch.Generator` for the named stream; draws are made on the CPU so that every device agrees."""
    import torch

    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a `numpy.random.Generator` (PCG64) for the named stream."""
    return np.random.default_rng(derive_seed(seed, *names))


@contextmanager
def forked_global_state(seed: int, *names: str | int) -> Iterator[None]:
    """Run a block under a global torch state seeded from the named stream, and put the old state back afterwards.

    For the few library functions that take no generator (dropout); gradient checkpointing restores only the global
    state, so forward and backward both belong inside the block.
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *names))
        yield


@contextmanager
def forked_numpy_state(seed: int, *names: str | int) -> Iterator[None]:
    """Run a block under global states of NumPy and `random` seeded from the named stream, and put the old ones back.

    For libraries that draw from them beside the generator they are given.
    """
    before = np.random.get_state(), random.getstate()  # noqa: NPY002 - the state in question
    np.random.seed(derive_seed(seed, *names) % 2**32)  # noqa: NPY002
    random.seed(derive_seed(seed, *names))
    try:
        yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])
