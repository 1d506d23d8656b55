from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import peft
import peft_pico as pico
import pytest
import torch
from torch import Tensor, nn

from grasp_lora.adapters.discover import linear_modules, module_shapes
from grasp_lora.adapters.peft_load import load_adapter
from grasp_lora.adapters.peft_save import pad_rank, recorded_base, save_adapter
from grasp_lora.errors import AdapterError, RunError

Pairs = dict[str, tuple[Tensor, Tensor]]
IDS = torch.arange(24).reshape(2, 12) % 64


def factors(model: nn.Module, *endings: str, ranks: tuple[int, ...] = (4,)) -> Pairs:
    generator = torch.Generator().manual_seed(3)
    names = [name for name in linear_modules(model) if name.endswith(endings)]
    found: Pairs = {}
    for index, name in enumerate(names):
        d_out, d_in = module_shapes(model)[name]
        rank = ranks[index % len(ranks)]
        a, b = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        found[name] = (a * 0.3, b * 0.3)
    return found


def by_formula(pairs: Pairs, scaling: float = 1.0) -> Tensor:
    """Logits with W + s B A written into the weights."""
    model = pico.llama()
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight += scaling * b @ a
        return model(IDS).logits


def assert_close_logits(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("ranks", [(4,), (1, 3, 2)])
def test_peft_gives_the_logits_of_the_formula(ranks: tuple[int, ...], tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "q_proj", "v_proj", "down_proj", ranks=ranks)
    folder = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE)
    wanted = by_formula(pairs)
    assert not torch.allclose(wanted, by_formula({}), atol=0.1)
    loaded = pico.attach(pico.llama(), folder)
    assert sorted(pico.deltas(loaded)) == sorted(pairs)
    with torch.no_grad():
        assert_close_logits(loaded(IDS).logits, wanted)
        assert_close_logits(loaded.merge_and_unload()(IDS).logits, wanted)


def test_many_modules_are_matched_one_by_one(tmp_path: Path) -> None:
    """Above twenty targets PEFT shortens the list; a single module left out must stay out."""
    model = pico.llama(num_hidden_layers=4)
    pairs = factors(model, "_proj")
    del pairs["model.layers.3.mlp.up_proj"]
    folder = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE)
    assert sorted(pico.deltas(pico.attach(model, folder))) == sorted(pairs)


def test_transposed_base_weights(tmp_path: Path) -> None:
    pairs = factors(pico.gpt2(), "c_attn")
    folder = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE)
    found = pico.deltas(pico.attach(pico.gpt2(), folder))
    assert sorted(found) == sorted(pairs)
    for name, delta in found.items():
        torch.testing.assert_close(delta, pairs[name][1] @ pairs[name][0])


def test_configuration_is_plain(tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "q_proj", "v_proj", ranks=(2, 5))
    folder = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE, revision="abc", model_card="# Card")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["inference_mode"]) == (
        5,
        5,
        "none",
        True,
    )
    assert config["target_modules"] == sorted(pairs)
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["base_model_name_or_path"], config["revision"]) == (pico.BASE, "abc")
    assert (folder / "README.md").read_text() == "# Card"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert peft.PeftConfig.from_pretrained(str(folder)).peft_type == "LORA"


def test_configuration_has_no_field_that_an_older_peft_would_refuse(tmp_path: Path) -> None:
    """PEFT 0.9 of 2024 raises for any other field, whatever its value; what is left out is at its default."""
    known = {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r",
        "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora",
    }  # fmt: skip
    folder = save_adapter(tmp_path / "out", factors(pico.llama(), "q_proj"), base_model=pico.BASE)
    written = json.loads((folder / "adapter_config.json").read_text())
    assert set(written) <= known
    whole = peft.LoraConfig.from_pretrained(str(folder)).to_dict()
    default = peft.LoraConfig().to_dict()
    given = {"base_model_name_or_path", "target_modules", "task_type", "r", "lora_alpha", "inference_mode"}
    assert {key for key in whole if whole[key] != default[key]} <= given


def test_round_trip_is_exact(tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "k_proj", "up_proj")
    folder = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE)
    loaded = load_adapter(folder, module_shapes(pico.llama()), name="x", base_id=pico.BASE, head="lm_head")
    assert list(loaded.modules) == sorted(pairs)
    for name, factor in loaded.modules.items():
        assert factor.scaling == 1.0
        assert torch.equal(factor.A, pairs[name][0])
        assert torch.equal(factor.B, pairs[name][1])


