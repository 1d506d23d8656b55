"""The last feed-forward block on answer positions only."""

from __future__ import annotations

import pytest
import torch
from tests.pico import FAMILIES, pico_adapter, pico_model, pico_setup

from grasp_lora.adapters.inject import Injection
from grasp_lora.config import ModelConfig, SpeedConfig, TrainingConfig
from grasp_lora.pipeline.models import freeze
from grasp_lora.probing import Attached, Evaluator
from grasp_lora.training.step import TrainingPass

# Modules on both sides of the cut, the feed-forward block's own among them.
WIDE = {
    "gpt_neox": ("query_key_value", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "mlp.c_fc", "mlp.c_proj"),
}


def both_ways(family, checkpointing=False):
    """Losses of a round and of passes, and the gradient, with and without; and the tokens the last block has seen."""
    model = pico_model(family, torch.float64).requires_grad_(False)
    freeze(model, ModelConfig(gradient_checkpointing=checkpointing))
    work = pico_setup(model)
    modules = WIDE.get(family, ("q_proj", "o_proj", "gate_proj", "down_proj"))
    bank = work.bank([pico_adapter(model, name, modules=modules) for name in ("en", "ar")])
    half = torch.arange(bank.kept.numel()) % 2 == 0
    block = [module for name, module in model.named_modules() if name.endswith(".mlp")][-1]
    out, seen = [], []
    handle = block.register_forward_hook(lambda _m, args, _out: seen[-1].append(args[0].shape[:2].numel()))
    with Injection(model, bank.modules) as injection:
        for narrow in (True, False):
            seen.append([])
            attached = Attached(model, injection, bank, 0, SpeedConfig(narrow_last=narrow))
            losses = [Evaluator(attached, work.items("micro_dev")).candidate_losses([bank.kept, half, ~half])]
            model.train()
            step = TrainingPass(attached, work.items("train"), TrainingConfig(), None)
            bank.values.grad = torch.zeros_like(bank.values)
            losses += [step(work.items("train")[i : i + 3], 12) for i in range(0, 12, 3)]
            out.append([*losses, bank.values.grad])
            model.eval()
    handle.remove()
    return out, [sum(tokens) for tokens in seen], model


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_all_positions(family):
    (narrow, whole), seen, model = both_ways(family)
    for one, other in zip(narrow, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    # The settings of GPT models name dropouts, which may draw in training, so that there all positions are seen.
    assert seen[0] < seen[1] / (2 if family.startswith("gpt") else 3)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_layers_that_compute_anew_see_all_positions_in_training():
    (narrow, whole), seen, _ = both_ways("llama", checkpointing=True)
    for one, other in zip(narrow, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert seen[1] / 3 < seen[0] < seen[1]
