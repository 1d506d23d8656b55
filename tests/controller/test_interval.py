"""Where examples that differ may have moved the minimum of their mean, and how the interval says so."""

from __future__ import annotations

import numpy as np
import pytest

from grasp_lora.controller.interval import KINK, displaced, sharpened

RATIOS = np.linspace(0.0, 0.95, 191)
SPREAD = 0.05


def blurred(curve: object) -> np.ndarray:
    """Return the mean of a curve over normal shifts."""
    shifts = np.random.default_rng(0).normal(0, SPREAD, 20_000)
    return curve(RATIOS[:, None] + shifts).mean(axis=1)


def kink(left: float, right: float, at: float = 0.5) -> object:
    return lambda p: np.where(p < at, left * (at - p), right * (p - at))


@pytest.mark.parametrize("right", [0.3, 0.5, 0.8])
def test_the_end_on_the_steep_side_reaches_a_kink_that_the_mean_hides(right: float) -> None:
    mean = blurred(kink(0.1, right))
    lowest = float(RATIOS[mean.argmin()])
    assert lowest < 0.48  # the mean is lowest on the flat side
    low, high = displaced((lowest, lowest), mean, RATIOS, lowest, SPREAD**2)
    assert low == lowest
    assert 0.49 <= high <= 0.5 + KINK * SPREAD


def test_a_mirrored_curve_moves_the_other_end() -> None:
    mean = blurred(kink(0.5, 0.1))
    low, high = displaced((0.45, 0.6), mean, RATIOS, float(RATIOS[mean.argmin()]), SPREAD**2)
    assert low < 0.42
    assert high == 0.6


@pytest.mark.parametrize("at", [0.0, 0.95])
def test_at_a_bound_one_side_is_unknown_and_nothing_moves(at: float) -> None:
    assert displaced((0.0, 0.95), np.abs(RATIOS - at), RATIOS, at, SPREAD**2) == (0.0, 0.95)


def test_nothing_moves_for_a_valley_alike_on_both_sides_or_examples_alike() -> None:
    even = (RATIOS - 0.475) ** 2
    assert displaced((0.4, 0.5), even, RATIOS, 0.475, SPREAD**2) == pytest.approx((0.4, 0.5))
    assert displaced((0.4, 0.5), kink(0.1, 0.8)(RATIOS), RATIOS, 0.5, 0.0) == (0.4, 0.5)


def test_the_ends_stay_within_the_bounds() -> None:
    mean = blurred(kink(0.1, 0.8, at=0.85))
    assert displaced((0.7, 0.93), mean, RATIOS, 0.8, 0.15**2)[1] == RATIOS[-1]


def test_all_of_the_blur_taken_back_is_the_common_parabola() -> None:
    mean = (RATIOS - 0.4) ** 2 + SPREAD**2
    back = sharpened(mean[None], RATIOS, SPREAD**2, np.ones((1, 1)))[0]
    assert back[5:-5] == pytest.approx((RATIOS[5:-5] - 0.4) ** 2, abs=1e-9)
