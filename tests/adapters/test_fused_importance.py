"""Activation importance in kernels: the plain formula's numbers, on a GPU or in an interpreter (`make kernels`)."""

from __future__ import annotations

import pytest
import torch
from tests.pico import pico_adapter, pico_model

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.importance import activation, activation_of
from grasp_lora.adapters.kernels import kernels_run
from grasp_lora.adapters.peft_load import AdapterFactors, Factor
from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import MergeConfig
from grasp_lora.errors import ModelError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not kernels_run(DEVICE), reason="needs Triton and a GPU, or its interpreter")
if kernels_run(DEVICE):
    from triton.runtime.errors import OutOfResources

    from grasp_lora.adapters.triton_importance import FusedActivation, _tiles


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
def test_weights_in_force_count_when_they_change():
    bank = a_bank()
    norms, fused = norms_of(bank), activation_of(bank, fused=True)
    for weights in ((1.0, 1.0), (0.25, 1.0), (0.25, 4.0)):
        bank.stand_at(MergePoint(0.0, 1.0, weights))
        wanted = activation(bank, norms)
        assert (fused(norms) - wanted).norm() <= 2e-3 * wanted.norm()


def made(ranks, d_out, d_in):
    """A bank with one adapter per rank on a single module, and its norms."""
    generator = torch.Generator().manual_seed(0)
    adapters = []
    for rank in ranks:
        a, b = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        adapters.append(AdapterFactors(str(rank), "", "", {"m": Factor(a, b, 2.0)}))
    bank = AdapterBank(adapters, MergeConfig(rule="sum_deltas")).to(DEVICE)
    return bank, {"m": torch.rand(d_in, generator=generator).to(DEVICE)}


def ranks_of_kernels(monkeypatch):
    """The ranks that kernels run for, as they do."""
    ran, run = [], FusedActivation._run
    monkeypatch.setattr(
        FusedActivation, "_run", lambda own, group, *rest: [ran.append(group.rank), run(own, group, *rest)]
    )
    return ran


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("rank", [64, 128, 256, 257])
def test_large_ranks_in_small_tiles_and_beyond_them_the_plain_way(rank, monkeypatch):
    ran = ranks_of_kernels(monkeypatch)
    bank, norms = made((rank, 4), 37, 70)
    found, wanted = activation_of(bank, fused=True)(norms), activation(bank, norms)
    assert (found - wanted).norm() <= 2e-3 * wanted.norm()
    assert ran == ([rank, 4] if rank <= 256 else [4])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU: the interpreter has no shared memory to overflow")
@pytest.mark.parametrize("rank", [64, 128, 256])
def test_large_ranks_fit_into_the_gpu(rank, monkeypatch, recwarn):
    ran = ranks_of_kernels(monkeypatch)
    bank, norms = made((rank,), 1536, 1024)
    found, wanted = activation_of(bank, fused=True)(norms), activation(bank, norms)
    assert (found - wanted).norm() <= 3e-3 * wanted.norm()
    assert ran == [rank]
    assert not recwarn


@needs_triton
def test_tiles_shrink_as_the_rank_grows():
    assert [_tiles(rank) for rank in (16, 32)] == [({"ROWS": 128, "COLUMNS": 128}, {"ROWS": 64, "COLUMNS": 128})] * 2
    for rank, side in ((64, 64), (128, 32), (256, 16)):
        assert _tiles(rank) == ({"ROWS": side, "COLUMNS": side, "num_stages": 1},) * 2


@pytest.mark.gpu
@needs_triton
def test_a_gpu_too_small_for_the_tiles_gives_the_plain_importance_and_says_so_once(monkeypatch):
    def short(*_):
        raise OutOfResources(101376, 65536, "shared memory")

    monkeypatch.setattr(FusedActivation, "_run", short)
    bank = a_bank()
    norms, fused = norms_of(bank), activation_of(bank, fused=True)
    with pytest.warns(UserWarning, match=r"speed\.fused_kernels: .*shared memory, Required: 101376") as said:
        found = [fused(norms) for _ in range(2)]
    assert len(said) == 1
    assert all(torch.equal(one, activation(bank, norms)) for one in found)


@pytest.mark.gpu
@needs_triton
def test_a_module_without_norms_is_named():
    with pytest.raises(ModelError, match=r"activation has nothing to go by at .*down_proj"):
        activation_of(a_bank(), fused=True)({})


def test_without_kernels_and_in_float64_it_is_the_plain_formula():
    for bank, fused in ((a_bank(), False), (a_bank(dtype=torch.float64), True)):
        norms = norms_of(bank)
        assert torch.equal(activation_of(bank, fused=fused)(norms), activation(bank, norms))
