"""Activation importance of all adapters in a few Triton kernels. Imported where Triton is there only.

The signs of `B A` are made tile by tile and used at once: nothing of the size of a weight is ever written. Every
entry's sum is made by one program in a fixed order, so that the result is the same every time.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.runtime.errors import OutOfResources

from .bank import AdapterBank, Slot
from .importance import activation, activation_into, check_norms, pairs_of

_LEAST = 16  # the smallest side of a tile that tensor cores take
_LARGEST = 256  # the largest rank, padded, whose tiles have such sides
_B_TILE = {"ROWS": 128, "COLUMNS": 128}  # up to rank 32: the fastest of some twenty on an H100
_A_TILE = {"ROWS": 64, "COLUMNS": 128}
_ENTRIES = 4096  # a tile's side times a rank above 32: under 50 KiB of shared memory, compiled for 8.0 to 9.0


@triton.jit
def _halves(x, KIND: tl.constexpr):
    """Return float32 numbers as two bfloat16 ones whose sum has 16 of their bits, as tensor cores take them."""
    high = x.to(KIND)
    return high, (x - high.to(tl.float32)).to(KIND)


@triton.jit
def _signs(b_high, b_low, a_high, a_low):
    product = tl.dot(b_low, a_high)
    product = tl.dot(b_high, a_low, acc=product)
    product = tl.dot(b_high, a_high, acc=product)
    return tl.where(product > 0, 1.0, tl.where(product < 0, -1.0, 0.0)).to(b_high.dtype)


@triton.jit
def _b_kernel(
    values, norms, starts_a, starts_b, factors, rows_of_norms, out, d_out, d_in, rank,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    a, b = values + tl.load(starts_a + pair), values + tl.load(starts_b + pair)
    x = norms + tl.load(rows_of_norms + pair) * d_in
    i, j, r = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, RANK)
    mine = (i[:, None] < d_out) & (r[None, :] < rank)
    b_high, b_low = _halves(tl.load(b + i[:, None] * rank + r[None, :], mask=mine, other=0.0), KIND)
    total = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, d_in, COLUMNS):
        inside = (r[:, None] < rank) & (start + j[None, :] < d_in)
        a_tile = tl.load(a + r[:, None] * d_in + start + j[None, :], mask=inside, other=0.0)
        weight = tl.load(x + start + j, mask=start + j < d_in, other=0.0)
        a_high, a_low = _halves(a_tile, KIND)
        signs = _signs(b_high, b_low, a_high, a_low)
        high, low = _halves(a_tile * weight[None, :], KIND)
        total = tl.dot(signs, tl.trans(low), acc=total)
        total = tl.dot(signs, tl.trans(high), acc=total)
    place = out + tl.load(starts_b + pair) + i[:, None] * rank + r[None, :]
    tl.store(place, tl.abs(total * tl.load(factors + pair)), mask=mine)


@triton.jit
def _a_kernel(
    values, norms, starts_a, starts_b, factors, rows_of_norms, out, d_out, d_in, rank,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    a, b = values + tl.load(starts_a + pair), values + tl.load(starts_b + pair)
    i, j, r = tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, RANK)
    mine = (r[:, None] < rank) & (j[None, :] < d_in)
    a_high, a_low = _halves(tl.load(a + r[:, None] * d_in + j[None, :], mask=mine, other=0.0), KIND)
    weight = tl.load(norms + tl.load(rows_of_norms + pair) * d_in + j, mask=j < d_in, other=0.0)
    total = tl.zeros((RANK, COLUMNS), dtype=tl.float32)
    for start in range(0, d_out, ROWS):
        inside = (start + i[:, None] < d_out) & (r[None, :] < rank)
        b_high, b_low = _halves(tl.load(b + (start + i[:, None]) * rank + r[None, :], mask=inside, other=0.0), KIND)
        signs = _signs(b_high, b_low, a_high, a_low)
        total = tl.dot(tl.trans(b_low), signs, acc=total)
        total = tl.dot(tl.trans(b_high), signs, acc=total)
    place = out + tl.load(starts_a + pair) + r[:, None] * d_in + j[None, :]
    tl.store(place, tl.abs(total * weight[None, :] * tl.load(factors + pair)), mask=mine)


@dataclass(frozen=True)
class _Group:
    """Pairs of one shape: where A and B start in the flat buffer, and which row of the norms is theirs (P,)."""

    d_out: int
    d_in: int
    rank: int
    modules: tuple[str, ...]
    pairs: tuple[tuple[Slot, Slot], ...]
    starts_a: Tensor
    starts_b: Tensor
    rows: Tensor


def _groups(bank: AdapterBank) -> list[_Group]:
    """Return the bank's pairs by shape."""
    by_shape: dict[tuple[int, int, int], list[tuple[Slot, Slot]]] = {}
    for a, b in pairs_of(bank):
        by_shape.setdefault((b.shape[0], a.shape[1], a.shape[0]), []).append((a, b))
    return [_group(shape, pairs, bank.values.device) for shape, pairs in by_shape.items()]