@pytest.mark.parametrize("alpha", [32.0, 4 * 16 / 4**0.5, 2.5])
def test_trained_adapters_keep_their_alpha(alpha: float, tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "q_proj")
    folder = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE, alpha=alpha)
    loaded = load_adapter(folder, module_shapes(pico.llama()), name="x", base_id=pico.BASE)
    assert {factor.scaling for factor in loaded.modules.values()} == {alpha / 4}
    with torch.no_grad():
        logits = pico.attach(pico.llama(), folder)(IDS).logits
    assert_close_logits(logits, by_formula(pairs, alpha / 4))


@pytest.mark.parametrize(("alpha", "ranks"), [(8.0, (4, 2)), (0.0, (4,)), (float("nan"), (4,)), (-1.0, (4,))])
def test_alpha_that_cannot_be_written(alpha: float, ranks: tuple[int, ...], tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "q_proj", ranks=ranks)
    with pytest.raises(AdapterError, match="alpha must be above 0, and ranks equal"):
        save_adapter(tmp_path / "out", pairs, base_model=pico.BASE, alpha=alpha)


def test_same_factors_same_bytes(tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "q_proj", "v_proj")
    turned = dict(reversed(pairs.items()))
    first = save_adapter(tmp_path / "a", pairs, base_model=pico.BASE)
    second = save_adapter(tmp_path / "b", turned, base_model=pico.BASE)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_padding_adds_zeros_only() -> None:
    a, b = pad_rank(torch.ones(2, 3), torch.ones(4, 2), 5)
    assert (a.shape, b.shape) == ((5, 3), (4, 5))
    assert torch.equal(b @ a, torch.full((4, 3), 2.0))
    assert not a[2:].any()
    assert not b[:, 2:].any()


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("models/backbone", "models/backbone"),
        ("/home/someone/models/backbone/", "backbone"),
        ("~/models/backbone", "backbone"),
        ("C:\\models\\backbone", "backbone"),
    ],
)
def test_no_absolute_path_is_recorded(given: str, recorded: str) -> None:
    assert recorded_base(given) == recorded


def test_existing_folders_are_kept(tmp_path: Path) -> None:
    pairs = factors(pico.llama(), "q_proj")
    (tmp_path / "empty").mkdir()
    folder = save_adapter(tmp_path / "empty", pairs, base_model=pico.BASE)
    before = (folder / "adapter_model.safetensors").read_bytes()
    doubled = {name: (2 * a, b) for name, (a, b) in pairs.items()}
    with pytest.raises(RunError, match="not overwritten"):
        save_adapter(folder, doubled, base_model=pico.BASE)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    save_adapter(folder, doubled, base_model=pico.BASE, overwrite=True)
    assert (folder / "adapter_model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_only_adapter_folders_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="no adapter folder"):
        save_adapter(tmp_path / "mine", factors(pico.llama(), "q_proj"), base_model=pico.BASE, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disk_leaves_what_was_there(overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = factors(pico.llama(), "q_proj")
    target = tmp_path / "out"
    if overwrite:
        save_adapter(target, pairs, base_model=pico.BASE)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"no space left.*Free space"):
        save_adapter(target, pairs, base_model=pico.BASE, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if overwrite else [])


@pytest.mark.parametrize(
    ("problem", "seen"),
    [(OSError(errno.EACCES, "Permission denied"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failed_swap_puts_the_old_folder_back(
    problem: BaseException, seen: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = factors(pico.llama(), "q_proj")
    target = save_adapter(tmp_path / "out", pairs, base_model=pico.BASE)
    before = (target / "adapter_model.safetensors").read_bytes()
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self.name.endswith(".new"):
            raise problem
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(seen):
        save_adapter(target, {k: (2 * a, b) for k, (a, b) in pairs.items()}, base_model=pico.BASE, overwrite=True)
    assert (target / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_adapter(".", factors(pico.llama(), "q_proj"), base_model=pico.BASE)
    assert (tmp_path / "here" / "adapter_config.json").is_file()


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        save_adapter(tmp_path / "file" / "out", factors(pico.llama(), "q_proj"), base_model=pico.BASE)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4, 3)), "no pair of LoRA factors"),
        ((torch.ones(3), torch.ones(4, 3)), "no pair of LoRA factors"),
        ((torch.full((2, 3), float("nan")), torch.ones(4, 2)), "NaN or infinity"),
    ],
)
def test_factors_that_cannot_be_saved(pair: tuple[Tensor, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=message):
        save_adapter(tmp_path / "out", {"layer": pair}, base_model=pico.BASE)
    with pytest.raises(AdapterError, match="nothing to save"):
        save_adapter(tmp_path / "out", {}, base_model=pico.BASE)
    assert not (tmp_path / "out").exists()
