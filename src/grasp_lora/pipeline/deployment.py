"""What serving the exported adapter costs: load time, first token, tokens per second, peak memory, energy.

Measured on a fresh base model with the adapter loaded by PEFT, as a user would serve it, one prompt at a
time; our own attachment is not involved.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from ..errors import AdapterError, ModelError, first_line
from ..probing.memory import GpuPeak
from .generation import generating, greedy_settings
from .models import attach_peft

MemoryKind = Literal["cuda allocated", "process rss", "not measured"]


@dataclass(frozen=True)
class Deployment:
    """Figures of one served adapter; times in seconds, memory in bytes, energy in joules.

    `first_token_seconds` is the median over prompts and repeats, `tokens_per_second` the median over repeats
    of all new tokens over all time, reading the prompts included; end tokens are ignored there, so that every
    system writes the same number. `memory_before_bytes` was held before loading: on a GPU by tensors of this
    process, else by the whole process.
    """

    load_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    memory_before_bytes: int | None
    peak_memory_kind: MemoryKind
    energy_joules_per_token: float | None
    energy_reason: str | None
    hardware: str
    dtype: str
    prompts: int
    repeats: int
    new_tokens: int

    @property
    def added_memory_bytes(self) -> int | None:
        """Peak memory less what was held before loading."""
        if self.peak_memory_bytes is None or self.memory_before_bytes is None:
            return None
        return self.peak_memory_bytes - self.memory_before_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, `added_memory_bytes` among them."""
        return {**asdict(self), "added_memory_bytes": self.added_memory_bytes}


def measure_deployment(
    base_path: str | Path,
    adapter_dir: str | Path,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    max_new_tokens: int,
    repeats: int = 3,
) -> Deployment:
    """Load base and adapter anew, generate from every prompt `repeats` times, and return the figures.

    `prompts` are token ids of `tokenizer`. Raises `ValueError` without a prompt, repeat or token and for ids
    the tokenizer does not have, `ModelError` and `AdapterError` when base or adapter cannot be loaded.
    """
    if not prompts or not all(map(len, prompts)) or repeats < 1 or max_new_tokens < 1:
        raise ValueError("at least one prompt with a token, one repeat and one new token are needed")
    if max(map(max, prompts)) >= len(tokenizer):
        raise ValueError("the prompts hold token ids that the tokenizer does not have")
    device = torch.device(device)
    memory = PeakMemory(device)
    start = _now(device)
    model = _load(str(base_path), Path(adapter_dir), device, dtype)
    loaded = _now(device) - start
    speed = _measure_speed(model, prompts, max_new_tokens, repeats)
    return Deployment(
        load_seconds=loaded,
        first_token_seconds=speed.first_token_seconds,
        tokens_per_second=speed.tokens_per_second,
        peak_memory_bytes=memory.peak(),
        memory_before_bytes=memory.before,
        peak_memory_kind=memory.kind,
        energy_joules_per_token=speed.joules_per_token,
        energy_reason=speed.energy_reason,
        hardware=_hardware(device),
        dtype=str(dtype).removeprefix("torch."),
        prompts=len(prompts),
        repeats=repeats,
        new_tokens=max_new_tokens,
    )


@dataclass(frozen=True)
class _Speed:
    first_token_seconds: float
    tokens_per_second: float
    joules_per_token: float | None
    energy_reason: str | None


def _measure_speed(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, repeats: int) -> _Speed:
    _generate(model, prompts[0], 2)  # the first call allocates and chooses kernels
    first = [_generate(model, prompt, 1) for _ in range(repeats) for prompt in prompts]
    meter = _EnergyMeter(next(model.parameters()).device)
    rounds = [sum(_generate(model, prompt, new_tokens) for prompt in prompts) for _ in range(repeats)]
    tokens = len(prompts) * new_tokens
    joules, reason = meter.joules_per(tokens * repeats)
    rate = statistics.median(tokens / seconds for seconds in rounds)
    return _Speed(statistics.median(first), rate, joules, reason)


def _load(base_path: str, adapter_dir: Path, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        base = AutoModelForCausalLM.from_pretrained(base_path, dtype=dtype, device_map={"": device})
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = first_line(error)
        raise ModelError(f"cannot load the base model for the deployment figures: {reason}") from None
    try:
        return attach_peft(base, adapter_dir)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AdapterError(
            f"PEFT cannot load the adapter in '{adapter_dir.name}': {first_line(error)}. Export it again."
        ) from None


def _now(device: torch.device) -> float:
    """Return the clock in seconds once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _generate(model: Any, prompt: Sequence[int], count: int) -> float:
    """Generate exactly `count` tokens and return the seconds it took."""
    settings = greedy_settings(count, None)
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt)], device=device)
    with generating(model, settings), torch.no_grad():
        start = _now(device)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        seconds = _now(device) - start
    if out.shape[1] != ids.shape[1] + count:
        raise ModelError(f"the served model stopped after {out.shape[1] - ids.shape[1]} of {count} tokens")
    return seconds


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} cpu, {torch.get_num_threads()} threads"


class PeakMemory:
    """Peak memory from now on, and what was held before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kind: MemoryKind
        self.before: int | None
        if device.type == "cuda":
            self._peak = GpuPeak(device)
            self.kind, self.before = "cuda allocated", torch.cuda.memory_allocated(device)
        else:
            _reset_process_peak()
            self.before = _process_peak()
            self.kind = "process rss" if self.before is not None else "not measured"

    def peak(self) -> int | None:
        """Return the largest number of bytes held since."""
        if self._device.type == "cuda":
            return self._peak.bytes()
        return _process_peak()


def _reset_process_peak() -> None:
    """Let the kernel's peak of this process start again from now; elsewhere than on Linux it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak then counts from the start of the process, `memory_before_bytes` with it


def _process_peak() -> int | None:
    """Return the largest resident size of this process in bytes, None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


class _EnergyMeter:
    """Joules that the whole GPU has used since, by NVML's counter, or the reason why it cannot be read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reason: str | None = None
        self._start = self._millijoules()

    def joules_per(self, tokens: int) -> tuple[float | None, str | None]:
        """Return joules per token since the start, or None and why."""
        end = self._millijoules()
        if self._start is None or end is None:
            return None, self._reason
        return (end - self._start) / 1000.0 / tokens, None

    def _millijoules(self) -> int | None:
        if self._device.type != "cuda":
            self._reason = f"energy is read from NVIDIA GPUs only, the device is {self._device.type}"
        elif importlib.util.find_spec("pynvml") is None:
            self._reason = "the package `nvidia-ml-py` is not installed: pip install 'grasp-lora[energy]'"
        else:
            return self._read()
        return None

    def _read(self) -> int | None:
        import pynvml

        _now(self._device)
        try:
            pynvml.nvmlInit()
            try:
                uuid = str(torch.cuda.get_device_properties(self._device).uuid)
                name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
                return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(name)))
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            self._reason = f"the GPU does not report its energy ({error})"
            return None
