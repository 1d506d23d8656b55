"""Memory of a GPU: what a pass needs is measured on a small one, and the peak survives the measuring."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import nn

_SHARE = 0.8  # of the free memory: pieces of it may be too small to use


class GpuPeak:
    """The most bytes that tensors have taken on a GPU since this object was made, whoever else measures meanwhile.

    PyTorch has one counter a GPU, which measuring sets back; every peak that is being followed is told before.
    """

    _followed: ClassVar[WeakSet[GpuPeak]] = WeakSet()

    def __init__(self, device: torch.device) -> None:
        self._device, self._bytes = numbered(device), 0
        set_back_peak(device)
        self._followed.add(self)

    def bytes(self) -> int:
        """Return the peak until now."""
        return max(self._bytes, torch.cuda.max_memory_allocated(self._device))

    @classmethod
    def tell(cls, device: torch.device) -> None:
        """Let all peaks on a GPU take in what its counter says."""
        for peak in cls._followed:
            if peak._device == numbered(device):
                peak._bytes = peak.bytes()


def numbered(device: torch.device) -> torch.device:
    """Return a GPU with its number, also where the current one was meant."""
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def set_back_peak(device: torch.device) -> None:
    """Set the GPU's counter of peak memory back; peaks that are followed keep what they were."""
    GpuPeak.tell(device)
    torch.cuda.reset_peak_memory_stats(device)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors can take, under the cap of `torch.cuda.set_per_process_memory_fraction`."""
    free, total = torch.cuda.mem_get_info(device)
    cap = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free, cap - torch.cuda.memory_reserved(device)) + _unused_bytes(device)


def _unused_bytes(device: torch.device) -> int:
    """Return what the allocator holds without using it; the pools of CUDA graphs are kept for their replays."""
    segments = [
        segment
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if segment["device"] == numbered(device).index and tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0)
    ]
    return sum(segment["total_size"] - segment["allocated_size"] for segment in segments)


def fitting_tokens(run: Callable[[], object], tokens: int, device: torch.device) -> int:
    """Run a pass of `tokens` tokens once and return how many tokens the free memory holds at that rate."""
    run()  # libraries take memory of their own at the first call
    torch.cuda.synchronize(device)
    set_back_peak(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    return max(1, int(_SHARE * free_bytes(device) * tokens / taken))


def short_pass(model: nn.Module, device: torch.device) -> int:
    """Return below how many tokens a pass without gradients costs no less, because its overhead takes longer.

    On a GPU a layer takes 1 to 1.5 ms to launch, in which it would do some 4e11 multiplications with its weights; and
    matrix products of few rows waste part of it, so that a pass should hold two or three times as much. A CPU starts
    a layer in less and does less: measured on the demo's model, 1.5e8.
    """
    return short_tokens(*parameters_and_layers(model), device)


def short_tokens(parameters: int, layers: int, device: torch.device) -> int:
    """Return what `short_pass` does, for a model of so many parameters and layers."""
    return tokens_of_work(1e12 if device.type == "cuda" else 1.5e8, parameters, layers)


def parameters_and_layers(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters a model has, packed ones counted one by one, and the length of its longest list."""
    layers = max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)
    return sum(numbers_in(parameter) for parameter in model.parameters()), layers


def numbers_in(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter holds: bitsandbytes packs two of 4 bits in a byte, and keeps their shape."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def tokens_of_work(work: float, parameters: int, layers: int) -> int:
    """Return how many tokens make `work` multiplications with the weights of a layer, in the mean of all layers."""
    return int(work * max(1, layers) / max(1, parameters))
