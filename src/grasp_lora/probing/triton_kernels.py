"""Rotations and gated activations in one Triton kernel each, with gradients. Imported where Triton is there only.

Elementwise work between matrix products is bound by memory: the layers' own code reads and writes a tensor five to ten
times where one reading and one writing do. All arithmetic is in float32; a result is rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1024


@triton.jit
def _gated_kernel(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, g * tl.sigmoid(g) * u, mask=inside)


@triton.jit
def _gated_backward_kernel(given, gate, up, to_gate, to_up, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(given + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(to_up + at, d * g * s, mask=inside)
    tl.store(to_gate + at, d * u * s * (1.0 + g * (1.0 - s)), mask=inside)


@triton.jit
def _turn_kernel(
    x, cos, sin, out, x_batch, x_token, x_head, table_batch, table_token, tokens, heads, half,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (lane < half)
    place = batch * x_batch + token * x_token + head * x_head + lane
    one = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(x + place + half, mask=inside, other=0.0).to(tl.float32)
    table = batch * table_batch + token * table_token + lane
    c1 = tl.load(cos + table, mask=lane < half, other=0.0).to(tl.float32)
    c2 = tl.load(cos + table + half, mask=lane < half, other=0.0).to(tl.float32)
    s1 = tl.load(sin + table, mask=lane < half, other=0.0).to(tl.float32)
    s2 = tl.load(sin + table + half, mask=lane < half, other=0.0).to(tl.float32)
    if BACK:  # the transposed rotation
        first, second = one * c1 + two * s2, two * c2 - one * s1
    else:
        first, second = one * c1 - two * s1, two * c2 + one * s2
    written = (row * heads + head) * 2 * half + lane
    tl.store(out + written, first, mask=inside)
    tl.store(out + written + half, second, mask=inside)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate)
        count = gate.numel()
        with torch.cuda.device_of(gate):  # Triton launches on the current GPU
            _gated_kernel[(triton.cdiv(count, _BLOCK),)](gate, up, out, count, BLOCK=_BLOCK)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        to_gate, to_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
        given = given.contiguous()
        with torch.cuda.device_of(gate):
            _gated_backward_kernel[(triton.cdiv(count, _BLOCK),)](given, gate, up, to_gate, to_up, count, BLOCK=_BLOCK)
        return to_gate, to_up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up` of two contiguous tensors of one shape and dtype (float32 or half)."""
    result: Tensor = _Gated.apply(gate, up)
    return result


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """Return `x` (B, H, T, D) turned, as a view of memory laid out (B, T, H, D)."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, tokens, width = x.shape
    out = torch.empty(batch, tokens, heads, width, dtype=x.dtype, device=x.device)
    half = width // 2
    table = cos.stride(0) if len(cos) > 1 else 0
    strides = x.stride(0), x.stride(2), x.stride(1), table, cos.stride(1)
    sizes = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(half)}
    with torch.cuda.device_of(x):
        _turn_kernel[(batch * tokens,)](x, cos, sin, out, *strides, tokens, heads, half, BACK=back, **sizes)
    return out.transpose(1, 2)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None]:
        return _turned(given, *ctx.saved_tensors, back=True), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the rotary embedding of `x` (B, H, T, D), with `cos` and `sin` (1 or B, T, D) of equal, dense strides.

    `x cos + rotate_half(x) sin`, halves D/2 apart (arXiv 2104.09864).
    """
    result: Tensor = _Turned.apply(x, cos, sin)
    return result
