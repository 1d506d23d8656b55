"""Passes of an update: few, under their budget, and what the largest can hold."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.config import SpeedConfig, TrainingConfig
from grasp_lora.data import Encoded, joined_chunks, packed
from grasp_lora.training.passes import PLACES, answer_weights, cut_update, few_widths, largest_pass, pass_tokens


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


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 100), st.integers(1, 3))
def test_chunks_to_join_are_under_both_budgets_and_no_later_one_fits_into_an_earlier(lengths, tokens, factor):
    chunks = joined_chunks(lengths, tokens, factor * tokens)
    assert sorted(position for chunk in chunks for position in chunk) == list(range(len(lengths)))
    for number, chunk in enumerate(chunks):
        held, longest = sum(lengths[i] for i in chunk), max(lengths[i] for i in chunk)
        assert len(chunk) == 1 or (held <= tokens and len(chunk) * longest <= factor * tokens)
        for later in chunks[number + 1 :]:
            more = lengths[later[0]]  # was there when the chunk held some of what it holds now
            assert held + more > tokens or (len(chunk) + 1) * longest > factor * tokens
    if lengths and max(lengths) <= tokens and factor == 3:
        assert len(chunks) <= len(packed(lengths, tokens))


def test_a_long_sequence_does_not_widen_the_rows_of_many_short_ones():
    lengths = [2048] + 64 * [32]
    chunks = cut_update(lengths, TrainingConfig(batch_size=1, accumulation=65), 4096, padded=False)
    assert [len(chunk) for chunk in chunks] == [4, 61]
    assert max(len(chunk) * lengths[chunk[0]] for chunk in chunks) <= PLACES * 4096
    assert len(cut_update(lengths, TrainingConfig(), 4096)) == 2


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


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 3), st.sampled_from([1, 4]))
def test_few_widths_pad_no_more_than_any_others(lengths, count, multiple):
    widths = few_widths(lengths, count, multiple)
    assert len(widths) <= count
    assert widths[-1] == max(lengths)

    def tokens(choice) -> int:
        return sum(min(width for width in choice if width >= length) for length in lengths)

    possible = sorted({min(max(lengths), -(-length // multiple) * multiple) for length in lengths})
    others = [c for k in range(1, count + 1) for c in combinations(possible, k) if c[-1] == possible[-1]]
    assert tokens(widths) == min(map(tokens, others))


def test_no_sequences_need_no_widths():
    assert few_widths([], 3) == []


def test_answer_tokens_weigh_what_their_example_counts():
    found = [Encoded("a", (5,) * 6, 2), Encoded("b", (5,) * 3, 2), Encoded("c", (5,) * 3, 0)]
    weights = answer_weights(found, 3, torch.float64)
    assert weights.tolist() == pytest.approx([1 / 12] * 4 + [1 / 3] + [1 / 6] * 2, abs=1e-15)
