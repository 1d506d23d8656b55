"""Attached factors against W + dW and against PEFT; channel norms; nothing left behind."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from tests.pico import FAMILIES, pico_adapter, pico_model, pico_setup, targets
from transformers.pytorch_utils import Conv1D

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.inject import ChannelNorms, Injection
from grasp_lora.adapters.masks import rank
from grasp_lora.config import MergeConfig, ModelConfig
from grasp_lora.data import collate
from grasp_lora.errors import AdapterError, ModelError
from grasp_lora.pipeline.models import freeze
from grasp_lora.probing import example_losses


def ids() -> torch.Tensor:
    return torch.arange(3, 3 + 24).reshape(2, 12)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(ids()).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_w_plus_delta_inside_and_is_bare_outside(family):
    model = pico_model(family, torch.float64)
    adapters = [pico_adapter(model, "en"), pico_adapter(model, "ar", scaling=0.5)]
    bank = AdapterBank(adapters, MergeConfig(weights=(1.0, -0.6)), torch.float64)
    folded = copy.deepcopy(model)
    for module, (a, b) in bank.merged().items():
        layer = folded.get_submodule(module)
        delta = (b @ a).detach()
        layer.weight.data += delta.T if isinstance(layer, Conv1D) else delta
    bare, wanted = logits(model), logits(folded)
    assert (bare - wanted).abs().max() > 1e-3
    before = {name: id(module) for name, module in model.named_modules()}
    with Injection(model, bank.modules) as injection:
        assert torch.equal(logits(model), bare)
        with injection.active(bank.merged()):
            torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-10)
            with injection.active({}):
                assert torch.equal(logits(model), bare)
            torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-10)
        assert torch.equal(logits(model), bare)
    assert not any(module._forward_hooks for module in model.modules())
    assert {name: id(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("family", FAMILIES)
def test_one_adapter_gives_pefts_logits(family):
    model = pico_model(family)
    adapter = pico_adapter(model, "en", scaling=2.0)
    bank = AdapterBank([adapter], MergeConfig(rule="sum_deltas"))
    with Injection(model, bank.modules) as injection, injection.active(bank.merged()):
        ours = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(
            model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(adapter.modules), task_type="CAUSAL_LM")
        ).eval()
    for module, factor in adapter.modules.items():
        layer = made.get_base_model().get_submodule(module)
        layer.lora_A["default"].weight.data.copy_(factor.A)
        layer.lora_B["default"].weight.data.copy_(factor.B)
    theirs = logits(made)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_in_one_pass_give_the_losses_of_one_by_one(family):
    model = pico_model(family, torch.float64)
    work = pico_setup(model)
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    ranking = rank(bank.dense().abs(), bank.segments("per_tensor"))
    bank.commit(ranking.kept(0.5))
    masks = [bank.kept, *(ranking.kept(p) for p in (0.0, 0.3, 0.95, 1.0))]
    with Injection(model, bank.modules) as injection:
        probe = work.evaluator(work.attach(injection, bank), "micro_dev", batch_size=4)
        together, bare = probe.candidate_losses(masks), probe.bare_losses()
        single = []
        for kept in masks:
            bank.commit(kept)
            single.append(probe.losses())
    torch.testing.assert_close(together, torch.stack(single), rtol=0, atol=1e-10)
    torch.testing.assert_close(together[-1], bare, rtol=0, atol=1e-10)
    assert len({round(float(row.mean()), 6) for row in together}) == len(masks)


def norms_of_a_pass(model, items, *, train: bool, batch: int) -> dict[str, torch.Tensor]:
    adapter = pico_adapter(model, "en")
    bank = AdapterBank([adapter], MergeConfig(), torch.float64)
    norms = ChannelNorms()
    model.train(train)
    with Injection(model, bank.modules) as injection:
        for start in range(0, len(items), batch):
            padded = collate(items[start : start + batch], 0)
            with injection.active(bank.merged()):
                with injection.gathering(norms, padded.attention_mask):
                    losses = example_losses(model, padded)
                losses.sum().backward()
    model.eval()
    return norms.norms()


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_channel_norms_count_each_token_once_with_checkpointing_and_never_padding(family):
    model = pico_model(family, torch.float64)
    work = pico_setup(model)
    items = work.items("train")
    plain = norms_of_a_pass(model, items, train=True, batch=1)
    padded = norms_of_a_pass(model, items, train=True, batch=5)
    freeze(model, ModelConfig(gradient_checkpointing=True))
    checkpointed = norms_of_a_pass(model, items, train=True, batch=5)
    assert set(plain) == set(pico_adapter(model, "en").modules)
    for module, x in plain.items():
        assert bool((x > 0).any())
        torch.testing.assert_close(padded[module], x, rtol=1e-10, atol=0)
        torch.testing.assert_close(checkpointed[module], padded[module], rtol=1e-12, atol=0)


def test_channel_norms_are_the_norms_of_the_modules_inputs():
    model = pico_model("llama")
    inputs = []
    handle = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    norms, mask = ChannelNorms(), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 5:] = 0
    with Injection(model, ["model.layers.0.self_attn.q_proj"]) as injection, injection.gathering(norms, mask):
        logits(model)
    handle.remove()
    tokens = inputs[0][mask.bool()]
    found = norms.norms()["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(found, tokens.norm(dim=0))
    norms.reset()
    assert norms.norms() == {}


def test_an_unknown_module_is_named_and_no_hook_stays():
    model = pico_model("llama")
    with pytest.raises(AdapterError, match=r"no module 'model\.layers\.9\.q_proj'"):
        Injection(model, [*pico_adapter(model, "en").modules, "model.layers.9.q_proj"])
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_without_a_token_axis_are_refused_with_what_to_do():
    layer = torch.nn.ModuleDict({"m": torch.nn.Linear(3, 3)})
    with Injection(layer, ["m"]) as injection:
        with injection.gathering(ChannelNorms(), torch.ones(2, 2)), pytest.raises(ModelError, match="cannot follow m"):
            layer["m"](torch.ones(4, 3))
        pair = (torch.ones(2, 1, 3), torch.ones(2, 3, 1))
        with injection.active({"m": pair}, groups=2), pytest.raises(ModelError, match="m cannot be probed"):
            layer["m"](torch.ones(4, 3))


def test_dropout_in_front_of_the_adapter_never_touches_the_base():
    model = pico_model("llama")
    bank = AdapterBank([pico_adapter(model, "en")], MergeConfig())
    with Injection(model, bank.modules) as injection:
        with torch.random.fork_rng(devices=[]), injection.active(bank.merged(), dropout=0.5):
            torch.manual_seed(0)
            one, two = logits(model), logits(model)
        assert not torch.equal(one, two)
        nothing = {name: (a * 0, b) for name, (a, b) in bank.merged().items()}
        bare = logits(model)
        with torch.random.fork_rng(devices=[]), injection.active(nothing, dropout=0.5):
            torch.manual_seed(0)
            assert torch.equal(logits(model), bare)


def test_the_families_differ_in_what_they_adapt():
    shapes = {family: pico_model(family).config.model_type for family in FAMILIES}
    assert len(set(shapes.values())) == len(FAMILIES)
    assert targets("gpt2") != targets("gpt_neox") != targets("llama")
