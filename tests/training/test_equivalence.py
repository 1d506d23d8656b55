"""What must not matter does not: batching against accumulation, checkpointing, the global random state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.pico import Recorder, pico_adapter, pico_model, pico_setup, undrawn

from grasp_lora.pipeline.adapters import train_adapter
from grasp_lora.pipeline.finalize import finalize
from grasp_lora.pipeline.search import search
from grasp_lora.training.step import TrainingPass

RATE = 5e-3


def settings(checkpointing: bool = False, importance: str = "activation", **training: Any) -> dict[str, Any]:
    shared = {"epochs": 3, "lr": RATE, "lr_decay": 0.9, "accumulation": 1, **training}
    return {
        "model": {"gradient_checkpointing": checkpointing},
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "train_target": shared,
        "search": shared,
        "finalize": {**shared, "mask": "dynamic"},
        "prune": {"importance": importance},
        "controller": {"interval": 3},
    }


def whole_run(config: dict[str, Any], family: str = "llama", **changes: Any) -> dict[str, torch.Tensor]:
    """Target adapter, search and final run on 10 training examples; every number that comes out, by name."""
    model = pico_model(family, torch.float64, **changes)
    work = pico_setup(model, config, train=10)
    target = train_adapter(work, "target", work.config.train_target, Recorder("target_adapter"))
    adapters = [pico_adapter(model, "en", size=0.3), target.factors]
    io = Recorder("search")
    found = search(work, adapters, io)
    final = finalize(work, adapters, 0.4, Recorder("finalize"))
    out = {f"target {m}.{p}": getattr(f, p) for m, f in target.factors.modules.items() for p in ("A", "B")}
    assert any(row["committed"] for row in io.rows)
    for row in io.rows:
        out[f"round {row['round']}"] = torch.tensor([row["baseline"], *row["candidates"]], dtype=torch.float64)
        out[f"commit {row['round']}"] = torch.tensor([row["density"], row["flipped"], row["after"]["p"]])
    out |= {"p_star": torch.tensor(found.p_star), "flips": torch.tensor(final.flips)}
    out |= {"final": final.bank.values.detach(), "kept": final.bank.kept}
    for name, outcome in (("target", target.outcome), ("search", found.outcome), ("final", final.outcome)):
        out[f"{name} losses"] = torch.tensor([outcome.train_losses, outcome.dev_losses or outcome.train_losses])
    return out


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_batches_and_accumulation_are_the_same_whole_run():
    one = whole_run(settings(batch_size=4))
    assert_same(one, whole_run(settings(batch_size=1, accumulation=4)))
    assert_same(one, whole_run(settings(batch_size=2, accumulation=2, eval_batch_size=4)))


@pytest.mark.parametrize("importance", ["activation", "sensitivity"])
def test_packed_accumulation_is_the_same_whole_run(importance, monkeypatch):
    """Importance statistics included: they are gathered over the passes, however these are cut."""
    sizes: list[tuple[int, ...]] = []
    cut = TrainingPass.cut
    monkeypatch.setattr(TrainingPass, "cut", lambda *a: sizes.append(tuple(map(len, passes := cut(*a)))) or passes)
    base = settings(importance=importance, batch_size=1, accumulation=4)
    plain = whole_run(base | {"speed": {"pack_accumulation": False}})
    assert {size for update in sizes for size in update} == {1}
    for tokens, widest in ((100, 2), (1000, 4)):
        sizes.clear()
        assert_same(plain, whole_run(base | {"speed": {"tokens_per_pass": tokens}}))
        assert max(size for update in sizes for size in update) >= widest


def test_checkpointing_is_the_same_whole_run():
    assert_same(whole_run(settings(batch_size=2)), whole_run(settings(True, batch_size=2)))


def test_checkpointing_draws_the_same_dropout():
    plain = settings(batch_size=2, accumulation=2, dropout=0.3)
    one = whole_run(plain)
    assert_same(one, whole_run(settings(True, batch_size=2, accumulation=2, dropout=0.3)))
    without = whole_run(settings(batch_size=2, accumulation=2))
    assert (one["final"] - without["final"]).abs().max() > 1e-4


def test_checkpointing_draws_the_same_dropout_of_the_models_own():
    drop = {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2}
    lora = {"lora": {"r": 4, "target_modules": ["c_attn", "mlp.c_proj"]}}
    lora |= {"controller": {**settings()["controller"], "policy": "ratio"}}
    one = whole_run(settings(batch_size=2) | lora, "gpt2", **drop)
    assert_same(one, whole_run(settings(True, batch_size=2) | lora, "gpt2", **drop))
    assert (one["final"] - whole_run(settings(batch_size=2) | lora, "gpt2")["final"]).abs().max() > 1e-4


def one_step(checkpointing: bool, **training: int) -> torch.Tensor:
    """The values after one step in float32."""
    model = pico_model("llama")
    given = {"epochs": 1, "lr": 1e-4, **training}
    work = pico_setup(model, {"finalize": given, "model": {"gradient_checkpointing": checkpointing}}, train=8, dev=0)
    final = finalize(work, [pico_adapter(model, "en"), pico_adapter(model, "ar")], 0.3, Recorder("finalize"))
    assert final.outcome.steps == 1
    return final.bank.values.detach()


def test_one_step_in_float32_agrees_to_five_digits():
    start = one_step(False, batch_size=8, accumulation=1)
    for checkpointing, batch_size in ((False, 1), (True, 8), (True, 2)):
        other = one_step(checkpointing, batch_size=batch_size, accumulation=8 // batch_size)
        assert (other - start).norm() <= 1e-5 * start.norm()


@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity"])
def test_the_global_random_state_is_neither_read_nor_changed(importance):
    def run() -> torch.Tensor:
        model = pico_model("gpt2", resid_pdrop=0.2)
        config = settings(True, batch_size=2, dropout=0.2) | {"prune": {"importance": importance}}
        work = pico_setup(model, config)
        adapters = [pico_adapter(model, "en"), pico_adapter(model, "ar")]
        io = Recorder("search")
        found = search(work, adapters, io)
        losses = [row["baseline"] for row in io.rows] + [[found.p_star] * 6]
        return torch.tensor(losses)

    outputs = []
    for seed in (1, 2):
        with undrawn(seed):
            outputs.append(run())
    assert torch.equal(outputs[0], outputs[1])
