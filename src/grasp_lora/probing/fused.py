"""Layers whose rotations and gated activations run in one Triton kernel each, where that computes the same.

As with norms, modules qualify by what they compute on a made-up input, not by their names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from functools import partial
from inspect import unwrap
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.kernels import kernels_run, why_not
from .layers import TOLERANCE, Overrides, agrees

_ROTATION = "apply_rotary_pos_emb"
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}  # what every module has, hooks and weights among it
_MISFIT = (TypeError, RuntimeError, IndexError, ValueError)  # of code that takes other things
Rotation = Callable[..., tuple[Tensor, Tensor]]


def fuse_layers(model: nn.Module) -> Overrides:
    """Let feed-forward blocks and attention of `model` use fused kernels until the result is removed.

    Blocks qualify that compute `down(silu(gate(x)) * up(x))`, in training too; attention does whose code calls
    `apply_rotary_pos_emb` on halves, and keeps all else of its own code. Models in float64 keep everything, since
    kernels compute in float32. A GPU where Triton is missing or cannot compile (or of before 2020) keeps everything
    too, and a warning says why.
    """
    overrides = Overrides()
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if weight is None or weight.dtype not in TOLERANCE:
        return overrides
    if not kernels_run(weight.device):
        if weight.device.type == "cuda":
            reason = why_not(weight.device)
            warnings.warn(f"speed.fused_kernels: layers run as they are, since {reason}.", stacklevel=3)
        return overrides
    rotations, blocks = dict[type, FunctionType | None](), dict[Hashable, bool]()
    for module in model.modules():
        kind = type(module)
        if "forward" in vars(module):  # somebody else's, such as accelerate's, which moves inputs between devices
            continue
        if kind.__name__.endswith("MLP"):
            if _qualifies(module, weight.dtype, blocks):  # activations may differ from layer to layer
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


def _qualifies(module: nn.Module, dtype: torch.dtype, known: dict[Hashable, bool]) -> bool:
    """Return whether a block computes what `_gated_block` does; of blocks that are alike, the first is tried out.

    A mixture of experts has thousands of them, and each trial waits for the GPU.
    """
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in _PROJECTIONS):
        return False
    key = _likeness(module)
    if key is not None and key in known:
        return known[key]
    found = _is_gated(module, dtype)
    if key is not None and found is not None:
        known[key] = found
    return bool(found)


def _likeness(block: nn.Module) -> Hashable | None:
    """Return what blocks have in common that differ in the weights of their projections alone; None: none do.

    Values that are not plain count as the same where they are the same object, as the configuration is. A block with
    other weights than those, such as a scale, is like no other, nor is one with hooks inside beside its projections.
    """
    found: list[Hashable] = []
    for name, part in block.named_modules():
        hooked = bool(part._forward_hooks or part._forward_pre_hooks)
        if name in _PROJECTIONS:
            weight, bias = part.weight, part.bias is not None
            found.append((name, type(part), weight.dtype, weight.device, bias, hooked, "forward" in vars(part)))
        elif name.partition(".")[0] not in _PROJECTIONS:
            if part._parameters or part._buffers or (hooked and part is not block):
                return None
            own = {key: value for key, value in vars(part).items() if key not in _INTERNAL}
            found.append((name, type(part), *((key, _plain(value)) for key, value in own.items())))
    return tuple(found)


def _plain(value: object) -> Hashable:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return type(value), value if plain else id(value)


@torch.no_grad()
def _is_gated(module: Any, dtype: torch.dtype) -> bool | None:
    """Return whether a block of a model in `dtype` computes what `_gated_block` does; None: its weights do not show."""
    if _differs_in_training(module):
        return False
    # A quantized weight has another shape and dtype than its matrix; one on the meta device is loaded when needed.
    weight, width = module.gate_proj.weight, module.gate_proj.in_features
    dtype = weight.dtype if weight.is_floating_point() else dtype
    if dtype not in TOLERANCE or weight.device.type == "meta":
        return False
    made_up = torch.linspace(-2.0, 3.0, 2 * width, device=weight.device).to(dtype).view(1, 2, -1)
    try:
        found, wanted = _gated_block(module, made_up), type(module).forward(module, made_up)
        shows = isinstance(wanted, Tensor) and bool(0.0 < wanted.abs().max() < torch.inf)
        return agrees(found, wanted) if shows else None
    except _MISFIT:
        return False


def _differs_in_training(module: nn.Module) -> bool:
    """Return whether code or parts of a block speak of dropout or of training, which no trial shows reliably."""
    own = [vars(kind) for kind in type(module).__mro__ if kind not in (nn.Module, object)]
    code = [unwrap(value) for part in own for name, value in part.items() if callable(value) and name != "__init__"]
    names = {name for value in code if isinstance(value, FunctionType) for name in value.__code__.co_names}
    names |= {type(child).__name__ for child in module.children()}
    return any("drop" in name.lower() or name == "training" for name in names)


def _with_fused_rotation(kind: type, weight: Tensor) -> FunctionType | None:
    """Return the class's own `forward` with another function under the name of its rotation; None: it does not fit.

    The rotation is tried out in the dtype of the model, whatever that of the attention's own weights: it has none, what
    it computes does not depend on the dtype, and `_rotate` looks at the dtypes of every call.
    """
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
    if rest or more or not _fit(q, k, cos, sin):
        return plain(q, k, cos, sin, *rest, **more)
    from .triton_kernels import turned

    return turned(q, cos, sin), turned(k, cos, sin)


def _fit(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Return whether the kernel takes queries and keys (B, H, T, D) with tables (1 or B, T, D)."""
    alike = all((x.dtype, x.device) == (q.dtype, q.device) for x in (k, cos, sin)) and _known(q)
    pair = q.dim() == k.dim() == 4 and q.shape[-2:] == k.shape[-2:] and len(q) == len(k) and q.shape[-1] % 2 == 0
    tables = cos.dim() == 3 and cos.shape == sin.shape and cos.shape[1:] == q.shape[-2:] and len(cos) in (1, len(q))
    dense = cos.stride() == sin.stride() and cos.stride(-1) == 1
    return alike and pair and tables and dense and not cos.requires_grad and not sin.requires_grad


@torch.no_grad()
def _rotates_halves(plain: Rotation, weight: Tensor) -> bool:
    """Return whether a function rotates made-up queries and keys as the kernel does."""
    q, k = (torch.linspace(-1.0, 2.0, heads * 3 * 8, device=weight.device).view(1, heads, 3, 8) for heads in (4, 2))
    angles = torch.linspace(0.0, 2.0, 3 * 8, device=weight.device).view(1, 3, 8)
    given = [tensor.to(weight.dtype) for tensor in (q, k, angles.cos(), angles.sin())]
    try:
        pairs = zip(_rotate(plain, *given), plain(*given), strict=True)
        return all(agrees(found, wanted) for found, wanted in pairs)
    except _MISFIT:
        return False
