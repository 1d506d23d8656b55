"""Batches: padding, labels, the window of the head, and orders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.data import (
    IGNORED,
    Encoded,
    answer_window,
    cheapest_chunks,
    collate,
    epoch_order,
    length_sorted_chunks,
)

PAD = 0


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    ids = draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    return Encoded("x", tuple(ids), draw(st.integers(1, len(ids))))


def test_labels_are_the_answer_and_the_end_token() -> None:
    batch = collate([Encoded("a", (1, 5, 6, 7, 2), 3), Encoded("b", (1, 5, 2), 1)], PAD, index=(4, 9))
    assert batch.input_ids.tolist() == [[1, 5, 6, 7, 2], [1, 5, 2, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED] * 3 + [7, 2], [IGNORED, 5, 2, IGNORED, IGNORED]]
    assert batch.index == (4, 9)
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    assert answer_window(batch) == (0, 4)


def test_padding_id_inside_a_sequence_is_still_a_token() -> None:
    batch = collate([Encoded("a", (1, PAD, PAD), 1), Encoded("b", (1, 3, 4, 5), 2)], PAD)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.labels[0].tolist() == [IGNORED, PAD, PAD, IGNORED]


@given(items=st.lists(encoded(), min_size=1, max_size=6), side=st.sampled_from(["left", "right"]))
def test_collate_loses_nothing(items: list[Encoded], side: str) -> None:
    batch = collate(items, PAD, side=side)  # type: ignore[arg-type]
    width = max(len(item.input_ids) for item in items)
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape == (len(items), width)
    for row, item in enumerate(items):
        kept = batch.attention_mask[row].bool()
        assert tuple(batch.input_ids[row][kept].tolist()) == item.input_ids
        assert batch.input_ids[row][~kept].tolist() == [PAD] * (width - len(item.input_ids))
        counted = batch.labels[row] != IGNORED
        assert tuple(batch.labels[row][counted].tolist()) == item.input_ids[item.prompt_length :]
        assert not (counted & ~kept).any()
        assert bool(kept[0 if side == "right" else -1])


@given(items=st.lists(encoded(), min_size=1, max_size=6))
def test_window_is_the_smallest_that_predicts_every_label(items: list[Encoded]) -> None:
    batch = collate(items, PAD)
    low, high = answer_window(batch)
    predicting = [
        position - 1 for row in batch.labels.tolist() for position, label in enumerate(row) if label != IGNORED
    ]
    assert (low, high) == ((min(predicting), max(predicting) + 1) if predicting else (0, 0))


def test_collate_refuses_misuse() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([], PAD)
    with pytest.raises(ValueError, match="as many positions"):
        collate([Encoded("a", (1, 2), 1)], PAD, index=(1, 2))


def test_to_device() -> None:
    batch = collate([Encoded("a", (1, 2), 1)], PAD, index=(3,)).to("meta")
    assert {batch.input_ids.device.type, batch.labels.device.type, batch.attention_mask.device.type} == {"meta"}
    assert batch.index == (3,)


@given(items=st.lists(encoded(), max_size=20), size=st.integers(1, 7))
def test_chunks_hold_every_position_once_longest_first(items: list[Encoded], size: int) -> None:
    chunks = length_sorted_chunks(items, size)
    order = [position for chunk in chunks for position in chunk]
    keys = [(-len(items[position].input_ids), position) for position in order]
    assert keys == sorted(keys)
    assert sorted(order) == list(range(len(items)))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * max(len(chunks) - 1, 0)


@given(n=st.integers(0, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 100))
def test_epoch_order_is_a_permutation_that_repeats(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert order == epoch_order(n, seed, epoch)


def test_epochs_and_seeds_differ_and_leave_global_state_alone() -> None:
    state = torch.get_rng_state()
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in range(3)}
    assert len(orders) == 6
    assert torch.equal(torch.get_rng_state(), state)


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 5), st.integers(1, 90), st.integers(0, 60))
def test_the_cheapest_chunks_hold_every_position_once_and_no_other_cut_is_cheaper(lengths, most, tokens, least):
    chunks = cheapest_chunks(lengths, most, tokens, least)
    assert sorted(position for chunk in chunks for position in chunk) == list(range(len(lengths)))
    assert all(len(chunk) <= most for chunk in chunks)
    order = [position for chunk in chunks for position in chunk]
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)

    def cost(sizes: tuple[int, ...]) -> float:
        total, start = 0, 0
        for size in sizes:
            held = size * lengths[order[start]]
            if size > most or (held > tokens and size > 1):
                return float("inf")
            total, start = total + max(held, least), start + size
        return total

    def cuts(n: int) -> list[tuple[int, ...]]:
        return [()] if n == 0 else [(size, *rest) for size in range(1, n + 1) for rest in cuts(n - size)]

    assert cost(tuple(map(len, chunks))) == min(map(cost, cuts(len(lengths))))


def test_a_batch_can_be_wider_than_its_longest_sequence_but_not_narrower():
    items = [Encoded("a", (5, 6, 7), 2), Encoded("b", (5, 6), 1)]
    wide = collate(items, 0, width=5)
    assert wide.input_ids.tolist() == [[5, 6, 7, 0, 0], [5, 6, 0, 0, 0]]
    assert wide.places.tolist() == [1, 5]
    with pytest.raises(ValueError, match="3 tokens does not fit into 2"):
        collate(items, 0, width=2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_places_are_where_labels_are_predicted(side):
    items = [Encoded("a", (5, 6, 7, 8), 2), Encoded("b", (5, 6), 0), Encoded("c", (5, 6, 7), 3)]
    batch = collate(items, 0, side=side)
    rows, columns = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    assert batch.places.tolist() == (rows * 4 + columns).tolist()
