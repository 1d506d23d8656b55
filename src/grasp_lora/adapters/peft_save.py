"""A plain PEFT folder out: what `PeftModel.from_pretrained`, `merge_and_unload` and LoRA servers accept.

One rank for all modules, alpha = r unless said otherwise, no bias, a list of full module names, safetensors.
The same factors give the same bytes. A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

import peft
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import AdapterError, RunError
from ..runs.atomic import disk_errors, write_bytes_synced
from .peft_config import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"

# What every PEFT since 0.9 knows. Older ones than the one that writes refuse a folder for a field that they do not
# know, be it off, and all fields that are left out are off by default.
WRITTEN = (
    *("r", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_dropout", "init_lora_weights"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "bias", "use_dora", "auto_mapping", "inference_mode"),
)

Pairs = Mapping[str, tuple[Tensor, Tensor]]


def save_adapter(
    folder: str | Path,
    factors: Pairs,
    *,
    base_model: str,
    revision: str | None = None,
    alpha: float | None = None,
    model_card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `factors`, module name -> (A (r, d_in), B (d_out, r)), as a PEFT folder and return its path.

    Without `alpha` the update of a module is `B @ A`: alpha = r, and lower ranks are filled with zeros up to
    the highest, which changes nothing. With `alpha` (an adapter trained here) it is `alpha / r B @ A`;
    all ranks must be equal then. `base_model` is recorded, of an absolute path only the last part.

    Raises `AdapterError` for factors that do not fit together or are not finite, and `RunError` when the
    folder exists (unless `overwrite`, which replaces a PEFT folder) or cannot be written.
    """
    target = Path(folder)
    rank = _common_rank(factors, alpha)
    tensors: dict[str, Tensor] = {}
    for module in sorted(factors):
        a, b = pad_rank(*factors[module], rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = _storable(a)
        tensors[f"base_model.model.{module}.lora_B.weight"] = _storable(b)
    settings = _peft_settings(sorted(factors), rank, rank if alpha is None else alpha)
    settings |= {"base_model_name_or_path": recorded_base(base_model), "revision": revision}
    files = {
        CONFIG_FILE: json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8"),
        WEIGHTS_FILE: to_bytes(tensors, metadata={"format": "pt"}),
    }
    if model_card is not None:
        files[CARD_FILE] = model_card.encode("utf-8")
    _refuse_existing(target, overwrite)
    with disk_errors(target):
        _write_folder(target, files)
    return target


def pad_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Fill A (r, d_in) and B (d_out, r) with zeros up to `rank`; `B @ A` stays the same."""
    more = rank - a.shape[0]
    if more == 0:
        return a, b
    return torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], more)], dim=1)


def recorded_base(base_model: str) -> str:
    """Return the name of the base model to record: a hub id or relative path as given, else the last part."""
    home = base_model.startswith("~")
    if home or Path(base_model).is_absolute() or PureWindowsPath(base_model).is_absolute():
        return PureWindowsPath(base_model).name  # takes both kinds of slashes
    return base_model


def _common_rank(factors: Pairs, alpha: float | None) -> int:
    if not factors:
        raise AdapterError("there is nothing to save: the adapter has no modules. Merge or train one first.")
    for module, (a, b) in factors.items():
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] < 1:
            raise AdapterError(
                f"{module}: A of shape {tuple(a.shape)} and B of shape {tuple(b.shape)} are no pair of "
                "LoRA factors. Give A as (r, d_in) and B as (d_out, r)."
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterError(f"{module}: the factors hold NaN or infinity and are not saved. Use an earlier state.")
    ranks = sorted({a.shape[0] for a, _ in factors.values()})
    if alpha is not None and (len(ranks) > 1 or not 0 < alpha < math.inf):
        raise AdapterError(
            f"alpha = {alpha:g} for factors of rank {ranks}: alpha must be above 0, and ranks equal. Put the "
            "scaling into B and save without alpha."
        )
    return ranks[-1]


def _storable(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().clone()


def _peft_settings(modules: list[str], rank: int, alpha: float) -> dict[str, object]:
    """PEFT's own record of the adapter. Full names: an ending could mean further modules of another model."""
    made = peft.LoraConfig(r=rank, target_modules=modules, task_type="CAUSAL_LM", inference_mode=True)
    every: dict[str, object] = made.to_dict()  # type: ignore[no-untyped-call]
    settings = {key: every[key] for key in WRITTEN}
    names = {"target_modules": modules, "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    return {**settings, **names, "lora_alpha": _whole(alpha)}


def _whole(alpha: float) -> float:
    """PEFT declares alpha a whole number; write it as one where it is one."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise RunError(f"'{target}' exists and is not overwritten. Choose another folder, or ask for overwriting.")
    if not (target / CONFIG_FILE).is_file():
        raise RunError(f"'{target}' is no adapter folder and is not overwritten. Choose another folder.")


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a hidden sibling, then put it in place of `target`; whatever happens, one of the two is there."""
    target = target.absolute()  # "." has no siblings
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = f".{target.name}.{uuid.uuid4().hex[:12]}"
    fresh, old = target.with_name(f"{aside}.new"), target.with_name(f"{aside}.old")
    try:
        fresh.mkdir()
        for name, content in files.items():
            write_bytes_synced(fresh / name, content)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
