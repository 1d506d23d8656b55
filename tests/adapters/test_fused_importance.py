"""Activation importance in kernels: the plain formula's numbers, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from tests.pico import pico_adapter, pico_model

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.importance import activation, activation_of
from grasp_lora.adapters.kernels import kernels_run
from grasp_lora.config import MergeConfig
from grasp_lora.errors import ModelError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not kernels_run(DEVICE), reason="needs Triton and a GPU, or its interpreter")


def a_bank(ranks=(4, 4), width=80, dtype=torch.float32, **merge):
    model = pico_model("llama", torch.float32, hidden_size=width, intermediate_size=3 * width)
    modules = ("q_proj", "v_proj", "down_proj")
    made = [pico_adapter(model, name, rank=rank, modules=modules) for name, rank in zip("abc", ranks, strict=False)]
    return AdapterBank(made, MergeConfig(**merge), dtype).to(DEVICE)


def norms_of(bank):
    generator = torch.Generator().manual_seed(0)
    return {
        module: torch.rand(a.shape[-1], generator=generator).to(bank.values) for module, (a, _) in bank.merged().items()
    }


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize(
    "given",
    [
        {"weights": (0.3, 1.7)},
        {"ranks": (1, 7), "width": 96, "rule": "sum_deltas"},
        {"ranks": (17, 33), "rule": "sum_deltas", "weights": (1.0, -0.5)},
    ],
)
def test_kernels_give_the_plain_importance_twice_alike(given):
    bank = a_bank(**given)
    norms = norms_of(bank)
    with torch.no_grad():
        bank.commit(torch.arange(bank.kept.numel(), device=DEVICE) % 3 > 0)  # pruned entries count by their stash
    fused = activation_of(bank, fused=True)
    found, wanted = fused(norms), activation(bank, norms)
    assert (found - wanted).norm() <= 2e-3 * wanted.norm()  # a sign that rounding decides changes a sum by little
    assert torch.equal(fused(norms), found)
    assert found.min() >= 0


@pytest.mark.gpu
@needs_triton
def test_a_module_without_norms_is_named():
    with pytest.raises(ModelError, match=r"activation has nothing to go by at .*down_proj"):
        activation_of(a_bank(), fused=True)({})


def test_without_kernels_and_in_float64_it_is_the_plain_formula():
    for bank, fused in ((a_bank(), False), (a_bank(dtype=torch.float64), True)):
        norms = norms_of(bank)
        assert torch.equal(activation_of(bank, fused=fused)(norms), activation(bank, norms))
