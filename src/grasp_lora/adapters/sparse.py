"""The unsummed factors of pruned adapters in one compact file: bitmaps and kept values, restored bit for bit.

The file is safetensors. A tensor `k` of n entries is stored as `k.bitmap`, uint8 of shape (ceil(n / 8),), one
bit per entry in row-major order, the first entry in the highest bit (`numpy.packbits`), 1 where the entry is
kept; and as `k.values`, the kept entries in that order, in the tensor's own dtype. The header's single entry
`grasp_lora_sparse` is JSON: `version`, `tensors` (name -> {shape, dtype}) and `metadata` (the caller's).
Entries that are not kept are +0.0.

For merging, `metadata` needs `adapters` (names), `rule`, `signs` (of w_k, per adapter), `strength` and
`constants` (tensor name -> c_k), and tensors are called `<module>.<adapter index>.<A or B>`. Then
`load_sparse(file).to_factors()` gives the merged factors, and `peft_save.save_adapter` makes a PEFT folder of
them. `load_sparse(file).tensors` are the unsummed factors, without c_k.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..config import MergeRule
from ..errors import AdapterError, RunError
from ..runs.atomic import write_bytes_atomic
from .merge import RULES, Pair, merge_pairs

HEADER = "grasp_lora_sparse"
VERSION = 1
# Entries are moved as integers of the same width: moving floats one by one may change the bits of a NaN.
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SLOT = re.compile(r"(?P<module>.+)\.(?P<adapter>\d+)\.(?P<part>[AB])")


@dataclass(frozen=True)
class SparseAdapter:
    """What a sparse file holds: full tensors (+0.0 where pruned), masks (True: kept), own metadata."""

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    metadata: dict[str, Any]

    def to_factors(self) -> dict[str, Pair]:
        """Return the merged factors, module -> (A (R, d_in), B (d_out, R)), so that the update is `B @ A`.

        Raises `AdapterError` when names or metadata are not those of a merge.
        """
        slots = _slots(self.tensors)
        try:
            rule = cast(MergeRule, self.metadata["rule"])
            signs, constants = self.metadata["signs"], self.metadata["constants"]
            strength = float(self.metadata["strength"])
            merged: dict[str, Pair] = {}
            for module in sorted(slots):
                owners = sorted(slots[module])
                keys = [f"{module}.{owner}" for owner in owners]
                pairs = [(self.tensors[f"{key}.A"], self.tensors[f"{key}.B"]) for key in keys]
                scale = [float(constants[f"{key}.A"]) for key in keys]
                merged[module] = merge_pairs(rule, pairs, scale, [float(signs[o]) for o in owners], strength)
        except (KeyError, IndexError, TypeError) as lacking:
            raise AdapterError(
                f"the sparse file cannot be merged: {lacking} is missing from its "
                "metadata or tensors. Rules known: "
                f"{', '.join(RULES)}. Merge its tensors by hand, or write the file anew from the run."
            ) from lacking
        return merged


def _slots(names: Iterable[str]) -> dict[str, set[int]]:
    slots: dict[str, set[int]] = {}
    for name in names:
        match = SLOT.fullmatch(name)
        if match is None:
            raise AdapterError(f"the sparse file cannot be merged: '{name}' is not <module>.<adapter>.<A or B>.")
        slots.setdefault(match["module"], set()).add(int(match["adapter"]))
    return slots


def save_sparse(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> int:
    """Write the entries of `tensors` where `masks` is True, and `metadata` (JSON); return the bytes written.

    Masks have the shapes of the tensors; entries that are not kept must be zero. The same input gives the
    same bytes. Raises `AdapterError` for input that could not be restored, and `RunError` when the file
    exists (unless `overwrite`) or cannot be written.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise RunError(f"'{target}' exists and is not overwritten. Choose another name, or ask for overwriting.")
    if set(tensors) != set(masks):
        odd = sorted(set(tensors) ^ set(masks))[0]
        raise AdapterError(f"'{odd}' has a tensor or a mask, not both. Give one mask for each tensor.")
    stored: dict[str, Tensor] = {}
    layout: dict[str, dict[str, Any]] = {}
    for name in sorted(tensors):
        stored[f"{name}.bitmap"], stored[f"{name}.values"] = _pack(name, tensors[name], masks[name])
        layout[name] = {
            "shape": list(tensors[name].shape),
            "dtype": str(tensors[name].dtype).removeprefix("torch."),
        }
    # One entry only: safetensors writes several in an order that changes from call to call.
    header = {HEADER: _json({"version": VERSION, "tensors": layout, "metadata": dict(metadata)})}
    content = to_bytes(stored, metadata=header)
    write_bytes_atomic(target, content)
    return len(content)