def _group(shape: tuple[int, int, int], pairs: Sequence[tuple[Slot, Slot]], device: torch.device) -> _Group:
    modules = tuple(dict.fromkeys(a.module for a, _ in pairs))
    at = {module: row for row, module in enumerate(modules)}
    columns = ([a.start for a, _ in pairs], [b.start for _, b in pairs], [at[a.module] for a, _ in pairs])
    return _Group(*shape, modules, tuple(pairs), *(torch.tensor(c, device=device) for c in columns))


def _tiles(rank: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tiles of the kernels of B and of A for a padded rank, whose registers and shared memory suffice."""
    if rank <= 32:
        return _B_TILE, _A_TILE
    side = min(64, _ENTRIES // rank)
    tile = {"ROWS": side, "COLUMNS": side, "num_stages": 1}
    return tile, tile


class FusedActivation:
    """The activation importance of one bank, whose layout stays; `activation` in importance.py is the plain way.

    Ranks above 256 go the plain way, and so does the whole bank, after a warning, on a GPU too small for the tiles.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self._bank, self._all = bank, _groups(bank)
        self._weights: tuple[float, ...] | None = None  # those that the factors are of
        self._factors: list[Tensor] = []
        self._fits = True

    def __call__(self, norms: Mapping[str, Float[Tensor, " d_in"]]) -> Float[Tensor, " n"]:
        """Return the importance of every entry, shape (n,), from channel norms per module.

        `S = sum_ij |(B A)_ij| x_j` of `c A` and `c B` gives `c |B^T G|` and `c |G A^T|`, with `G = sign(B A) * x`.
        Raises `ModelError` where norms are missing.
        """
        check_norms(self._bank, norms)
        if self._fits:
            try:
                return self._by_kernels(norms)
            except OutOfResources as short:
                self._fits = False
                warnings.warn(
                    f"speed.fused_kernels: activation importance is computed as without it: {short}", stacklevel=2
                )
        return activation(self._bank, norms)

    def _by_kernels(self, norms: Mapping[str, Tensor]) -> Tensor:
        values = self._bank.dense()
        out = torch.empty_like(values)
        for group, factors in zip(self._all, self._in_force(values), strict=True):
            if group.rank > _LARGEST:
                activation_into(out, self._bank, group.pairs, values, norms)
            else:
                given = torch.stack([norms[module].to(values) for module in group.modules])
                self._run(group, values, given, factors, out)
        return out

    def _in_force(self, like: Tensor) -> list[Tensor]:
        """Return `c` of every pair (P,) of every group, copied to the GPU when the bank's weights change."""
        if self._weights != self._bank.weights:
            self._weights = self._bank.weights
            self._factors = [like.new_tensor([self._bank.constant(a) for a, _ in group.pairs]) for group in self._all]
        return self._factors

    def _run(self, group: _Group, values: Tensor, norms: Tensor, factors: Tensor, out: Tensor) -> None:
        pairs, rank = len(group.pairs), max(_LEAST, triton.next_power_of_2(group.rank))
        more = {"RANK": rank, "KIND": tl.bfloat16 if values.is_cuda else tl.float32}
        where = values, norms, group.starts_a, group.starts_b, factors, group.rows, out
        shape = group.d_out, group.d_in, group.rank
        b_tile, a_tile = _tiles(rank)
        with torch.cuda.device_of(values):  # Triton launches on the current GPU
            _b_kernel[(triton.cdiv(group.d_out, b_tile["ROWS"]), pairs)](*where, *shape, **b_tile, **more)
            _a_kernel[(triton.cdiv(group.d_in, a_tile["COLUMNS"]), pairs)](*where, *shape, **a_tile, **more)
