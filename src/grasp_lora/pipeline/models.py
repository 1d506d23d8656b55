"""Load the frozen base model and its tokenizer, or its empty shape for checks that need no weights."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..config import ModelConfig
from ..errors import ConfigError, MissingExtraError, ModelError, first_line
from ..rng import forked_global_state
from ..training.setup import Base

DEMO = "demo"  # model.name_or_path of the embedded backbone
_HASH_WHOLE = 1 << 30  # weight files up to this many bytes are hashed as a whole
# What transformers raises for a model, a tokenizer or a kernel that it cannot find, read or make.
_FAILURES = (OSError, ValueError, KeyError, ImportError, StrictDataclassError)
_ABOUT_ATTENTION = "attn_implementation|flash.?att|flex.?attention|scaled_dot_product_attention|`kernels`"


def demo_backbone() -> Path:
    """Return the folder of the embedded trilingual backbone; `from_pretrained` loads it."""
    return Path(__file__).resolve().parent.parent / "assets" / "demo"


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; raises `ConfigError` when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device: must be auto, cpu, cuda or cuda:N (got '{name}').")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"model.device: '{name}' is not available here ({torch.cuda.device_count()} CUDA devices). Use auto or cpu."
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def check_device(config: ModelConfig) -> str:
    """Return device and dtype in words; raises for a device that is not there or a quantization not installed."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    _quantization(config, dtype, device)
    return f"{device}, {str(dtype).removeprefix('torch.')}, quantization {config.quantization}"


def location(config: ModelConfig) -> str:
    """Return what transformers loads from: the embedded folder, a local folder or a hub id."""
    if config.name_or_path is None:
        raise ConfigError(
            "model.name_or_path: no base model given. Use --set model.name_or_path=FOLDER_OR_HUB_ID "
            "(or `demo` for the embedded one)."
        )
    return str(demo_backbone()) if config.name_or_path == DEMO else config.name_or_path


def recorded_name(config: ModelConfig) -> str:
    """Return the base model's name for files that travel: a hub id or relative path as given, else the folder."""
    given = config.name_or_path or ""
    return Path(given).name if Path(given).is_absolute() else given


def _from_hub(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def _unloadable(config: ModelConfig, error: Exception) -> ModelError:
    first = first_line(error)
    if isinstance(error, StrictDataclassError):  # whose first line says little
        first = " ".join(str(error).split())
    return ModelError(
        f"model.name_or_path: cannot load '{config.name_or_path}' ({first}). Give a folder with config.json, weights "
        "and tokenizer, or a hub id that is cached or reachable."
    )


@contextmanager
def _made(config: ModelConfig, too_large: str) -> Iterator[None]:
    """Turn what making a model with weights fails with into a `ModelError`, `too_large` where memory ran out."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ModelError(too_large) from None
    except (*_FAILURES, RuntimeError, SafetensorError) as error:
        raise (_unfit_attention(config, error) or _unloadable(config, error)) from None


def _unfit_attention(config: ModelConfig, error: Exception) -> ModelError | None:
    """Return the error of a kernel of attention that cannot be used, if that is what transformers tells of."""
    chosen, first = config.attn_implementation, first_line(error).rstrip(".")
    told = first.replace(config.name_or_path or "\n", "")  # whatever the model is called
    if chosen is None or not re.search(f"{_ABOUT_ATTENTION}|{re.escape(chosen)}", told, re.IGNORECASE):
        return None
    return ModelError(
        f"model.attn_implementation: '{chosen}' cannot be used ({first}). Give one that this model and this machine "
        "have, such as sdpa or eager, or leave it out."
    )


def _attention(config: ModelConfig) -> dict[str, str]:
    return {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}


def skeleton(config: ModelConfig) -> nn.Module:
    """Return the model on the meta device: every module and shape, no weights, no download of them."""
    try:
        settings = AutoConfig.from_pretrained(location(config), **_from_hub(config))
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            model: nn.Module = build(settings, trust_remote_code=config.trust_remote_code)
    except _FAILURES as error:
        raise _unloadable(config, error) from None
    return model


def random_weights(settings: Any, config: ModelConfig, *names: str) -> PreTrainedModel:
    """Return a frozen model of a transformers configuration with random weights, made where and as they stay.

    No download and no second copy; `names` name the stream they are drawn from. Raises `ModelError` where it cannot be.
    """
    device = resolve_device(config.device)
    build: Any = AutoModelForCausalLM.from_config
    too_large = "random weights of this shape do not fit into the GPU's memory. Use a larger GPU."
    with _made(config, too_large), forked_global_state(0, "random weights", *names), torch.device(device):
        model = build(settings, dtype=resolve_dtype(config.dtype, device), **_attention(config))
    return freeze(model, config)


def load_tokenizer(config: ModelConfig) -> Any:
    """Return the tokenizer; raises `ModelError` when it is missing or has no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(location(config), **_from_hub(config))
    except _FAILURES as error:
        raise _unloadable(config, error) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of '{config.name_or_path}' has no end token; the method needs one to end answers."
        )
    return tokenizer


