"""What a pass may hold, with a GPU's counters made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from grasp_lora.probing.memory import GpuPeak, fitting_tokens, free_bytes, parameters_and_layers, short_pass
from grasp_lora.training.graphs import launch_bound_tokens

GPU = torch.device("cuda", 0)


class Counters:
    """PyTorch's memory counters of one GPU, in bytes."""

    def __init__(self, monkeypatch):
        self.free, self.total, self.reserved, self.allocated, self.peak, self.share = 600, 1000, 300, 200, 250, 1.0
        for name, call in {
            "mem_get_info": lambda _d: (self.free, self.total),
            "memory_reserved": lambda _d: self.reserved,
            "memory_allocated": lambda _d: self.allocated,
            "max_memory_allocated": lambda _d: self.peak,
            "get_per_process_memory_fraction": lambda _d: self.share,
            "reset_peak_memory_stats": lambda _d: setattr(self, "peak", self.allocated),
            "synchronize": lambda _d: None,
            "memory_snapshot": lambda: self.segments(),
            "current_device": lambda: 0,
        }.items():
            monkeypatch.setattr(torch.cuda, name, call)

    def segments(self):
        """The allocator's segments: its own, those of a graph, and another GPU's."""
        own = {"device": 0, "segment_pool_id": (0, 0), "total_size": self.reserved, "allocated_size": self.allocated}
        graph = {"device": 0, "segment_pool_id": (0, 1), "total_size": 50, "allocated_size": 0}
        return [own, graph, {"device": 1, "segment_pool_id": (0, 0), "total_size": 90, "allocated_size": 0}]

    def run(self, needs):
        """A pass that takes so much beside what is there."""
        self.peak = max(self.peak, self.allocated + needs)


@pytest.fixture
def counters(monkeypatch):
    return Counters(monkeypatch)


def test_free_is_what_the_gpu_has_and_what_is_reserved_but_unused(counters):
    assert free_bytes(GPU) == 600 + 100


def test_a_cap_of_the_process_counts(counters):
    counters.share = 0.5
    assert free_bytes(GPU) == (500 - 300) + 100


def test_a_pass_is_measured_without_what_was_there_before(counters):
    assert fitting_tokens(lambda: counters.run(70), 10, GPU) == int(0.8 * 700 * 10 / 70)
    counters.free = counters.reserved = counters.allocated = 0
    assert fitting_tokens(lambda: counters.run(70), 10, GPU) == 1


def test_peaks_survive_the_measuring_of_others(counters):
    outer = GpuPeak(torch.device("cuda"))
    assert outer.bytes() == 200
    counters.run(500)
    inner = GpuPeak(GPU)
    assert (outer.bytes(), inner.bytes()) == (700, 200)
    fitting_tokens(lambda: counters.run(90), 10, GPU)
    assert (outer.bytes(), inner.bytes()) == (700, 290)
    fitting_tokens(lambda: counters.run(1), 10, GPU)
    assert inner.bytes() == 290


def test_a_pass_is_short_below_what_its_overhead_would_do():
    small, large = (torch.nn.ModuleList(torch.nn.Linear(n, n) for _ in range(4)) for n in (8, 80))
    for device in (torch.device("cpu"), GPU):
        assert short_pass(small, device) > short_pass(large, device) > 0
    assert short_pass(large, GPU) > short_pass(large, torch.device("cpu"))


class Packed(torch.nn.Parameter):
    """A weight as bitsandbytes keeps one of 4 bits: two numbers a byte, in one column, its shape beside it."""

    def __new__(cls, rows, columns):
        made = super().__new__(cls, torch.zeros(rows * columns // 2, 1, dtype=torch.uint8), requires_grad=False)
        made.quant_state = SimpleNamespace(shape=torch.Size([rows, columns]))
        return made


def test_packed_weights_count_as_the_numbers_they_hold():
    plain, packed = (torch.nn.ModuleList(torch.nn.Linear(64, 64, bias=False) for _ in range(4)) for _ in range(2))
    for layer in packed:
        layer.weight = Packed(64, 64)
    assert parameters_and_layers(packed) == parameters_and_layers(plain) == (4 * 64 * 64, 4)
    assert short_pass(packed, GPU) == short_pass(plain, GPU)
    assert launch_bound_tokens(packed) == launch_bound_tokens(plain) == int(4e11 / 64**2)
