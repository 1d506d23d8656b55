"""Where Triton kernels run."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch


def kernels_run(device: torch.device) -> bool:
    """Return whether our Triton kernels run there.

    They do on a GPU with bfloat16 tensor cores and Triton, and on a CPU in Triton's own interpreter.
    """
    return _run(device, os.environ.get("TRITON_INTERPRET") == "1")


@cache
def _run(device: torch.device, interpreted: bool) -> bool:
    if find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else interpreted
