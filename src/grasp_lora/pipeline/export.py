"""Write what others load: a plain PEFT folder, the compact unsummed factors, and on request the merged model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from ..adapters.bank import AdapterBank
from ..adapters.discover import output_head
from ..adapters.merge import Pair
from ..adapters.peft_config import CONFIG_FILE
from ..adapters.peft_save import save_adapter
from ..adapters.sparse import save_sparse
from ..config import ModelConfig
from ..errors import ConfigError, RunError
from ..runs.atomic import disk_errors
from ..training.setup import Base
from .models import DEMO, attach_peft, load_tokenizer, location

SPARSE_FILE = "factors.sparse.safetensors"


@dataclass(frozen=True)
class Exported:
    """What an export holds. Densities are shares of entries that are not zero, before and after summing."""

    adapter: Path
    rank: int
    density_before: float
    density_after: float
    densities_after: Mapping[str, float]
    adapter_bytes: int
    sparse: Path | None
    sparse_bytes: int | None
    merged: Path | None


def merged_tensors(bank: AdapterBank) -> dict[str, Pair]:
    """Return the merged factors per module on the CPU in float32, pruned entries exactly zero."""
    with torch.no_grad():
        return {
            module: (a.detach().float().cpu(), b.detach().float().cpu()) for module, (a, b) in bank.merged().items()
        }


def nonzero_share(factors: Mapping[str, Pair]) -> float:
    """Return the share of entries of all factors that are not zero."""
    tensors = [tensor for pair in factors.values() for tensor in pair]
    return sum(int((t != 0).sum()) for t in tensors) / sum(t.numel() for t in tensors)


def nonzero_shares(factors: Mapping[str, Pair]) -> dict[str, float]:
    """Return the share of entries that are not zero in every summed factor, by `<module>.<A or B>`."""
    named = {f"{module}.{part}": t for module, pair in factors.items() for part, t in zip("AB", pair, strict=True)}
    return {name: int((t != 0).sum()) / t.numel() for name, t in named.items()}


def export_adapter(
    base: Base,
    bank: AdapterBank,
    folder: Path,
    *,
    card: str | None = None,
    sparse: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Write `folder/adapter` (PEFT) and, with `sparse`, the unsummed factors beside it.

    `sum_factors` gives rank r (the factors summed), `sum_deltas` the concatenation; either way `lora_alpha = r`, so
    that PEFT's scaling is 1. Raises `RunError` when the folder exists and `overwrite` is not set.
    """
    factors = merged_tensors(bank)
    adapter = folder / "adapter"
    if sparse and (folder / SPARSE_FILE).exists() and not overwrite:  # before the first of the two is written
        raise RunError(f"'{folder / SPARSE_FILE}' exists and is not overwritten. Choose another folder.")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_adapter(adapter, factors, base_model=base.name, revision=base.revision, model_card=card, overwrite=overwrite)
    sparse_path, sparse_bytes = None, None
    if sparse:
        sparse_path = folder / SPARSE_FILE
        sparse_bytes = save_sparse(
            sparse_path, bank.tensors(), bank.masks(), sparse_metadata(bank), overwrite=overwrite
        )
    return Exported(
        adapter,
        max(a.shape[0] for a, _ in factors.values()),
        bank.density(),
        nonzero_share(factors),
        nonzero_shares(factors),
        sum(file.stat().st_size for file in adapter.iterdir()),
        sparse_path,
        sparse_bytes,
        None,
    )


def sparse_metadata(bank: AdapterBank) -> dict[str, Any]:
    """Return what rebuilds the update from the unsummed factors: rule, strength, signs and every `c_k`."""
    return {
        "rule": bank.merge.rule,
        "strength": bank.merge.strength * bank.strength,
        "adapters": list(bank.names),
        "signs": list(bank.signs),
        "constants": {slot.key: bank.constant(slot) for slot in bank.slots},
    }


def check_mergeable(base_config: ModelConfig) -> None:
    """Raise `ConfigError` for a quantized base: the merged model would not be base plus update."""
    if base_config.quantization != "none":
        raise ConfigError(
            f"export.merged_model: a base in few bits (model.quantization={base_config.quantization}) cannot take the "
            "update exactly. Set export.merged_model=false and serve base and adapter separately, or "
            "model.quantization=none."
        )


def export_merged_model(base_config: ModelConfig, adapter: Path, folder: Path) -> Path:
    """Write the full base model with the adapter merged in, and its tokenizer, to `folder`.

    The base is loaded anew in its checkpoint's own precision, on the CPU; a quantized base cannot be merged exactly and
    is a `ConfigError`. Where the adapter changes a head that shares its weight with the embedding, the merged model has
    two weights.
    """
    check_mergeable(base_config)
    model = AutoModelForCausalLM.from_pretrained(
        location(base_config),
        dtype="auto",
        revision=base_config.revision,
        trust_remote_code=base_config.trust_remote_code,
    )
    if _touches_head(model, adapter):
        _untie(model)
    merged = attach_peft(model, adapter).merge_and_unload()
    with disk_errors(folder):
        try:
            merged.save_pretrained(folder)
        except SafetensorError as error:
            raise _as_os_error(error) from error
        load_tokenizer(base_config).save_pretrained(folder)
    return folder


def _as_os_error(error: SafetensorError) -> OSError:
    """Return what the disk said to safetensors, whose errors are none of `OSError` and name the number in words."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(str(error))


def _touches_head(model: Any, adapter: Path) -> bool:
    head = output_head(model)
    targets = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))["target_modules"]  # full names, by us
    return head is not None and head in targets


def _untie(model: Any) -> None:
    """Give a head that shares its weight with the embedding one of its own, or merging would change both."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is not embedding.weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for settings in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
        settings.tie_word_embeddings = False


def model_card(base_name: str, facts: Mapping[str, Any], table: str) -> str:
    """Return the README of an exported adapter: what it is, how it was made, how to load it."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    embedded = base_name == DEMO  # no name that transformers knows: the backbone lies wherever the package is installed
    named = "" if embedded else f"base_model: {base_name}\n"
    loaded = "demo_backbone()" if embedded else f'"{base_name}"'
    imported = "from grasp_lora import demo_backbone\n" if embedded else ""
    return f"""---
{named}library_name: peft
pipeline_tag: text-generation
tags:
- lora
- grasp-lora
---

# Merged and pruned LoRA adapter

Made with [GRASP LoRA](https://arxiv.org/abs/2601.06702): several LoRA adapters were merged, pruned at a ratio learned
by a controller, and fine-tuned on the target data.

```python
{imported}from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({loaded})
model = PeftModel.from_pretrained(model, "PATH_OF_THIS_FOLDER")
```

{_how_the_base_is_found(base_name)}

| setting | value |
| --- | --- |
{rows}

{table}
"""


def _how_the_base_is_found(name: str) -> str:
    """Say what has to be loaded first: only a hub id is found by its name everywhere."""
    if name == DEMO:
        return (
            "The base model comes with the package grasp-lora and is on no hub, so `AutoPeftModelForCausalLM`, which "
            "looks for a base by its recorded name, does not find it. Load it first, as above."
        )
    return (
        f"The base model is recorded as `{name}`. If that is a folder of yours and no hub id, give its path above; "
        "`AutoPeftModelForCausalLM` finds it only by a name that leads there."
    )
