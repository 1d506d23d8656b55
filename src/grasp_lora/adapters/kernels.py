"""Where Triton kernels run."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch


def kernels_run(device: torch.device) -> bool:
    """Return whether our Triton kernels run there.

    They do on a GPU with bfloat16 tensor cores and Triton, and on a CPU in Triton's own interpreter.
    """
    if find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return os.environ.get("TRITON_INTERPRET") == "1"
