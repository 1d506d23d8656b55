"""PEFT LoRA folders in: factors and scalings of every module, checked against the base before a GPU is used.

Only `.safetensors` is read. Whatever is wrong with an adapter is one `AdapterError` that names the tensor,
the rule, what was found and what to do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AdapterError, ConfigError, nearest
from .discover import suffixes
from .peft_base import check_base
from .peft_config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, locate_adapter, read_config

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PEFT_PREFIX = "base_model.model."
# Left in names by torch.compile and by FSDP; no module of a model is called so.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
VARIANT_KEYS = {
    ".base_layer.weight": "weights of the base model (save_pretrained takes save_embedding_layers=False)",
    "lora_embedding_": "an adapter of an embedding, which is not linear",
    "lora_magnitude_vector": "DoRA",
    "lora_bias": "a bias of the update",
    "trainable_tokens": "changed rows of the embedding",
    "modules_to_save": "a replaced module of the base model",
}

Shapes = Mapping[str, tuple[int, int]]
Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Factor:
    """Update `scaling * B @ A` of one module: A of shape (r, d_in), B of shape (d_out, r), float32, CPU."""

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True)
class AdapterFactors:
    """An adapter as numbers. `modules` is sorted by module name, as the base model calls them.

    `origin` is a folder's name or a hub id, never a path; `sha256` is over configuration and weights;
    `notices` are facts that a user should see.
    """

    name: str
    origin: str
    sha256: str
    modules: dict[str, Factor]
    notices: tuple[str, ...] = ()


def load_adapter(
    source: str | Path,
    shapes: Shapes,
    *,
    name: str,
    base_id: str | None = None,
    base_revision: str | None = None,
    head: str | None = None,
    allow_other_base: bool = False,
) -> AdapterFactors:
    """Read a PEFT LoRA folder or hub id for a base with linear modules of `shapes` (name -> (d_out, d_in)).

    `shapes` may come from a model on the meta device (`discover.module_shapes`); `head` names the output head
    among them, which `all-linear` does not mean. `base_id` is the name or path of the base model: its last
    part must be that of the base the adapter was trained on, because an adapter of another base of the same
    shape would load without a word; `allow_other_base` accepts it, and another `base_revision` is only told. Raises
    `AdapterError` for everything that keeps the adapter from being used.
    """
    folder, origin = locate_adapter(source)
    config = read_config(folder, origin)
    notices = check_base(config, origin, base_id, base_revision, allow_other_base)
    parts = _sort_keys(_read_tensors(_weights_file(folder, origin), origin), origin)
    move, notice = _align(parts, shapes, origin)
    modules: dict[str, Factor] = {}
    for own in sorted(parts, key=lambda own: move[own]):
        modules[move[own]] = _factor(own, parts[own], shapes[move[own]], config, origin)
    back = {there: own for own, there in move.items()}
    known = {back.get(there, there): there != head for there in shapes}
    _check_coverage(config, parts, known, origin)
    return AdapterFactors(name, origin, content_hash(folder), modules, (*notices, *notice))


def content_hash(folder: Path) -> str:
    """Return the SHA-256 over configuration and weights of an adapter folder, as hexadecimal text."""
    digest = hashlib.sha256()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def factors_hash(modules: Mapping[str, Factor]) -> str:
    """Return the SHA-256 over names, scalings and values of factors that no folder holds, as hexadecimal text."""
    digest = hashlib.sha256()
    for name, factor in sorted(modules.items()):
        digest.update(f"{name}\0{tuple(factor.A.shape)}\0{factor.scaling!r}\0".encode())
        digest.update(torch.cat([factor.A.flatten(), factor.B.flatten()]).detach().double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _weights_file(folder: Path, origin: str) -> Path:
    file = folder / WEIGHTS_FILE
    if file.is_file():
        return file
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise AdapterError(
            f"adapter '{origin}' holds only pickled weights ({pickled[0]}), which can run code when opened "
            "and are not read. Convert them: load the tensors with torch.load(..., weights_only=True) and "
            f"write them with safetensors.torch.save_file to {WEIGHTS_FILE}."
        )
    raise AdapterError(f"adapter '{origin}' has no {WEIGHTS_FILE}. Save it again with save_pretrained.")


def _read_tensors(file: Path, origin: str) -> dict[str, Tensor]:
    """Return all tensors of the file as float32, checked to be floating point and finite."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            for key in sorted(stored.keys()):
                tensors[key] = stored.get_tensor(key)
    except (SafetensorError, OSError) as broken:
        raise AdapterError(
            f"adapter '{origin}': {WEIGHTS_FILE} is truncated or damaged ({broken}). Fetch or save it again."
        ) from broken
    return {key: _as_float32(key, tensor, origin) for key, tensor in tensors.items()}


def _as_float32(key: str, tensor: Tensor, origin: str) -> Tensor:
    if not tensor.is_floating_point():
        raise AdapterError(
            f"adapter '{origin}': tensor {key} is {tensor.dtype}, not floating point. Save it as float32."
        )
    wide = tensor.to(torch.float32)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        raise AdapterError(
            f"adapter '{origin}': tensor {key} has {bad} of {wide.numel()} values that are NaN or infinite. "
            "Its training went wrong; use an earlier checkpoint."
        )
    return wide


