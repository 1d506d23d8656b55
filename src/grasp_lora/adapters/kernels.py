"""Where Triton kernels run."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib.util import find_spec

import torch

from ..errors import first_line

# What Triton raises where it finds no C compiler, no header of Python or no driver, apart from errors of its own.
_BROKEN = (RuntimeError, subprocess.SubprocessError, ImportError, OSError, AssertionError)


def kernels_run(device: torch.device) -> bool:
    """Return whether our Triton kernels run there.

    They do on a GPU with bfloat16 tensor cores where Triton can compile, and on a CPU in Triton's own interpreter.
    """
    return why_not(device) is None


def kernels_fit(device: torch.device) -> bool:
    """Return whether they should run there, by what is installed and the GPU's age alone: it compiles nothing."""
    return _why_unfit(device, os.environ.get("TRITON_INTERPRET") == "1") is None


def why_not(device: torch.device) -> str | None:
    """Return why our Triton kernels do not run there, as the end of a sentence; None: they do.

    The first question about a device compiles and runs a kernel of one number.
    """
    if device == torch.device("cuda"):  # the current one
        device = torch.device("cuda", torch.cuda.current_device())
    try:
        return _why_not(device, os.environ.get("TRITON_INTERPRET") == "1")
    except torch.OutOfMemoryError:  # says nothing about Triton: the next question is another trial
        return "the GPU's memory is full"


@cache
def _why_not(device: torch.device, interpreted: bool) -> str | None:
    unfit = _why_unfit(device, interpreted)
    return _trial(device) if unfit is None and device.type == "cuda" else unfit


def _why_unfit(device: torch.device, interpreted: bool) -> str | None:
    """Return what rules kernels out before one is tried."""
    if find_spec("triton") is None:
        return "Triton is missing"
    if device.type != "cuda":
        return None if interpreted else f"Triton compiles nothing for {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU is too old (compute capability {capability[0]}.{capability[1]}, kernels need 8.0)"
    return None


def _trial(device: torch.device) -> str | None:
    """Return what keeps Triton from compiling and running a kernel there; raises OutOfMemoryError for no memory."""
    try:
        from .triton_trial import TritonError, add_one
    except _BROKEN as broken:
        return f"Triton cannot be imported here: {first_line(broken)}"
    try:
        add_one(number := torch.zeros(1, device=device))
        right = number.item() == 1.0  # waits for the kernel
    except torch.OutOfMemoryError:
        raise
    except (*_BROKEN, TritonError) as broken:
        return f"Triton cannot compile here: {first_line(broken)}"
    return None if right else "Triton's kernels compute wrong numbers here"
