"""Norms in one kernel: which qualify, what they compute, and that they are given back."""

from __future__ import annotations

import pytest
import torch
from tests.pico import FAMILIES, pico_model

from grasp_lora.probing.norms import fuse_norms


def shifted(family, dtype):
    """A model whose norms have weights that tell `weight` from `1 + weight`."""
    model = pico_model(family, dtype)
    for name, weight in model.named_parameters():
        if "norm" in name and weight.dim() == 1:
            weight.data.add_(torch.linspace(0.1, 0.6, weight.numel(), dtype=dtype))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_norms_of_llama_qwen_and_mistral_run_in_one_kernel_and_others_as_they_are(family):
    model, ids = shifted(family, torch.float32), torch.arange(3, 27).reshape(2, 12)
    plain = model(ids).logits
    fused = fuse_norms(model)
    assert bool(len(fused)) is (family in ("llama", "qwen3", "mistral"))
    torch.testing.assert_close(model(ids).logits, plain, rtol=1e-4, atol=1e-4)
    fused.remove()
    assert torch.equal(model(ids).logits, plain)
    assert not any("forward" in vars(module) for module in model.modules())


def test_gradients_are_those_of_the_norms_they_replace():
    model = shifted("llama", torch.float32)
    hidden, found = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)), []
    for fused in (False, True):
        overrides = fuse_norms(model) if fused else None
        x = hidden.clone().requires_grad_()
        model.model.norm(x).square().sum().backward()
        found.append(x.grad)
        if overrides is not None:
            overrides.remove()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_in_float64_norms_stay_since_theirs_are_in_float32():
    assert len(fuse_norms(shifted("llama", torch.float64))) == 0


def test_an_input_of_another_precision_goes_the_plain_way():
    model = shifted("llama", torch.bfloat16)
    plain = model.model.norm(torch.ones(1, 2, 32))
    with_one = fuse_norms(model)
    assert len(with_one) > 0
    assert torch.equal(model.model.norm(torch.ones(1, 2, 32)), plain)


def test_what_was_overridden_before_is_given_back():
    model = shifted("llama", torch.float32)
    norm = model.model.norm
    norm.forward = own = lambda hidden: hidden
    fuse_norms(model).remove()
    assert norm.forward is own