def _sort_keys(tensors: Mapping[str, Tensor], origin: str) -> Parts:
    """Return module (as the adapter calls it) -> {"A": ..., "B": ...}; every key must be a LoRA factor."""
    parts: Parts = {}
    adapters: set[str] = set()
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise AdapterError(_unexpected(key, origin))
        adapters.add(match["adapter"] or "")
        own = parts.setdefault(_bare(match["module"]), {})
        if match["part"] in own or len(adapters) > 1:
            raise AdapterError(
                f"adapter '{origin}': {WEIGHTS_FILE} holds more than one adapter ({key}). Save them apart."
            )
        own[match["part"]] = tensor
    if not parts:
        raise AdapterError(f"adapter '{origin}': {WEIGHTS_FILE} holds no tensors. Save the adapter again.")
    return parts


def _bare(module: str) -> str:
    for wrapper in WRAPPERS:
        module = module.replace(wrapper, "")
    return module.removeprefix(PEFT_PREFIX)


def _unexpected(key: str, origin: str) -> str:
    known = [reason for part, reason in VARIANT_KEYS.items() if part in key]
    reason = known[0] if known else "weights of the base model (a resized vocabulary?) or an unknown variant"
    return (
        f"adapter '{origin}': unexpected tensor {key}: {reason}. Only lora_A and lora_B of linear modules "
        "are handled; train or save the adapter without it."
    )


def _align(parts: Iterable[str], shapes: Shapes, origin: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return own name -> name in the base; a wrapper's prefix that all names share is put on or taken off."""
    names = list(parts)
    if all(name in shapes for name in names):
        return {name: name for name in names}, ()
    possible = _prefixes(names[0], shapes)
    moves = [move for move in possible if all(_moved(name, move) in shapes for name in names)]
    if len(moves) == 1:
        take, put = moves[0]
        notice = f"adapter '{origin}': its module names '{take}...' were matched to '{put}...' of the base."
        return {name: str(_moved(name, moves[0])) for name in names}, (notice,)
    missing = [name for name in names if name not in shapes]
    raise AdapterError(
        f"adapter '{origin}': the base model has no linear module {missing[0]} ({len(missing)} of "
        f"{len(names)} are missing).{nearest(missing[0], shapes)} Linear modules found in the base: "
        f"{', '.join(suffixes(shapes))}. Use an adapter of this base model."
    )


def _prefixes(name: str, shapes: Shapes) -> list[tuple[str, str]]:
    """Return the (prefix to take off, prefix to put on) under which `name` is a module of the base."""
    off = [(name.removesuffix(there), "") for there in shapes if name.endswith(f".{there}")]
    return off + [("", there.removesuffix(name)) for there in shapes if there.endswith(f".{name}")]


def _moved(name: str, move: tuple[str, str]) -> str | None:
    return move[1] + name.removeprefix(move[0]) if name.startswith(move[0]) else None


def _factor(
    module: str, parts: Mapping[str, Tensor], shape: tuple[int, int], config: AdapterConfig, origin: str
) -> Factor:
    where = f"adapter '{origin}': {module}"
    if len(parts) != 2:
        lacking = "B" if "A" in parts else "A"
        raise AdapterError(f"{where} has no lora_{lacking}. The file is incomplete; save the adapter again.")
    a, b = parts["A"], parts["B"]
    if a.dim() != 2 or b.dim() != 2:
        raise AdapterError(
            f"{where}: A {tuple(a.shape)} and B {tuple(b.shape)} are not matrices. Adapt linear modules."
        )
    if (b.shape[0], a.shape[1]) != shape:
        raise AdapterError(
            f"{where} is for a weight of shape {(b.shape[0], a.shape[1])}, but the base model's is {shape}. "
            "Use an adapter of this base model."
        )
    rank = config.rank(module)
    if not a.shape[0] == b.shape[1] == rank:
        raise AdapterError(
            f"{where}: ranks differ: A has {a.shape[0]}, B has {b.shape[1]}, {CONFIG_FILE} says {rank} "
            "(r and rank_pattern). Weights and configuration are not of one adapter; save it again."
        )
    return Factor(a.contiguous(), b.contiguous(), config.scaling(module))


def _check_coverage(config: AdapterConfig, parts: Mapping[str, object], known: Mapping[str, bool], origin: str) -> None:
    """Every module that the configuration targets must have weights, and every weight must be targeted.

    `known` maps the base's modules to whether `all-linear` means them.
    """
    if config.targets is None:
        return
    try:
        meant = config.targets.match(known, [name for name, in_all in known.items() if in_all])
    except ConfigError as wrong:
        raise AdapterError(f"adapter '{origin}': {CONFIG_FILE}: {wrong}") from wrong
    without = sorted(set(meant).difference(parts))
    if without:
        raise AdapterError(
            f"adapter '{origin}': target_modules of {CONFIG_FILE} means {len(meant)} modules, but "
            f"{len(without)} have no weights (first: {without[0]}). The file is incomplete; save it again."
        )
    beyond = sorted(set(parts).difference(meant))
    if beyond:
        raise AdapterError(
            f"adapter '{origin}': {len(beyond)} modules have weights but are not among target_modules of "
            f"{CONFIG_FILE} (first: {beyond[0]}), so PEFT would not use them. Save the adapter again."
        )
