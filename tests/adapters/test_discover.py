from __future__ import annotations

from typing import Any

import peft
import peft_pico as pico
import pytest
import torch
from torch import nn

from grasp_lora.adapters.discover import (
    dims,
    linear_modules,
    module_shapes,
    output_head,
    resolve_target_modules,
)
from grasp_lora.errors import AdapterError, ConfigError

SETTINGS: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ("q_proj", "v_proj")},
    "part of a path": {"target_modules": ("self_attn.k_proj",)},
    "full name": {"target_modules": ("model.layers.1.mlp.down_proj", "o_proj")},
    "all-linear": {"target_modules": "all-linear"},
    "All-Linear": {"target_modules": "All-Linear"},
    "regex": {"target_modules": r"model\.layers\.\d+\.mlp\.(up|gate)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude": ("k_proj", "model.layers.0.mlp.up_proj")},
    "excluded regex": {"target_modules": ("q_proj", "v_proj"), "exclude": r".*\.0\..*"},
    "layer": {"target_modules": ("q_proj",), "layers_to_transform": 1},
    "layers": {"target_modules": ("q_proj",), "layers_to_transform": (0,), "layers_pattern": ("layers",)},
    "head": {"target_modules": ("q_proj", "lm_head")},
}


def by_peft(model: nn.Module, settings: dict[str, Any]) -> list[str]:
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    if "exclude" in listed:
        listed["exclude_modules"] = listed.pop("exclude")
    return sorted(pico.deltas(pico.wrap(model, **listed)))


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_modules_that_peft_takes(kind: str) -> None:
    assert sorted(resolve_target_modules(pico.llama(), **SETTINGS[kind])) == by_peft(pico.llama(), SETTINGS[kind])


def test_the_modules_that_peft_takes_of_transposed_layers() -> None:
    for targets in (("c_attn", "c_proj"), "all-linear"):
        wanted = by_peft(pico.gpt2(), {"target_modules": targets})
        assert sorted(resolve_target_modules(pico.gpt2(), targets)) == wanted


def test_dimensions_are_those_of_the_weight() -> None:
    shapes = module_shapes(pico.llama())
    assert shapes["model.layers.0.self_attn.k_proj"] == (16, 32)
    assert shapes["model.layers.0.mlp.down_proj"] == (32, 48)
    assert shapes["lm_head"] == (64, 32)
    assert module_shapes(pico.gpt2())["transformer.h.0.attn.c_attn"] == (96, 32)


def test_quantized_linears_are_known_by_their_sizes() -> None:
    class Linear4bitOfSomeLibrary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 8, 6
            self.packed = torch.zeros(24, dtype=torch.uint8)

    model = nn.ModuleDict({"layer": Linear4bitOfSomeLibrary(), "norm": nn.LayerNorm(4), "two": nn.Bilinear(2, 3, 4)})
    assert {name: dims(module) for name, module in linear_modules(model).items()} == {"layer": (6, 8)}


def test_output_head_is_found_and_left_out() -> None:
    model = pico.llama()
    assert output_head(model) == "lm_head"
    assert output_head(model.model) is None
    assert "lm_head" not in linear_modules(model)
    assert "lm_head" in linear_modules(model, include_head=True)
    assert len(linear_modules(model)) == 14


def test_nothing_matched_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'query' matches no module.*down_proj.*v_proj"):
        resolve_target_modules(pico.llama(), ("query",))
    with pytest.raises(ConfigError, match=r"'q' matches no module.*all-linear"):
        resolve_target_modules(pico.llama(), "q")
    with pytest.raises(ConfigError, match="after exclude"):
        resolve_target_modules(pico.llama(), ("q_proj",), layers_to_transform=7)


def test_one_entry_that_matches_nothing() -> None:
    with pytest.raises(ConfigError, match=r"'q_porj' matches no module\. Did you mean 'q_proj'\?"):
        resolve_target_modules(pico.llama(), ("v_proj", "q_porj"))


@pytest.mark.parametrize(("target", "kind"), [("embed_tokens", "Embedding"), ("mlp", "LlamaMLP"), ("norm", "RMSNorm")])
def test_modules_that_are_not_linear_are_refused_by_name(target: str, kind: str) -> None:
    with pytest.raises(AdapterError, match=rf"target_modules: model\..*{target} is a \w*{kind}"):
        resolve_target_modules(pico.llama(), ("q_proj", target))
    with pytest.raises(AdapterError, match="not a linear module"):
        dims(nn.Embedding(3, 4))


def test_settings_that_do_not_go_together() -> None:
    for targets in (".*q_proj", "all-linear"):
        with pytest.raises(ConfigError, match="layers_to_transform"):
            resolve_target_modules(pico.llama(), targets, layers_to_transform=(0,))
    with pytest.raises(ConfigError, match="layers_pattern"):
        resolve_target_modules(pico.llama(), ("q_proj",), layers_pattern="layers")
    with pytest.raises(ConfigError, match="regular expression"):
        resolve_target_modules(pico.llama(), "q_proj(")


def test_a_model_with_peft_layers_is_refused() -> None:
    wrapped: peft.PeftModel = pico.wrap(pico.llama(), target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"already carries a PEFT adapter.*unload"):
        linear_modules(wrapped)
