"""A workload of `bench` that takes a second, and the words that ask for it."""

from __future__ import annotations

from grasp_lora.pipeline.bench import workloads

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 64,
}  # fmt: skip
PICO = workloads.Workload("pico", SHAPE, 5, 9, 2, 64, train=9, micro_dev=4, generated=3, prompt=8, new_tokens=3)
SMALL = ("controller.candidates=2", "controller.interval=3", "finalize.accumulation=4", "search.epochs=3",
         "finalize.epochs=3", "model.device=cpu")  # fmt: skip


def words(*more):
    return ("bench", "--workload", "pico", "--repeats", 1, *(w for pair in SMALL for w in ("--set", pair)), *more)
