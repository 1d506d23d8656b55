"""What only a GPU can show: recorded and compiled passes against plain ones, and a whole search either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup, stopped_and_resumed

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.point import MergePoint
from grasp_lora.config import TrainingConfig
from grasp_lora.pipeline.finalize import finalize
from grasp_lora.pipeline.search import search
from grasp_lora.training import FixedRatio, MaskSelector, Plumbing, TrainingLoop
from grasp_lora.training.recorder import CudaRecorder
from grasp_lora.training.step import TrainingPass

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # PyTorch's own modules, while it compiles
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore:TensorFloat32 tensor cores:UserWarning",
        "ignore:Synchronization debug mode:UserWarning",
    ),
]
PLAIN = {
    "join_rows": False,
    "cuda_graphs": False,
    "skip_mask": False,
    "narrow_last": False,
    "fused_norms": False,
    "fused_kernels": False,
    "fused_optimizer": False,
    "read_losses_every": 1,
}
FAMILIES = ("llama", "qwen3", "gpt_neox")
UNMASKED = {"cuda_graphs": False}
COMPILED = {"compile_layers": "all"}  # and recorded
DTYPES = (torch.float64, torch.float32)


def on_gpu(family: str, dtype: torch.dtype, config: dict[str, Any] | None = None, device: str = "cuda"):
    model = pico_model(family, dtype).to(device).requires_grad_(False)
    return model, pico_setup(model, config)


def passes(family: str, dtype: torch.dtype, speed: dict[str, Any]) -> list[torch.Tensor]:
    """Losses of probes and training passes, some of them recorded by then, and the gradient."""
    model, work = on_gpu(family, dtype, {"speed": speed})
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    out = []
    with Injection(model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        probe = work.evaluator(attached, "micro_dev")
        half = torch.arange(bank.kept.numel(), device="cuda") % 2 == 0
        out += [probe.losses(), probe.candidate_losses([bank.kept, half, ~half])]
        step = TrainingPass(attached, work.items("train"), TrainingConfig(), None)
        model.train()
        bank.values.grad = torch.zeros_like(bank.values)
        for size in (1, 1, 1, 3, 3, 3):
            items = work.items("train")
            out += [step(items[i : i + size], 3).clone() for i in range(0, len(items) - size + 1, size)]
        out.append(bank.values.grad)
        if speed.get("cuda_graphs", True):
            assert step.graphs is not None
            assert step.graphs.gave_up is None
            assert step.graphs.recorded
    return [value.double().cpu() for value in out]


@pytest.mark.parametrize(
    ("family", "dtype", "speed"),
    [
        *((family, dtype, {}) for family in FAMILIES for dtype in DTYPES),
        ("llama", torch.float64, UNMASKED),
        ("llama", torch.float32, COMPILED),  # one alone: compilation takes a while
    ],
)
def test_fast_passes_give_the_losses_and_gradients_of_plain_ones(family, dtype, speed):
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-4}[dtype]  # per example, in nats; rotations are in float32
    for plain, fast in zip(passes(family, dtype, PLAIN), passes(family, dtype, speed), strict=True):
        assert (fast - plain).norm() <= tolerance * (1 + plain.norm())


def a_search(speed: dict[str, Any], **training: Any):
    shared = {"epochs": 4, "lr": 5e-3, "batch_size": 1, "accumulation": 2, **training}
    config = {
        "search": shared, "finalize": shared | {"adapter": "reuse"}, "prune": {"importance": "activation"},
        "controller": {"interval": 3}, "speed": speed,
    }  # fmt: skip
    model, work = on_gpu("llama", torch.float64, config)
    return search(work, [pico_adapter(model, name, size=0.3) for name in ("en", "ar")], Recorder("search"))


def test_a_whole_search_finds_the_same_with_and_without():
    plain, fast = a_search(PLAIN), a_search({})
    assert fast.p_star == pytest.approx(plain.p_star, abs=1e-8)
    assert torch.equal(fast.final.bank.kept, plain.final.bank.kept)
    torch.testing.assert_close(fast.final.bank.values, plain.final.bank.values, rtol=0, atol=1e-7)
    assert fast.outcome.train_losses == pytest.approx(plain.outcome.train_losses, abs=1e-8)


def test_dropout_in_recorded_passes_is_drawn_anew_and_from_the_seed():
    losses = []
    for dropout in (0.0, 0.5, 0.5):
        given = {"epochs": 6, "lr": 1e-300, "batch_size": 1, "dropout": dropout}
        model, work = on_gpu("llama", torch.float64, {"finalize": given})
        bank = work.bank([pico_adapter(model, "en")])
        with Injection(model, bank.modules) as injection:
            loop = TrainingLoop(work.attach(injection, bank), work.items("train")[:1], work.config.finalize, seed=3)
            losses.append(loop.run().train_losses)
            assert loop._pass.graphs.recorded
    assert len({round(loss, 10) for loss in losses[0]}) == 1
    assert len({round(loss, 10) for loss in losses[1]}) == 6
    assert losses[1] == losses[2]


def test_the_final_run_with_importance_from_recorded_passes():
    found = []
    for speed in (PLAIN, {}, {"tokens_per_pass": 400}):
        given = {"epochs": 4, "lr": 5e-3, "batch_size": 1, "accumulation": 3, "mask": "dynamic"}
        config = {"finalize": given, "prune": {"importance": "activation"}, "speed": speed}
        model, work = on_gpu("llama", torch.float64, config)
        found.append(finalize(work, [pico_adapter(model, "en"), pico_adapter(model, "ar")], 0.4, Recorder("finalize")))
    for other in found[1:]:
        assert torch.equal(other.bank.kept, found[0].bank.kept)
        torch.testing.assert_close(other.bank.values, found[0].bank.values, rtol=0, atol=1e-7)
        assert other.outcome.dev_losses == pytest.approx(found[0].outcome.dev_losses, abs=1e-8)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    def stage(io):
        given = {"epochs": 4, "lr": 5e-3, "batch_size": 1, "accumulation": 2}
        model, work = on_gpu("llama", torch.float64, {"finalize": given})
        return finalize(work, [pico_adapter(model, "en"), pico_adapter(model, "ar")], 0.4, io)

    whole = stage(Recorder("finalize"))
    parts = stopped_and_resumed(stage, "finalize", tmp_path, [7])
    torch.testing.assert_close(parts.bank.values, whole.bank.values, rtol=0, atol=1e-9)
    assert parts.outcome.train_losses == pytest.approx(whole.outcome.train_losses, abs=1e-9)


def test_losses_are_looked_at_together_and_all_of_them():
    rows = {}
    for every in (1, 5):
        given = {"epochs": 2, "lr": 5e-3, "batch_size": 1, "accumulation": 1}
        model, work = on_gpu("llama", torch.float64, {"finalize": given, "speed": {"read_losses_every": every}})
        bank, seen = work.bank([pico_adapter(model, "en")]), []
        with Injection(model, bank.modules) as injection:
            loop = TrainingLoop(
                work.attach(injection, bank), work.items("train"), work.config.finalize, seed=3,
                plumbing=Plumbing(log=lambda kind, values, seen=seen: seen.append((kind, values))),
            )  # fmt: skip
            loop.run()
        rows[every] = [values["loss"] for kind, values in seen if kind == "step"]
    assert len(rows[1]) == 24
    assert rows[5] == pytest.approx(rows[1], abs=1e-9)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one_records_its_passes():
    assert torch.cuda.current_device() == 0
    found = []
    for speed in (PLAIN, {}):
        given = {"epochs": 4, "lr": 5e-3, "batch_size": 1, "accumulation": 1}
        model, work = on_gpu("llama", torch.float64, {"finalize": given, "speed": speed}, "cuda:1")
        bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
        assert bank.values.device == torch.device("cuda", 1)
        with Injection(model, bank.modules) as injection:
            loop = TrainingLoop(work.attach(injection, bank), work.items("train"), work.config.finalize, seed=3)
            losses = loop.run().train_losses
            assert bool(loop._pass.graphs and loop._pass.graphs.recorded) is (speed is not PLAIN)
        found.append((losses, bank.values.detach()))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-8)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-7)
    assert torch.cuda.current_device() == 0


class NoLook:
    """A callback after which, from the third update to the last but one, nothing may wait for the GPU."""

    def start(self) -> None: ...

    def attach(self, optimizer) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self, step, loss) -> bool:
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < 5 else "default")
        return False

    def state(self):
        return {}, {}

    def load_state(self, tensors, plain) -> None: ...


@pytest.mark.parametrize("importance", ["activation", "magnitude"])
@pytest.mark.parametrize("speed", [{}, {"cuda_graphs": False}])
def test_updates_with_a_dynamic_mask_do_not_wait_for_the_gpu(importance, speed):
    """Six updates of one epoch and of one shape, with joined rows and with recorded ones, which the second is."""
    given = {"epochs": 1, "lr": 5e-3, "batch_size": 1, "accumulation": 2, "mask": "dynamic"}
    config = {"finalize": given, "prune": {"importance": importance}, "speed": {"read_losses_every": 100, **speed}}
    model, work = on_gpu("llama", torch.float32, config)
    bank = work.bank([pico_adapter(model, "en"), pico_adapter(model, "ar")])
    with Injection(model, bank.modules) as injection:
        attached = work.attach(injection, bank)
        selector = MaskSelector(bank, injection, work.config.prune, work.evaluator(attached, "micro_dev"))
        mask = FixedRatio(bank, selector, MergePoint(0.4), dynamic=True)
        loop = TrainingLoop(
            attached, work.items("train")[:1] * 12, work.config.finalize,
            seed=3, callbacks=[mask, NoLook()], selector=selector,
        )  # fmt: skip
        assert loop._pass.padded is (not speed)
        try:
            assert loop.run().steps == 6
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(mask.flips) == 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_joined_rows_give_the_losses_and_gradients_of_padded_ones(dtype):
    found = []
    for speed in ({"join_rows": False}, {}):
        model, work = on_gpu("llama", dtype, {"speed": {"cuda_graphs": False, **speed}})
        bank = work.bank([pico_adapter(model, "en", size=0.3), pico_adapter(model, "ar", size=0.3)])
        with Injection(model, bank.modules) as injection:
            step = TrainingPass(
                work.attach(injection, bank), work.items("train"), TrainingConfig(accumulation=8, batch_size=1), None
            )
            assert step.padded is bool(speed)
            bank.values.grad = torch.zeros_like(bank.values)
            loss = step(work.items("train")[:8], 8)
        found.append((loss.double(), bank.values.grad.double()))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    for padded, joined in zip(*found, strict=True):
        assert (joined - padded).norm() <= tolerance * padded.norm()


def test_a_recording_that_fails_leaves_the_stream_as_it_was():
    device = torch.device("cuda")
    recorder, before = CudaRecorder(device), torch.cuda.current_stream(device)

    def waits():
        return torch.ones(4, device=device).sum() * float(torch.ones(1, device=device))

    with pytest.raises(RuntimeError):
        recorder(waits)
    assert torch.cuda.current_stream(device) == before
    assert float(torch.ones(2, device=device).sum()) == 2.0