def load_sparse(path: str | Path) -> SparseAdapter:
    """Read a file of `save_sparse`. Raises `AdapterError` if it is missing, damaged or of another format."""
    file = Path(path)
    if not file.is_file():
        raise AdapterError(f"sparse adapter '{file.name}' does not exist. Give a file written by export.")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            entries = dict(opened.metadata() or {})
            stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dictionary
        header = json.loads(entries.get(HEADER, "null"))
    except (SafetensorError, OSError, ValueError) as broken:
        raise _damaged(file, str(broken)) from broken
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise AdapterError(
            f"'{file.name}' is no sparse adapter of version {VERSION} (found: {version}). Export it again."
        )
    try:
        return _restore(stored, header)
    except (KeyError, TypeError, ValueError, AttributeError) as broken:
        raise _damaged(file, repr(broken)) from broken


def _restore(stored: dict[str, Tensor], header: Mapping[str, Any]) -> SparseAdapter:
    tensors: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name, entry in header["tensors"].items():
        bitmap, values = stored.pop(f"{name}.bitmap"), stored.pop(f"{name}.values")
        tensors[name], masks[name] = _unpack(bitmap, values, tuple(entry["shape"]), DTYPES[entry["dtype"]])
    if stored:
        raise ValueError(f"unexpected tensor {min(stored)}")
    return SparseAdapter(tensors, masks, header["metadata"])


def _damaged(file: Path, what: str) -> AdapterError:
    return AdapterError(f"sparse adapter '{file.name}' is truncated or damaged ({what}). Copy or export it again.")


def _pack(name: str, tensor: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (bitmap, values) of one tensor."""
    if mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise AdapterError(
            f"'{name}': the mask must be boolean of shape {tuple(tensor.shape)}, found {mask.dtype} "
            f"of shape {tuple(mask.shape)}."
        )
    if tensor.dtype not in DTYPES.values():
        raise AdapterError(f"'{name}' is {tensor.dtype}. The sparse format holds {', '.join(DTYPES)}.")
    flat, kept = tensor.detach().cpu().contiguous().reshape(-1), mask.detach().cpu().reshape(-1)
    lost = int(flat[~kept].count_nonzero())
    if lost:
        raise AdapterError(f"'{name}': {lost} entries outside the mask are not zero and would be lost. Prune first.")
    values = flat.view(BITS[tensor.element_size()])[kept].view(tensor.dtype)
    return torch.from_numpy(np.packbits(kept.numpy())), values


def _unpack(bitmap: Tensor, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (tensor, mask) of `shape`. Raises `ValueError` when the parts do not fit together."""
    size = math.prod(shape)
    if bitmap.dtype != torch.uint8 or bitmap.shape != ((size + 7) // 8,):
        raise ValueError(f"bitmap of {tuple(bitmap.shape)} for {size} entries")
    kept = torch.from_numpy(np.unpackbits(bitmap.numpy(), count=size).astype(np.bool_))
    if values.dtype != dtype or values.shape != (int(kept.sum()),):
        raise ValueError(f"{tuple(values.shape)} values of {values.dtype} for {int(kept.sum())} kept entries")
    flat = torch.zeros(size, dtype=BITS[dtype.itemsize])
    flat[kept] = values.view(flat.dtype)
    return flat.view(dtype).reshape(shape), kept.reshape(shape)


def _json(value: object) -> str:
    """Floats are written so that they read back exactly."""
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as wrong:
        raise AdapterError(f"metadata of a sparse file must be plain JSON: {wrong}. Leave the entry out.") from wrong
