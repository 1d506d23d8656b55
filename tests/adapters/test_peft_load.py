from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import peft_pico as pico
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from grasp_lora.adapters import peft_config
from grasp_lora.adapters.discover import module_shapes, output_head
from grasp_lora.adapters.peft_base import base_label
from grasp_lora.adapters.peft_load import AdapterFactors, load_adapter
from grasp_lora.errors import AdapterError

PLAIN = {"target_modules": ["q_proj", "v_proj"]}
VARIETY: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "rank 1": {**PLAIN, "r": 1, "lora_alpha": 3},
    "rslora": {**PLAIN, "r": 6, "use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.1\.(mlp\.up_proj|self_attn\.k_proj)"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 7, r"model\.layers\.1.*q_proj": 2, r"^layers": 3},
        "alpha_pattern": {r"layers\.0\.self_attn\.v_proj": 5, "q_proj": 9.5},
    },
    "rslora patterns": {
        **PLAIN,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 9},
        "alpha_pattern": {"q_proj": 2},
    },
    "some layers": {**PLAIN, "layers_to_transform": [1], "layers_pattern": "layers"},
    "one layer": {**PLAIN, "layers_to_transform": 0},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["k_proj", "model.layers.0.mlp.up_proj"]},
    "full names": {"target_modules": ["model.layers.0.self_attn.q_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "gaussian, dropout": {**PLAIN, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    "no task": {**PLAIN, "task_type": None},
}


def shapes(model: torch.nn.Module | None = None) -> dict[str, tuple[int, int]]:
    return module_shapes(model or pico.llama())


def load(folder: Path | str, **settings: Any) -> AdapterFactors:
    return load_adapter(folder, shapes(), **{"name": "source", "base_id": pico.BASE, "head": "lm_head", **settings})


def assert_same_deltas(loaded: AdapterFactors, wanted: dict[str, Tensor]) -> None:
    assert list(loaded.modules) == sorted(wanted)
    for name, factor in loaded.modules.items():
        assert factor.A.dtype == factor.B.dtype == torch.float32
        torch.testing.assert_close(factor.scaling * factor.B @ factor.A, wanted[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", VARIETY)
def test_update_is_what_peft_computes(kind: str, tmp_path: Path) -> None:
    wrapped = pico.wrap(pico.llama(), **VARIETY[kind])
    loaded = load(pico.save(wrapped, tmp_path / "adapter"))
    assert_same_deltas(loaded, pico.deltas(wrapped))
    assert loaded.notices == ()


def test_all_linear_left_unresolved_in_the_file(tmp_path: Path) -> None:
    wrapped = pico.wrap(pico.llama(), target_modules="all-linear")
    folder = pico.save(wrapped, tmp_path / "adapter")
    pico.edit_config(folder, target_modules="all-linear")
    assert_same_deltas(load(folder), pico.deltas(wrapped))


def test_transposed_base_weights(tmp_path: Path) -> None:
    wrapped = pico.wrap(pico.gpt2(), target_modules=["c_attn", "c_proj"])
    folder = pico.save(wrapped, tmp_path / "adapter")
    loaded = load_adapter(folder, shapes(pico.gpt2()), name="x", base_id=pico.BASE)
    assert_same_deltas(loaded, pico.deltas(wrapped))


def test_shapes_from_a_meta_device_model(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    with torch.device("meta"):
        model = pico.llama()
    assert output_head(model) == "lm_head"
    meta = load_adapter(folder, module_shapes(model), name="source", base_id=pico.BASE)
    assert meta.sha256 == load(folder).sha256
    assert list(meta.modules) == list(load(folder).modules)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_widened_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    kept: dict[str, Tensor] = {}

    def narrow(tensors: dict[str, Tensor]) -> None:
        for key in tensors:
            tensors[key] = kept[key] = tensors[key].to(dtype)

    pico.edit_weights(folder, narrow)
    for name, factor in load(folder).modules.items():
        stored = kept[f"base_model.model.{name}.lora_A.weight"]
        assert torch.equal(factor.A, stored.to(torch.float32))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".weight", ".default.weight"),
        (".weight", ".english.weight"),
        ("base_model.model.", ""),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("self_attn.", "_fsdp_wrapped_module.self_attn."),
    ],
)
def test_names_as_other_tools_write_them(old: str, new: str, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    wanted = load(folder)
    pico.edit_weights(folder, lambda tensors: {key.replace(old, new): t for key, t in tensors.items()})
    again = load(folder)
    assert again.notices == ()
    assert list(again.modules) == list(wanted.modules)
    assert all(torch.equal(again.modules[name].B, wanted.modules[name].B) for name in wanted.modules)


@pytest.mark.parametrize(
    ("old", "new"), [("base_model.model.model.", "base_model.model."), ("model.layers", "text.model.layers")]
)
def test_a_shared_prefix_is_matched_and_told(old: str, new: str, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    wanted = load(folder)
    pico.edit_weights(folder, lambda tensors: {key.replace(old, new): t for key, t in tensors.items()})
    again = load(folder)
    assert list(again.modules) == list(wanted.modules)
    assert len(again.notices) == 1
    assert "matched" in again.notices[0]


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    first, second = load(folder), load(copy)
    assert first.sha256 == second.sha256
    assert (first.origin, second.origin) == ("adapter", "copy")
    pico.edit_config(copy, lora_alpha=17)
    assert load(copy).sha256 != first.sha256


def test_origin_holds_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pico.plain(tmp_path / "adapter")
    monkeypatch.chdir(folder)
    assert load(".").origin == "adapter"


def refuses(folder: Path | str, *parts: str, **settings: Any) -> None:
    with pytest.raises(AdapterError) as caught:
        load(folder, **settings)
    for part in parts:
        assert part in str(caught.value)


def test_missing_folder_names_what_was_asked(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "nowhere", "does not exist")
    refuses(str(tmp_path / "nowhere"), "does not exist")
    (tmp_path / "file").write_text("x")
    refuses(tmp_path / "file", "is a file")


def test_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(peft_config, "snapshot_download", offline)
    refuses("owner/adapter", "owner/adapter", "could not be fetched")


def test_hub_id_fetches_only_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pico.plain(tmp_path / "snapshot")

    def fetch(repo: str, allow_patterns: list[str]) -> str:
        assert allow_patterns == ["adapter_config.json", "adapter_model.safetensors"]
        return str(folder)

    monkeypatch.setattr(peft_config, "snapshot_download", fetch)
    assert load("owner/adapter").origin == "owner/adapter"


def test_folder_without_configuration(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    (folder / "adapter_config.json").unlink()
    refuses(folder, "adapter_config.json is missing")


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.pt"])
def test_pickled_weights_are_not_opened(name: str, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / name)
    refuses(folder, "pickled", name, "save_file")


def test_folder_without_weights(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    refuses(folder, "has no adapter_model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(share: float, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refuses(folder, "truncated or damaged")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[key][3, 1] = value

    pico.edit_weights(folder, spoil)
    refuses(folder, key, "1 of 64 values")


def test_integer_weights(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_weights(folder, lambda tensors: {key: t.to(torch.int8) for key, t in tensors.items()})
    refuses(folder, "torch.int8", "not floating point")


def test_shapes_of_another_base(tmp_path: Path) -> None:
    folder = pico.save(pico.wrap(pico.llama(hidden_size=40), **PLAIN), tmp_path / "adapter")
    refuses(folder, "layers.0.self_attn.q_proj", "(40, 40)", "(32, 32)")


def test_modules_that_the_base_lacks(tmp_path: Path) -> None:
    folder = pico.save(pico.wrap(pico.llama(num_hidden_layers=3), **PLAIN), tmp_path / "adapter")
    refuses(folder, "no linear module model.layers.2.self_attn.q_proj", "2 of 6", "Did you mean", "gate_proj")


def test_rank_against_configuration_and_between_factors(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_config(folder, r=5)
    refuses(folder, "A has 4, B has 4", "says 5")
    pico.edit_config(folder, r=4)

    def cut(tensors: dict[str, Tensor]) -> None:
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        tensors[key] = tensors[key][:3].clone()

    pico.edit_weights(folder, cut)
    refuses(folder, "layers.0.self_attn.q_proj", "A has 3, B has 4")


def test_targets_without_weights(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_weights(folder, lambda tensors: {key: t for key, t in tensors.items() if "layers.1." not in key})
    refuses(folder, "means 4 modules, but 2 have no weights", "model.layers.1.self_attn.q_proj")


def test_explicit_head_without_weights(tmp_path: Path) -> None:
    folder = pico.save(pico.wrap(pico.llama(), target_modules=["q_proj", "lm_head"]), tmp_path / "adapter")
    pico.edit_weights(folder, lambda tensors: {key: t for key, t in tensors.items() if "lm_head" not in key})
    refuses(folder, "1 have no weights", "lm_head")


def test_weights_that_are_not_targeted(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_config(folder, target_modules=["q_proj"])
    refuses(folder, "2 modules have weights", "v_proj")


def test_half_a_pair(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    pico.edit_weights(folder, lambda tensors: {k: t for k, t in tensors.items() if k != key})
    refuses(folder, "model.layers.0.self_attn.q_proj has no lora_B")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("base_model.model.model.embed_tokens.weight", "weights of the base"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "an embedding"),
        ("base_model.model.lm_head.base_layer.weight", "save_embedding_layers=False"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "unknown variant"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "weights of the base"),
    ],
)
def test_unexpected_tensors(key: str, reason: str, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_weights(folder, lambda tensors: {**tensors, key: torch.ones(4, 4)})
    refuses(folder, f"unexpected tensor {key}", reason)


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_weights(
        folder,
        lambda tensors: {k.replace(".weight", f".{n}.weight"): t + 0 for k, t in tensors.items() for n in "ab"},
    )
    refuses(folder, "more than one adapter")


def test_empty_and_higher_dimensional_weights(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_weights(folder, lambda tensors: {key: t[..., None].contiguous() for key, t in tensors.items()})
    refuses(folder, "(4, 32, 1)", "not matrices")
    save_file({}, folder / "adapter_model.safetensors")
    refuses(folder, "holds no tensors")


def test_another_base_of_the_same_shape(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    refuses(folder, "'pico/llama-pico'", "'pico/other'", base_id="pico/other")
    allowed = load(folder, base_id="pico/other", allow_other_base=True)
    assert "allowed" in allowed.notices[0]


@pytest.mark.parametrize("base_id", ["LLAMA-Pico", "/srv/models/llama-pico/", "mirror/llama-pico"])
def test_base_names_that_mean_the_same(base_id: str, tmp_path: Path) -> None:
    assert load(pico.plain(tmp_path / "adapter"), base_id=base_id).notices == ()


def test_messages_show_no_path_of_a_base(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=re.escape("'other'")) as caught:
        load(folder, base_id="/srv/models/Other")
    assert "/srv" not in str(caught.value)


def test_base_label_of_a_hub_cache_path() -> None:
    assert base_label("/c/hub/models--Meta--Llama-3-8B/snapshots/0123abc") == "llama-3-8b"
    assert base_label("C:\\models\\Llama-3-8B\\") == "llama-3-8b"


@pytest.mark.parametrize(
    ("trained", "used", "told"),
    [(None, None, False), ("main", None, False), ("abc", "abc", False), ("abc", None, True), (None, "abc", True)],
)
def test_another_revision_of_the_base_is_a_notice(trained: str, used: str, told: bool, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_config(folder, revision=trained)
    notices = load(folder, base_revision=used).notices
    words = f"was trained on revision '{trained or 'main'}' of its base, in use is '{used or 'main'}'"
    assert [words in notice for notice in notices] == ([True] if told else [])


@pytest.mark.parametrize("base", [None, ""])
def test_no_base_named_is_a_notice(base: str | None, tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_config(folder, base_model_name_or_path=base)
    assert "does not" in load(folder).notices[0]


def test_base_in_use_without_a_name_is_a_notice(tmp_path: Path) -> None:
    assert "no name" in load(pico.plain(tmp_path / "adapter"), base_id=None).notices[0]


def test_bad_regular_expression_in_the_file(tmp_path: Path) -> None:
    folder = pico.plain(tmp_path / "adapter")
    pico.edit_config(folder, target_modules="q_proj(")
    refuses(folder, "adapter_config.json", "not a valid regular expression")
