"""Pico models and plain PEFT adapters, made on the spot; nothing here uses the package under test."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

BASE = "pico/llama-pico"


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64)).eval()


def wrap(model: PreTrainedModel, **settings: Any) -> peft.PeftModel:
    """A PEFT model whose A and B are all random, so that no update is zero."""
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D, tied heads and rsLoRA patterns
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return wrapped.eval()


def attach(model: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """What a user does with an exported adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D, and its own use of deprecated names
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def save(wrapped: peft.PeftModel, folder: Path, base: str | None = BASE) -> Path:
    wrapped.peft_config["default"].base_model_name_or_path = base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def plain(folder: Path, **settings: Any) -> Path:
    """A saved adapter of `llama()` on q_proj and v_proj."""
    return save(wrap(llama(), **{"target_modules": ["q_proj", "v_proj"], **settings}), folder)


def deltas(wrapped: peft.PeftModel) -> dict[str, Tensor]:
    """PEFT's own update of every adapted module, (d_out, d_in)."""
    found = {}
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            delta = module.get_delta_weight("default").detach()
            found[name] = delta.T if module.fan_in_fan_out else delta
    return found


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file)
