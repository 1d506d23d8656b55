"""Passes of an update: few, under their budget, and what the largest can hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.config import SpeedConfig, TrainingConfig
from grasp_lora.data import Encoded, packed
from grasp_lora.training.passes import largest_pass, pass_tokens


def items(*lengths: int, answer: int = 2) -> list[Encoded]:
    return [Encoded(str(i), (5,) * n, n - answer) for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 100))
def test_chunks_hold_every_position_once_under_the_budget(lengths, tokens):
    chunks = packed(lengths, tokens)
    assert sorted(position for chunk in chunks for position in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        assert len(chunk) * max(lengths[i] for i in chunk) <= max(tokens, lengths[chunk[0]])
    for chunk, after in pairwise(chunks):
        assert (len(chunk) + 1) * lengths[chunk[0]] > tokens
        assert lengths[chunk[-1]] >= lengths[after[0]]


def test_the_default_budget_is_what_batch_size_of_the_longest_hold():
    training = TrainingConfig(batch_size=3, accumulation=4)
    assert pass_tokens(SpeedConfig(), training, items(10, 30, 20)) == 90
    assert pass_tokens(SpeedConfig(tokens_per_pass=64), training, items(10, 30, 20)) == 64
    assert pass_tokens(SpeedConfig(pack_accumulation=False, tokens_per_pass=64), training, items(10, 30)) is None
    assert pass_tokens(SpeedConfig(), TrainingConfig(batch_size=3), items(10, 30, 20)) is None


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        ({"pack_accumulation": False}, (2 * 40, 2 * 2)),
        ({}, (2 * 40, 4 * 2)),
        ({"tokens_per_pass": 10}, (40, 1 * 2)),
        ({"tokens_per_pass": 1000}, (5 * 40, 5 * 2)),
    ],
)
def test_the_largest_pass_bounds_every_update(speed, expected):
    training = TrainingConfig(batch_size=2, accumulation=3)
    found = items(40, 10, 10, 20, 20)
    assert largest_pass(SpeedConfig(**speed), training, found) == expected
    assert largest_pass(SpeedConfig(**speed), training, []) == (0, 0)
