"""Where kernels run, device by device, and what is said where they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from tests.pico import pico_adapter, pico_model

from grasp_lora.adapters import kernels
from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.importance import activation, activation_of
from grasp_lora.config import MergeConfig
from grasp_lora.probing import fused

CPU = torch.device("cpu")
CARDS = {0: (9, 0), 1: (7, 5), 2: (8, 6)}


class TritonError(Exception):
    """Stands in for the base of Triton's own errors."""


@pytest.fixture
def cards(monkeypatch):
    """A machine of three GPUs with Triton; returns those that a kernel was tried on."""
    tried = []
    monkeypatch.setattr(kernels, "find_spec", lambda _: object())
    monkeypatch.setattr(kernels, "_trial", lambda device: tried.append(device))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CARDS[device.index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels._why_not.cache_clear()
    yield tried
    kernels._why_not.cache_clear()


def trial_that(monkeypatch, add_one):
    module = SimpleNamespace(TritonError=TritonError, add_one=add_one)
    monkeypatch.setitem(sys.modules, "grasp_lora.adapters.triton_trial", module)
    return kernels._trial(CPU)


def raising(error):
    def add_one(_):
        raise error

    return add_one


def test_every_gpu_is_asked_about_itself_and_once(cards):
    for _ in range(2):
        assert kernels.kernels_run(torch.device("cuda:0"))
        assert not kernels.kernels_run(torch.device("cuda:1"))
        assert kernels.kernels_run(torch.device("cuda"))
    assert cards == [torch.device("cuda:0"), torch.device("cuda:2")]
    assert "too old (compute capability 7.5" in kernels.why_not(torch.device("cuda:1"))


def test_without_triton_and_on_other_devices_it_says_so(cards, monkeypatch):
    assert kernels.why_not(CPU) == "Triton compiles nothing for cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.kernels_run(CPU)
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    kernels._why_not.cache_clear()
    assert kernels.why_not(torch.device("cuda:0")) == "Triton is missing"
    assert cards == []


def test_whether_kernels_should_run_is_asked_without_compiling_one(cards):
    fit = [kernels.kernels_fit(torch.device(name)) for name in ("cuda:0", "cuda:1", "cuda:2", "cpu")]
    assert fit == [True, False, True, False]
    assert cards == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to find C compiler.\nMore."), "Triton cannot compile here: Failed to find C compiler."),
        (subprocess.CalledProcessError(1, ["gcc"]), "Triton cannot compile here: Command '['gcc']' returned non-zero"),
        (ImportError("libtriton.so: undefined symbol"), "Triton cannot compile here: libtriton.so"),
        (PermissionError(13, "Permission denied", "ptxas"), "Triton cannot compile here: [Errno 13] Permission denied"),
        (AssertionError(), "Triton cannot compile here: AssertionError"),
        (TritonError("PTXAS error"), "Triton cannot compile here: PTXAS error"),
    ],
)
def test_a_trial_that_fails_is_a_reason_of_one_line(error, said, monkeypatch):
    reason = trial_that(monkeypatch, raising(error))
    assert reason.startswith(said)
    assert "\n" not in reason


def test_a_trial_without_memory_is_made_again(cards, monkeypatch):
    found = iter([torch.OutOfMemoryError("full"), None])

    def trial(_):
        if (error := next(found)) is not None:
            raise error

    monkeypatch.setattr(kernels, "_trial", trial)
    assert kernels.why_not(torch.device("cuda:0")) == "the GPU's memory is full"
    assert kernels.kernels_run(torch.device("cuda:0"))


def test_a_trial_does_not_blame_triton_for_a_full_gpu(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        trial_that(monkeypatch, raising(torch.OutOfMemoryError("full")))


def test_a_trial_that_works_or_computes_something_else(monkeypatch):
    assert trial_that(monkeypatch, lambda x: x.add_(1.0)) is None
    assert trial_that(monkeypatch, lambda x: x.add_(2.0)) == "Triton's kernels compute wrong numbers here"


def test_triton_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "grasp_lora.adapters.triton_trial", None)
    assert kernels._trial(CPU).startswith("Triton cannot be imported here: ")


@pytest.mark.gpu
def test_the_kernel_of_the_trial_adds_one():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if find_spec("triton") is None or (device == CPU and os.environ.get("TRITON_INTERPRET") != "1"):
        pytest.skip("needs Triton and a GPU, or its interpreter")
    assert kernels._trial(device) is None


def test_layers_and_importance_stay_right_where_triton_cannot_compile(monkeypatch):
    monkeypatch.setattr(kernels, "_why_not", lambda *_: "Triton cannot compile here: no C compiler")
    model = torch.nn.Module()
    on_gpu = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda:0"), is_floating_point=lambda: True)
    model.parameters = lambda: iter([on_gpu])
    said = r"speed\.fused_kernels: layers run as they are, since Triton cannot compile here: no C compiler\.$"
    with pytest.warns(UserWarning, match=said):
        assert len(fused.fuse_layers(model)) == 0
    bank = AdapterBank([pico_adapter(pico_model("llama", torch.float32), "en")], MergeConfig())
    norms = {name: torch.linspace(0.1, 2.0, 32) for name in bank.modules}
    assert torch.equal(activation_of(bank, fused=True)(norms), activation(bank, norms))
