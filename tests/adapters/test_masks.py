"""Masks against a plain sort: exact counts, ties by index, nested over the ratio."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grasp_lora.adapters.masks import Ranking, prune_count, rank

# Few distinct values, so that ties are the rule; zeros of both signs are equal.
SCORES = st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, 1e-30, math.inf]), min_size=1, max_size=60)
RATIOS = st.one_of(st.floats(0.0, 1.0), st.integers(0, 100).map(lambda n: n / 100))


def plain(scores: list[float], sizes: list[int], ratio: float) -> list[bool]:
    """The definition, entry by entry."""
    kept, start = [True] * len(scores), 0
    for size in sizes:
        order = sorted(range(start, start + size), key=lambda i: (scores[i], i))
        for index in order[: math.floor(ratio * size + 1e-9)]:
            kept[index] = False
        start += size
    return kept


@st.composite
def segmented(draw):
    scores = draw(SCORES)
    cuts = sorted(draw(st.sets(st.integers(1, len(scores)), max_size=5)) | {len(scores)})
    return scores, [end - start for start, end in zip([0, *cuts[:-1]], cuts, strict=True)]


@given(segmented(), RATIOS)
def test_masks_are_those_of_a_plain_sort(case, ratio):
    scores, sizes = case
    ranking = rank(torch.tensor(scores, dtype=torch.float64), sizes)
    assert ranking.kept(ratio).tolist() == plain(scores, sizes, ratio)


@given(segmented(), RATIOS, RATIOS)
def test_counts_are_exact_and_masks_are_nested(case, one, other):
    scores, sizes = case
    low, high = sorted((one, other))
    ranking = rank(torch.tensor(scores), sizes)
    sparse, dense = ranking.kept(high), ranking.kept(low)
    assert not bool((sparse & ~dense).any())
    for kept, ratio in ((dense, low), (sparse, high)):
        counts = [int((~part).sum()) for part in kept.split(sizes)]
        assert counts == [math.floor(ratio * size + 1e-9) for size in sizes]


@given(segmented())
def test_nothing_is_pruned_at_zero_and_everything_at_one(case):
    scores, sizes = case
    ranking = rank(torch.tensor(scores), sizes)
    assert bool(ranking.kept(0.0).all())
    assert not bool(ranking.kept(1.0).any())


@pytest.mark.parametrize(
    ("ratio", "entries", "count"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.1, 10, 1), (0.999, 10, 9), (1.0, 3, 3), (0.5, 0, 0)],
)
def test_counts_do_not_depend_on_rounding(ratio, entries, count):
    assert prune_count(ratio, entries) == count


@pytest.mark.parametrize("ratio", [-0.01, 1.01, 65, math.nan])
def test_ratios_outside_are_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        prune_count(ratio, 10)


def test_one_segment_prunes_across_tensors_and_several_do_not():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3, 0.4])
    assert rank(scores, [8]).kept(0.5).tolist() == [True] * 4 + [False] * 4
    assert rank(scores, [4, 4]).kept(0.5).tolist() == [False, False, True, True] * 2


def test_order_of_segments_does_not_depend_on_their_sizes():
    scores = torch.tensor([3.0, 1.0, 9.0, 8.0, 7.0, 2.0, 4.0])
    assert rank(scores, [2, 3, 2]).ranks.tolist() == [1, 0, 2, 1, 0, 0, 1]


def test_nan_and_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank(torch.tensor([1.0, math.nan]), [2])
    with pytest.raises(ValueError, match="segments hold 3 entries, importance has 2"):
        rank(torch.tensor([1.0, 2.0]), [3])


def test_a_ranking_of_ratios_between_two_counts_is_one_mask():
    ranking = Ranking(torch.arange(10), (10,))
    assert torch.equal(ranking.kept(0.31), ranking.kept(0.39))
    assert not torch.equal(ranking.kept(0.39), ranking.kept(0.4))
