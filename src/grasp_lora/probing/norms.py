"""RMS norms by PyTorch's own kernel: one launch where the layers' code has eight, and no float32 copies in between.

It rounds once, at the end, where transformers rounds before it multiplies by the weight too.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .layers import TOLERANCE, Overrides, agrees


def fuse_norms(model: nn.Module) -> Overrides:
    """Let every plain RMS norm of `model` run in one kernel until the result is removed.

    A class of norms qualifies by what it computes: the same as the kernel on a made-up input, with the weights of its
    first module. In float64 none does, since transformers computes its norms in float32 at most.
    """
    overrides, known = Overrides(), dict[type, bool]()
    for module in model.modules():
        if not type(module).__name__.endswith("RMSNorm"):
            continue
        if type(module) not in known:
            known[type(module)] = _is_plain(module)
        if known[type(module)]:
            overrides.set(module, MethodType(_fused, module))
    return overrides


def _epsilon(module: nn.Module) -> float | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


def _fused(module: Any, hidden: Tensor) -> Tensor:
    weight: Tensor = module.weight
    if weight.dtype != hidden.dtype:
        plain: Tensor = type(module).forward(module, hidden)
        return plain
    return nn.functional.rms_norm(hidden, weight.shape, weight, _epsilon(module))


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in TOLERANCE or _epsilon(module) is None:
        return False
    if weight.device.type == "meta":
        return False
    made_up = torch.linspace(-2.0, 3.0, weight.numel(), device=weight.device).to(weight.dtype).expand(1, 2, -1)
    return agrees(_fused(module, made_up), type(module).forward(module, made_up))