def _quantization(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    if config.quantization == "bnb-4bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtraError("bitsandbytes", "bitsandbytes", "model.quantization=bnb-4bit")
        if device.type != "cuda":
            # On a CPU it repacks the weights at the first evaluation, and cannot train through them from then on.
            raise ConfigError(
                "model.quantization: bnb-4bit needs a GPU. Use model.quantization=torchao-8bit, or none, on a CPU."
            )
        from transformers import BitsAndBytesConfig

        settings: Any = BitsAndBytesConfig
        return settings(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if config.quantization == "torchao-8bit":  # its 4-bit weights have no backward pass
        if importlib.util.find_spec("torchao") is None:
            raise MissingExtraError("torchao", "quant", "model.quantization=torchao-8bit")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return None


def freeze(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Freeze the weights, switch gradient checkpointing as configured, and keep warnings about caches away."""
    frozen: Any = model  # transformers annotates these methods in part only
    frozen.requires_grad_(False)
    if config.gradient_checkpointing:
        if not frozen.supports_gradient_checkpointing:
            raise ConfigError(
                f"model.gradient_checkpointing: {type(model).__name__} does not support it. Set it to false."
            )
        # Renamed in the course of transformers 5; the old name warns since.
        renamed = hasattr(frozen, "activation_checkpointing_enable")
        enable = frozen.activation_checkpointing_enable if renamed else frozen.gradient_checkpointing_enable
        # Reentrant checkpointing would send each block's gradient through the shared factors separately.
        enable({"use_reentrant": False})
    frozen.eval()
    return model


def _require_whole(config: ModelConfig, missing: Collection[str]) -> None:
    """Refuse a checkpoint without some weights: transformers would draw them at random."""
    if missing:
        raise ModelError(
            f"model.name_or_path: the weights of '{config.name_or_path}' are incomplete: {len(missing)} tensors are "
            f"missing (such as {min(missing)}). Fetch the model again."
        )


def load_base(config: ModelConfig) -> Base:
    """Load weights once, straight to the device; raises `ModelError` or `ConfigError` with what to do."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    tokenizer = load_tokenizer(config)
    quantization = _quantization(config, dtype, device)
    extra = {} if quantization is None else {"quantization_config": quantization}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    build: Any = AutoModelForCausalLM.from_pretrained  # with the loading info it returns a pair
    too_large = (
        f"'{config.name_or_path}' does not fit into the GPU's memory in {dtype}. Set model.quantization=bnb-4bit or "
        "torchao-8bit, or use a larger GPU."
    )
    with _made(config, too_large):
        model, loaded = build(
            location(config), dtype=dtype, device_map={"": device}, output_loading_info=True,
            **extra, **_attention(config), **_from_hub(config),
        )  # fmt: skip
    _require_whole(config, loaded["missing_keys"])
    weights = fingerprint(location(config), model)
    return Base(freeze(model, config), tokenizer, recorded_name(config), weights, config.revision)


def attach_peft(model: Any, adapter: str | Path) -> Any:
    """Return the model with a PEFT adapter as a user of PEFT gets it, in eval mode."""
    with warnings.catch_warnings():
        # PEFT still asks for an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return PeftModel.from_pretrained(model, str(adapter)).eval()


def fingerprint(path: str, model: PreTrainedModel) -> str:
    """Return a content hash of a local folder's weights and config, or the hub's commit hash.

    Weight files above 1 GiB enter with name, size and header only, so that hashing never costs minutes.
    """
    folder = Path(path)
    if not path or not folder.is_dir():
        return f"commit:{getattr(model.config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size > _HASH_WHOLE:
                digest.update(stream.read(1 << 20))
                continue
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"
