"""The smallest kernel, to find out whether Triton can compile. Imported where Triton is there only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

__all__ = ["TritonError", "add_one"]


@triton.jit
def _add_one_kernel(x):
    tl.store(x, tl.load(x) + 1.0)


def add_one(x: Tensor) -> None:
    """Add one to the first number of `x`, in place."""
    with torch.cuda.device_of(x):  # Triton launches on the current GPU
        _add_one_kernel[(1,)](x)
