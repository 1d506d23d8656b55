"""Base models: device, dtype, checkpointing, the shape without weights, what cannot be loaded."""

import json
import shutil
import warnings

import pytest
import safetensors.torch
import torch
from world import World, load_plain, with_peft, write_model

from grasp_lora.adapters.discover import module_shapes
from grasp_lora.config import ModelConfig
from grasp_lora.errors import ConfigError, ModelError
from grasp_lora.pipeline import models
from grasp_lora.pipeline.answering import answer_prompt
from grasp_lora.pipeline.export import export_merged_model
from grasp_lora.pipeline.models import (
    attach_peft,
    check_device,
    fingerprint,
    load_base,
    recorded_name,
    resolve_device,
    resolve_dtype,
    skeleton,
)
from grasp_lora.pipeline.story import run_pipeline
from pico import FAMILIES, pico_model


def given(folder, **settings):
    return ModelConfig(name_or_path=str(folder), device="cpu", **settings)


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_the_cpu():
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("float64", torch.device("cuda")) == torch.float64


@pytest.mark.parametrize("dtype", ["auto", "float64", "bfloat16"])
def test_weights_come_in_the_dtype_that_was_asked_for(dtype, pico_folder):
    base = load_base(given(pico_folder, dtype=dtype))
    expected = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    assert {parameter.dtype for parameter in base.model.parameters()} == {expected}
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.name, base.device.type, base.model.training) == ("pico-llama", "cpu", False)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"'cuda:2' is not available here \(2 CUDA devices\)"):
        resolve_device("cuda:2")
    with pytest.raises(ConfigError, match="auto, cpu, cuda or cuda:N"):
        resolve_device("tpu please")
    with pytest.raises(ConfigError, match="auto, cpu, cuda or cuda:N"):
        check_device(ModelConfig(device="meta"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_skeleton_has_the_shapes_of_the_model_and_no_weights(family, tmp_path):
    folder = write_model(tmp_path / family, family)
    bare = skeleton(given(folder))
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert module_shapes(bare) == module_shapes(load_plain(folder))


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", "gpt2"])
def test_a_whole_run_on_other_families(family, tmp_path):
    world = World(tmp_path, write_model(tmp_path / family, family))
    result = run_pipeline(world.config(lora__target_modules="all-linear", evaluate__rivals=[]))
    loss = result.results["systems"]["grasp"]["scores"][0]["value"]
    assert loss < 6.0
    assert with_peft(world.model, result.adapter)


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_model_is_exact_where_the_adapter_changes_the_head(tied, tmp_path):
    world = World(tmp_path, write_model(tmp_path / "base", tie_word_embeddings=tied))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remark on tied heads
        adapter = world.adapter("head", target_modules=["q_proj", "lm_head"])
    tokens = torch.tensor([[1, 70, 71, 72]])
    out = export_merged_model(given(world.model), adapter, tmp_path / "out")
    with torch.no_grad():
        bare, served = load_plain(world.model)(tokens).logits, with_peft(world.model, adapter)(tokens).logits
        assert torch.allclose(load_plain(out)(tokens).logits, served, atol=1e-4)
    assert not torch.allclose(bare, served, atol=1.0)


def test_adapters_record_the_revision_of_their_base(pico_folder, tmp_path):
    world = World(tmp_path, pico_folder)
    result = run_pipeline(world.config(model__revision="abc123", evaluate__rivals=[], finalize__epochs=1))
    trained = [result.folder / "stages" / f"{role}_adapter" / "adapter" for role in ("source", "target")]
    for folder in (*trained, result.adapter):
        recorded = json.loads((folder / "adapter_config.json").read_text())
        assert (recorded["base_model_name_or_path"], recorded["revision"]) == (pico_folder.name, "abc123")


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_checkpointing_changes_nothing_but_memory_and_warns_of_nothing(family, tmp_path):
    world = World(tmp_path, write_model(tmp_path / family, family))
    modules = "all-linear"
    exports = []
    for on in (False, True):
        config = world.config(
            model__gradient_checkpointing=on, model__dtype="float64", run__dir=tmp_path / str(on),
            lora__target_modules=modules, data__target__test=None, prune__importance="sensitivity",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = run_pipeline(config)
        exports.append(safetensors.torch.load_file(result.adapter / "adapter_model.safetensors"))
    for key, tensor in exports[0].items():
        torch.testing.assert_close(exports[1][key], tensor, rtol=1e-5, atol=1e-7)


def test_peft_attaches_without_a_word(pico_folder, tmp_path):
    adapter = World(tmp_path, pico_folder).adapter("en")
    ids = torch.arange(3, 23)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = attach_peft(load_plain(pico_folder), adapter)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(ids).logits, with_peft(pico_folder, adapter)(ids).logits)


def test_answering_warns_of_nothing(pico_folder, tmp_path):
    world = World(tmp_path, pico_folder)
    adapter = str(world.adapter("en"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(answer_prompt(world.config(), adapter, "ab"), str)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_a_folder_lacks_is_told(missing, pico_folder, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(pico_folder, folder)
    (folder / missing).unlink()
    if missing == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load .*lacking"):
        load_base(given(folder))


def test_damaged_weights_are_told(pico_folder, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(pico_folder, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load .*damaged"):
        load_base(given(folder))


@pytest.mark.parametrize("kernel", ["nothing", "flash_attention_3"])  # a ValueError and an ImportError of transformers
def test_attention_that_is_not_there_is_told_with_weights_and_without(kernel, pico_folder):
    config = given(pico_folder, attn_implementation=kernel)
    for make in (load_base, lambda config: models.random_weights(pico_model("llama").config, config)):
        with pytest.raises(ModelError, match=f"model.attn_implementation: '{kernel}' cannot be used .*sdpa or eager"):
            make(config)


def test_weights_that_are_not_there_are_never_drawn_at_random(pico_folder, tmp_path):
    folder = tmp_path / "holes"
    shutil.copytree(pico_folder, folder)
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing \(such as model\.layers\.1\.self_attn\.q_proj"):
        load_base(given(folder))


def test_weights_of_another_shape_are_told(pico_folder, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(pico_folder, folder)
    other = write_model(tmp_path / "wide", hidden_size=64)
    shutil.copy(other / "config.json", folder / "config.json")
    with pytest.raises(ModelError, match="cannot load .*mixed"):
        load_base(given(folder))


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    from pico import pico_tokenizer

    folder = tmp_path / "endless"
    pico_model("llama").save_pretrained(folder)
    pico_tokenizer(eos=False).save_pretrained(folder)
    with pytest.raises(ModelError, match="no end token"):
        load_base(given(folder))


def test_names_that_travel_hold_no_path():
    assert recorded_name(ModelConfig(name_or_path="org/name")) == "org/name"
    assert recorded_name(ModelConfig(name_or_path="/home/me/models/name")) == "name"
    assert models.location(ModelConfig(name_or_path="demo")).endswith("demo")


def test_the_fingerprint_is_of_weights_and_config(pico_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pico_folder, folder)
    model = load_plain(folder)
    assert fingerprint(str(folder), model) == fingerprint(str(pico_folder), model)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert fingerprint(str(folder), model) != fingerprint(str(pico_folder), model)
    assert fingerprint("org/name", model) == "commit:None"


@pytest.mark.parametrize("load", [models.load_base, models.load_tokenizer, models.skeleton])
def test_a_path_that_is_not_there_is_not_blamed_on_attention(load):
    config = ModelConfig(name_or_path="./my-sdpa-attention-model", attn_implementation="sdpa")
    with pytest.raises(ModelError, match="model.name_or_path: cannot load './my-sdpa-attention-model'"):
        load(config)


def test_a_configuration_that_transformers_refuses_is_said_with_its_reason(tmp_path, pico_folder):
    folder = tmp_path / "model"
    shutil.copytree(pico_folder, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": 3}))
    for load in (models.load_base, models.skeleton):
        with pytest.raises(ModelError, match=r"cannot load .*hidden size .*attention heads"):
            load(given(folder))
