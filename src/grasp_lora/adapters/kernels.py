"""Where Triton kernels run."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch


def kernels_run(device: torch.device) -> bool:
    """Return whether Triton kernels run there: on a GPU with Triton, or on a CPU in Triton's own interpreter."""
    return (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and find_spec("triton") is not None
