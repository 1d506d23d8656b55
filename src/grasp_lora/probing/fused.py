"""Layers whose rotations and gated activations run in one Triton kernel each, where that computes the same.

As with norms, a class of modules qualifies by what it computes on a made-up input, not by its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.kernels import kernels_run, why_not
from .layers import TOLERANCE, Overrides, agrees

_ROTATION = "apply_rotary_pos_emb"
Rotation = Callable[..., tuple[Tensor, Tensor]]


def fuse_layers(model: nn.Module) -> Overrides:
    """Let feed-forward blocks and attention of `model` use fused kernels until the result is removed.

    Blocks qualify that compute `down(silu(gate(x)) * up(x))`; attention does whose code calls `apply_rotary_pos_emb`
    on halves, and keeps all else of its own code. Models in float64 keep everything, since kernels compute in float32.
    A GPU where Triton is missing or cannot compile (or of before 2020) keeps everything too, and a warning says why.
    """
    overrides = Overrides()
    weight = next(model.parameters(), None)
    if weight is None or weight.dtype not in TOLERANCE:
        return overrides
    if not kernels_run(weight.device):
        if weight.device.type == "cuda":
            reason = why_not(weight.device)
            warnings.warn(f"speed.fused_kernels: layers run as they are, since {reason}.", stacklevel=3)
        return overrides
    blocks, rotations = dict[type, bool](), dict[type, FunctionType | None]()
    for module in model.modules():
        kind = type(module)
        if "forward" in vars(module):  # somebody else's, such as accelerate's, which moves inputs between devices
            continue
        if kind.__name__.endswith("MLP"):
            if kind not in blocks:
                blocks[kind] = _is_gated(module, weight.dtype)
            if blocks[kind]:
                overrides.set(module, MethodType(_gated_block, module))
        elif kind.__name__.endswith("Attention"):
            if kind not in rotations:
                rotations[kind] = _with_fused_rotation(kind, weight)
            if (forward := rotations[kind]) is not None:
                overrides.set(module, MethodType(forward, module))
    return overrides


def _gated_block(module: Any, hidden: Tensor) -> Tensor:
    """Run a gated feed-forward block; whatever hooks its projections have, run too."""
    gate, up = module.gate_proj(hidden), module.up_proj(hidden)
    if gate.dtype == up.dtype and _known(gate) and gate.is_contiguous() and up.is_contiguous():
        from .triton_kernels import gated

        inner = gated(gate, up)
    else:
        inner = nn.functional.silu(gate) * up
    result: Tensor = module.down_proj(inner)
    return result


def _known(x: Tensor) -> bool:
    """Return whether kernels take a tensor: a part of the model may be on another device."""
    return x.dtype in TOLERANCE and kernels_run(x.device)


@torch.no_grad()
def _is_gated(module: Any, dtype: torch.dtype) -> bool:
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not all(isinstance(part, nn.Linear) for part in (gate, up, down)):
        return False
    # A quantized weight has another shape than its matrix, and one on the meta device is loaded when it is needed.
    width, device = module.gate_proj.in_features, module.gate_proj.weight.device
    if device.type == "meta":
        return False
    made_up = torch.linspace(-2.0, 3.0, 2 * width, device=device).to(dtype).view(1, 2, -1)
    return agrees(_gated_block(module, made_up), type(module).forward(module, made_up))


def _with_fused_rotation(kind: type, weight: Tensor) -> FunctionType | None:
    """Return the class's own `forward` with another function under the name of its rotation; None: it does not fit."""
    forward = vars(kind).get("forward")
    if not isinstance(forward, FunctionType) or _ROTATION not in forward.__code__.co_names:
        return None
    plain = forward.__globals__.get(_ROTATION)
    if not callable(plain) or not _rotates_halves(plain, weight):
        return None
    fused = FunctionType(
        forward.__code__,
        {**forward.__globals__, _ROTATION: partial(_rotate, plain)},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    fused.__kwdefaults__ = forward.__kwdefaults__
    return fused


def _rotate(plain: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **more: Any) -> Any:
    """Rotate queries and keys (B, H, T, D); what the kernel does not know goes the plain way."""
    known = not rest and not more and cos.dim() == 3 and cos.dtype == q.dtype == k.dtype and _known(q)
    shape = (*q.shape[-2:-1], q.shape[-1]) == cos.shape[1:] and len(cos) in (1, len(q)) and q.shape[-1] % 2 == 0
    if not known or not shape or cos.stride() != sin.stride() or cos.stride(-1) != 1 or cos.requires_grad:
        return plain(q, k, cos, sin, *rest, **more)
    from .triton_kernels import turned

    return turned(q, cos, sin), turned(k, cos, sin)


@torch.no_grad()
def _rotates_halves(plain: Rotation, weight: Tensor) -> bool:
    """Return whether a function rotates made-up queries and keys as the kernel does."""
    q, k = (torch.linspace(-1.0, 2.0, heads * 3 * 8, device=weight.device).view(1, heads, 3, 8) for heads in (4, 2))
    angles = torch.linspace(0.0, 2.0, 3 * 8, device=weight.device).view(1, 3, 8)
    given = [tensor.to(weight.dtype) for tensor in (q, k, angles.cos(), angles.sin())]
    try:
        wanted = plain(*given)
    except (TypeError, RuntimeError, IndexError, ValueError):  # it takes other things
        return False
    found = _rotate(plain, *given)
    return all(agrees(one, other) for one, other in zip(found, wanted, strict=True))
