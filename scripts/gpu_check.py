"""Check and time the engine on a GPU: exactness of its fast paths, and an 8B-shaped model with random weights.

    python scripts/gpu_check.py --out DIR           about two minutes on one H100 or H200
    python scripts/gpu_check.py --out DIR --tiny    a rehearsal on a CPU, without graphs

Writes DIR/gpu_check.json and prints a short table. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from grasp_lora.adapters.bank import AdapterBank
from grasp_lora.adapters.discover import dims, linear_modules
from grasp_lora.adapters.importance import activation_of
from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.masks import rank
from grasp_lora.adapters.peft_load import AdapterFactors, Factor
from grasp_lora.config import MergeConfig, PruneConfig, SpeedConfig, TrainingConfig
from grasp_lora.data import Encoded
from grasp_lora.probing import Attached, Evaluator
from grasp_lora.probing.compiled import CompiledLayers
from grasp_lora.probing.fused import fuse_layers
from grasp_lora.probing.norms import fuse_norms
from grasp_lora.training import MaskSelector, Plumbing, TrainingLoop, commit_mask

SHAPE = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 2048,
}  # fmt: skip
WORKLOADS = {"mlqa-8b": (250, 450, 8), "xlsum-8b": (600, 1800, 60), "tiny": (12, 30, 3)}
START = time.perf_counter()
RATIOS = (0.2, 0.5, 0.8)
PLAIN = {
    "skip_mask": False,
    "narrow_last": False,
    "cuda_graphs": False,
    "fused_optimizer": False,
    "read_losses_every": 1,
}


def main() -> None:
    """Run the parts that are asked for and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--tiny", action="store_true", help="a few seconds on a CPU")
    parser.add_argument("--workload", choices=("mlqa-8b", "xlsum-8b"), default="mlqa-8b")
    parser.add_argument("--parts", default="exact,round,step,update,profile", help="which parts to run")
    args = parser.parse_args()
    parts = args.parts.split(",")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.tiny else "cpu")
    record: dict[str, Any] = {"environment": environment(device)}
    say(f"{record['environment']}")
    try:
        if "exact" in parts:
            record["exact"] = exactness(args.out)
        world = World(device, "tiny" if args.tiny else args.workload)
        record["loading"] = world.loading
        for name, part in (("round", rounds), ("step", steps), ("update", updates), ("profile", profiles)):
            if name in parts:
                record[name] = part(world)
                say(f"{name}: {json.dumps(record[name])[:2500]}")
    finally:
        (args.out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")


def say(text: str) -> None:
    """Print at once: a run that is cut off has said what it knew."""
    print(f"[{time.perf_counter() - START:6.1f}] {text}", flush=True)


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions, and on a GPU its name and the rate of a large matrix product."""
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        one, other = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
        seconds = statistics.median(timed(lambda: one @ other, device) for _ in range(8))
        found |= {"gpu": torch.cuda.get_device_name(device), "matmul_tflops": round(2 * 8192**3 / seconds / 1e12)}
    return found


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, the device's work included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exactness(out: Path) -> dict[str, Any]:
    """Run the tests that need a GPU, in a process of their own; they are skipped without one."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/training/test_cuda.py",
        "-p",
        "no:cacheprovider",
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (out / "pytest.txt").write_text(done.stdout + done.stderr)
    tail = done.stdout.strip().splitlines()[-12:]
    say("exactness: " + "\n    ".join(tail if done.returncode else tail[-1:]))
    return {"returncode": done.returncode, "seconds": time.perf_counter() - start, "tail": tail}


class World:
    """A frozen model with random weights, two adapters on q and v, and the examples of a workload."""

    def __init__(self, device: torch.device, workload: str) -> None:
        self.device = device
        tiny = workload == "tiny"
        start = time.perf_counter()
        dtype = torch.float32 if tiny else torch.bfloat16
        with torch.device(device):
            build: Any = AutoModelForCausalLM.from_config
            self.model: nn.Module = build(LlamaConfig(**(TINY if tiny else SHAPE)), dtype=dtype)
        self.model.requires_grad_(False).eval()
        wait(device)
        self.loading = {"seconds": time.perf_counter() - start, "peak_gib": self.peak()}
        low, high, answer = WORKLOADS[workload]
        draw, ids = random.Random(0), random.Random(1)
        vocabulary = (TINY if tiny else SHAPE)["vocab_size"]
        lengths = [draw.randint(low, high) for _ in range(66)]
        items = [
            Encoded(str(i), tuple(ids.randrange(3, int(vocabulary)) for _ in range(n + answer)), n)
            for i, n in enumerate(lengths)
        ]
        self.train, self.micro = items[:50], items[50:]
        self.adapters = [self._adapter(name) for name in ("source", "target")]
        say(f"model ready: {self.loading}")

    def _adapter(self, name: str) -> AdapterFactors:
        generator = torch.Generator().manual_seed(len(name))
        factors = {}
        for module in sorted(linear_modules(self.model)):
            if module.endswith(("q_proj", "v_proj")):
                d_out, d_in = dims(self.model.get_submodule(module))
                a, b = torch.randn(8, d_in, generator=generator), torch.randn(d_out, 8, generator=generator)
                factors[module] = Factor(a * 0.01, b * 0.01, 2.0)
        return AdapterFactors(name=name, origin=name, sha256="", modules=factors)

    def bank(self) -> AdapterBank:
        """Return a fresh bank of the two adapters."""
        return AdapterBank(self.adapters, MergeConfig()).to(self.device)

    def peak(self) -> float:
        """Return the peak of allocated memory in GiB since the last call, and set it back."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 2)


def change(world: World, injection: Injection, extra: str, *, training: bool) -> None:
    """Let the model's layers run in another way: fused norms, norms and kernels, or compiled."""
    if "norms" in extra:
        injection.keep(fuse_norms(world.model))
    if "kernels" in extra:
        injection.keep(fuse_layers(world.model))
    if extra == "compiled":
        injection.keep(CompiledLayers(world.model, injection, training=training))


def rounds(world: World) -> dict[str, Any]:
    """Time a round of 4 x 16, and what goes with it, with each switch."""
    found: dict[str, Any] = {}
    bank = world.bank()
    ranking = rank(bank.dense().abs(), bank.segments("per_tensor"))
    masks = [bank.kept, *(ranking.kept(ratio) for ratio in RATIOS)]
    losses = {}
    for name, speed, extra in (
        ("plain", PLAIN, ""),
        ("no mask", {}, ""),
        ("norms", {}, "norms"),
        ("norms, kernels", {}, "norms, kernels"),
        ("compiled", {}, "compiled"),
    ):
        with Injection(world.model, bank.modules) as injection:
            change(world, injection, extra, training=False)
            probe = Evaluator(Attached(world.model, injection, bank, 0, SpeedConfig(**speed)), world.micro)
            first = timed(lambda p=probe: p.candidate_losses(masks), world.device)  # type: ignore[misc]
            times = [timed(lambda p=probe: p.candidate_losses(masks), world.device) for _ in range(5)]  # type: ignore[misc]
            losses[name] = probe.candidate_losses(masks)
            budget = probe._budgets["candidates"]
            chunks = [len(chunk) for chunk, _ in probe._planned[len(masks), budget]]
        found[name] = {
            "s": round(statistics.median(times), 4), "first_s": round(first, 2), "chunks": chunks,
            "budget": budget, "peak_gib": world.peak(),
            "difference": float((losses[name] - losses["plain"]).abs().max()),
        }  # fmt: skip
        say(f"round, {name}: {found[name]}")
    optimizer = torch.optim.AdamW([bank.values])
    found["ranking_s"] = timed(lambda: rank(bank.dense().abs(), bank.segments("per_tensor")), world.device)
    norms = {module: torch.rand(a.shape[-1], device=world.device) for module, (a, _) in bank.merged().items()}
    for name, fused in (("activation_s", False), ("activation_in_kernels_s", True)):
        rule = activation_of(bank, fused=fused)
        rule(norms)
        found[name] = timed(lambda r=rule: r(norms), world.device)  # type: ignore[misc]
    one, other = (activation_of(bank, fused=fused)(norms) for fused in (False, True))
    found["activation_difference"] = float((one - other).norm() / one.norm())
    found["masks_s"] = timed(lambda: [ranking.kept(ratio) for ratio in RATIOS], world.device)
    found["commit_s"] = timed(lambda: commit_mask(bank, masks[2], optimizer), world.device)
    return found


def trained(
    world: World, speed: dict[str, Any], extra: str, items: Sequence[Encoded], epochs: int, **training: Any
) -> dict[str, Any]:
    """Return seconds per update in the first and in the last epoch of a training loop, its last loss and the memory."""
    bank = world.bank()
    ends: list[float] = []
    losses: list[float] = []

    def log(kind: str, values: dict[str, Any]) -> None:
        if kind == "step":
            losses.append(values["loss"])
        if kind == "epoch":
            wait(world.device)
            ends.append(time.perf_counter())

    with Injection(world.model, bank.modules) as injection:
        change(world, injection, extra, training=True)
        attached = Attached(world.model, injection, bank, 0, SpeedConfig(**speed))
        config = TrainingConfig(epochs=epochs, lr=1e-5, **training)
        loop = TrainingLoop(attached, items, config, seed=0, plumbing=Plumbing(log=log))
        wait(world.device)
        begin = time.perf_counter()
        loop.run()
        graphs = loop._pass.graphs
        recorded = {"shapes": graphs.recorded, "gave_up": graphs.gave_up} if graphs else loop._pass.not_recorded
    steps = loop.updates_per_epoch
    result = {
        "s": round((ends[-1] - ends[-2]) / steps, 4), "first_epoch_s": round(ends[0] - begin, 2), "updates": steps,
        "last_loss": losses[-1], "graphs": recorded, "peak_gib": world.peak(),
    }  # fmt: skip
    if world.device.type == "cuda":
        del loop
        torch.cuda.empty_cache()
        result["reserved_gib"] = round(torch.cuda.memory_reserved(world.device) / 2**30, 2)
    return result


def steps(world: World) -> dict[str, Any]:
    """Time training steps of batch 1 with each switch."""
    found = {}
    few = world.train[:10]
    for name, speed, extra, items, epochs in (
        ("plain", PLAIN, "", few, 2),
        ("no mask", {"cuda_graphs": False}, "", few, 2),
        ("graphs", {}, "", world.train, 3),
        ("graphs, norms", {}, "norms", world.train, 3),
        ("graphs, norms, kernels", {}, "norms, kernels", world.train, 3),
        ("compiled", {"cuda_graphs": False}, "compiled", few, 2),
        ("graphs, compiled", {}, "compiled", world.train, 3),
    ):
        found[name] = trained(world, speed, extra, items, epochs, batch_size=1, accumulation=1)
        say(f"step, {name}: {found[name]}")
    return found


def updates(world: World) -> dict[str, Any]:
    """Time updates of 8 examples, in passes of one, and packed."""
    found = {}
    items = world.train[:48]
    for name, speed in (("one by one", {"pack_accumulation": False}), ("packed", {})):
        found[name] = trained(world, speed, "norms, kernels", items, 3, batch_size=1, accumulation=8)
        say(f"update of 8, {name}: {found[name]}")
    return found


def profiles(world: World) -> dict[str, Any]:
    """Return the kernels that take most of a replayed step and of a round."""
    if world.device.type != "cuda":
        return {}

    bank = world.bank()
    with Injection(world.model, bank.modules) as injection:
        change(world, injection, "norms, kernels", training=True)
        attached = Attached(world.model, injection, bank, 0)
        once = TrainingConfig(epochs=4, lr=1e-5, batch_size=1)
        loop = TrainingLoop(attached, world.train[:1], once, seed=0)
        loop.run()
        probe = Evaluator(attached, world.micro)
        prune = PruneConfig(importance="activation")
        selector = MaskSelector(bank, injection, prune, probe)
        packed = once.model_copy(update={"accumulation": 8})
        update = TrainingLoop(attached, world.train[:8], packed, seed=0, selector=selector)
        update.run()
        masks = [bank.kept] * 4
        probe.candidate_losses(masks)
        return {
            "step": profiled("step", lambda: loop._accumulate([0]), world.device),
            "update": profiled("update", lambda: update._accumulate(list(range(8))), world.device),
            "selection": profiled("selection", selector.ranking, world.device),
            "round": profiled("round", lambda: probe.candidate_losses(masks), world.device),
        }


def profiled(name: str, call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Print and return the kernels in which a call spends its time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        wait(device)
    averages: Any = seen.key_averages()
    total = sum(row.self_device_time_total for row in averages) / 1e3
    rows = sorted(averages, key=lambda row: -row.self_device_time_total)[:24]
    kernels = [[row.key[:70], row.count, round(row.self_device_time_total / 1e3, 2)] for row in rows]
    say(f"{name}: {total:.2f} ms in kernels")
    for key, count, milliseconds in kernels:
        say(f"    {milliseconds:8.2f} ms {count:5d} {key}")
    return {"total_ms": total, "kernels": kernels}


if __name__ == "__main__":
    main()
