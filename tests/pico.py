"""Small things that tests are made of."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grasp_lora import api
from grasp_lora.adapters.discover import dims, linear_modules
from grasp_lora.adapters.peft_load import AdapterFactors, Factor
from grasp_lora.errors import Interrupted
from grasp_lora.pipeline.stageio import StageIO
from grasp_lora.training.setup import Setup

FAMILIES = ("llama", "qwen3", "mistral", "gemma", "gemma3", "gpt_neox", "gpt2")
VOCABULARY = 259
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = {"num_key_value_heads": 2, "head_dim": 8}
# A cap that bites: the logits of these models reach it.
_CAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0}
_SLIDING = {"sliding_window": 8}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": VOCABULARY}
_GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_MAKERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _SIZES | {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, _SIZES | _GQA),
    "mistral": (MistralConfig, MistralForCausalLM, _SIZES | _GQA | _SLIDING),
    "gemma": (Gemma2Config, Gemma2ForCausalLM, _SIZES | _GQA | _CAPS | {"query_pre_attn_scalar": 8}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        _SIZES | _GQA | _SLIDING | _CAPS | {"query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, _SIZES),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        _GPT2 | _GPT2_DROPOUT | {k: _SIZES[k] for k in _SIZES if k.endswith("_id") or k == "initializer_range"},
    ),
}


def pico_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A model of two layers and 32 channels, the same one every time; the global random state stays untouched."""
    settings, cls, sizes = _MAKERS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: PreTrainedModel = cls(settings(**{**sizes, **changes}))
    return model.to(dtype).eval()


def targets(family: str) -> tuple[str, ...]:
    """Two kinds of modules to adapt, with different shapes where the family has such."""
    return {"gpt_neox": ("query_key_value", "dense_4h_to_h"), "gpt2": ("c_attn", "mlp.c_proj")}.get(
        family, ("q_proj", "v_proj")
    )


def pico_adapter(
    model: PreTrainedModel,
    name: str,
    *,
    rank: int = 4,
    scaling: float = 2.0,
    modules: Sequence[str] | None = None,
    size: float = 0.15,
) -> AdapterFactors:
    """An adapter with random A and B, drawn from its name; `modules` are endings of module names."""
    endings = tuple(modules or targets(family_of(model)))
    found = [key for key in sorted(linear_modules(model)) if key.endswith(endings)]
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[:7], "big"))
    factors = {}
    for module in found:
        d_out, d_in = dims(model.get_submodule(module))
        a = torch.randn(rank, d_in, generator=generator) * size
        factors[module] = Factor(a, torch.randn(d_out, rank, generator=generator) * size, scaling)
    return AdapterFactors(name=name, origin=name, sha256="", modules=factors)


def family_of(model: PreTrainedModel) -> str:
    """The name under which `pico_model` makes such a model."""
    return {"gemma2": "gemma", "gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)


def pico_rows(count: int, split: str, start: int = 0) -> list[dict[str, str]]:
    """QA examples of different lengths; no text is in two of them."""
    colours = ("red", "blue", "green", "grey", "white")
    return [
        {
            "context": f"{split}{i} " + "ab " * (1 + i % 4) + colours[i % 5],
            "question": f"{split} {i}?",
            "answer": colours[i % 5][: 2 + i % 3],
        }
        for i in range(start, start + count)
    ]


def pico_setup(model: PreTrainedModel, config: Mapping[str, Any] | None = None, **counts: int) -> Setup:
    """The stages' work: 12 train, 6 dev, 6 micro-dev and 4 test examples unless told otherwise (0: none)."""
    sizes = {"train": 12, "dev": 6, "micro_dev": 6, "test": 4, **counts}
    rows: dict[str, Any] = {name: pico_rows(count, name) for name, count in sizes.items() if count}
    settings = {"task": {"language": "en", "prompt": "{context} {question}="}, **(config or {})}
    return api.setup(model, pico_tokenizer(), config=settings, **rows)


def pico_tokenizer(*, bos: bool = True, eos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 259 tokens: <pad> 0, <s> 1, </s> 2, then the bytes; it adds none itself."""
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>" if bos else None, "eos_token": "</s>" if eos else None}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>" if pad else None,
        **{name: token for name, token in special.items() if token},
    )


@contextmanager
def undrawn(seed: int | None = None) -> Iterator[None]:
    """Fail when a block changes a global random state; with `seed`, all three are seeded for the block only."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the state in question
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        yield
        assert random.getstate() == before[0]
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        torch.set_rng_state(saved[2])


class Recorder(StageIO):
    """A stage's surroundings that keep the rounds of a search, without their times, and stop after step `stop_at`."""

    def __init__(self, name: str, folder: Path | None = None, stop_at: int | None = None, every: int = 50) -> None:
        self._polls, self._stop_at = 0, stop_at
        self.rows: list[dict[str, Any]] = []
        super().__init__(name, folder, stop_requested=self._poll, checkpoint_every=every)

    def _poll(self) -> bool:
        self._polls += 1
        return self._polls == self._stop_at

    def record_round(self, row: dict[str, Any]) -> None:
        super().record_round(row)
        self.rows.append({key: value for key, value in row.items() if key != "time"})


T = TypeVar("T")


def stopped_and_resumed(stage: Callable[[StageIO], T], name: str, folder: Path, stops: Sequence[int]) -> T:
    """What `stage` returns after it was interrupted after so many steps, each time going on with new objects."""
    for stop in stops:
        with pytest.raises(Interrupted):
            stage(Recorder(name, folder, stop))
    return stage(Recorder(name, folder))
