"""Passes without a mask: the same losses, for the models and lengths that need none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from tests.pico import FAMILIES, pico_model, pico_setup

from grasp_lora.data import collate
from grasp_lora.probing import example_losses
from grasp_lora.probing.attention import maskless_width, planless, unmasked


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_right_padding_needs_no_mask(family):
    """Llama, Qwen and GPT models qualify whatever the length, windows bound it, and soft caps (no SDPA) rule it out."""
    model = pico_model(family, torch.float64)
    items = pico_setup(model).items("train")[:5]
    batch = collate(items, 0, width=max(len(item.input_ids) for item in items) + 7)
    torch.testing.assert_close(
        example_losses(model, batch), example_losses(model, batch, maskless=False), rtol=0, atol=1e-10
    )
    if model.config._attn_implementation != "sdpa":  # Gemma 2 in newer versions of transformers
        assert maskless_width(model) == 0
    else:
        assert maskless_width(model) == {"mistral": 8, "gemma3": 8, "gemma": 4096}.get(family, sys.maxsize)


def test_the_model_is_asked_for_masks_again_afterwards():
    model = pico_model("llama")
    before = model.config._attn_implementation
    with unmasked(model, 10) as free:
        assert free
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before == "sdpa"
    with unmasked(model, sys.maxsize):
        pass
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    "change", [{"attn_implementation": "eager"}, {"use_bidirectional_attention": True}, {"sliding_window": 4}]
)
def test_models_that_need_a_mask_get_one(change):
    model = pico_model("llama", **change)
    assert maskless_width(model) in (0, 4)
    with unmasked(model, 10) as free:
        assert not free
    assert maskless_width(torch.nn.Linear(2, 2)) == 0


@pytest.mark.parametrize(
    ("width", "joined", "limit", "planned"),
    [
        (300, None, 512, False),
        (512, None, 512, True),
        (3000, 300, 512, False),
        (3000, 600, 512, True),
        (3, None, 1, True),
    ],
)
def test_short_sequences_get_no_kernel_that_plans(width, joined, limit, planned):
    batch = SimpleNamespace(
        input_ids=SimpleNamespace(is_cuda=True, shape=(2, width)), joined=joined and SimpleNamespace(width=joined)
    )
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    with planless(batch, limit):
        assert torch.backends.cuda.cudnn_sdp_enabled() is (planned and before)
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled() is False  # as the user has it
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    assert torch.backends.cuda.cudnn_sdp_enabled() is before
