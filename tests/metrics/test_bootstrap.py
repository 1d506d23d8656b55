from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from grasp_lora.errors import DataError
from grasp_lora.metrics import bootstrap
from grasp_lora.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from grasp_lora.rng import numpy_generator

VALUES = numpy_generator(3, "test").normal(50.0, 20.0, size=400)


def test_interval_is_that_of_plain_resampling() -> None:
    generator = numpy_generator(5, "bootstrap")
    means = [VALUES[generator.integers(0, 400, size=400)].mean() for _ in range(300)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(VALUES, resamples=300, seed=5) == pytest.approx(tuple(expected), rel=1e-12)


def test_interval_is_close_to_the_normal_one() -> None:
    low, high = bootstrap_interval(VALUES, resamples=4000)
    half = stats.norm.ppf(0.975) * VALUES.std() / 20.0
    assert (low, high) == pytest.approx((VALUES.mean() - half, VALUES.mean() + half), abs=0.15 * half)


def test_same_seed_same_bits_and_another_seed_another_interval() -> None:
    assert bootstrap_interval(VALUES, seed=1) == bootstrap_interval(VALUES, seed=1)
    assert bootstrap_interval(VALUES, seed=1) != bootstrap_interval(VALUES, seed=2)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_interval(VALUES, resamples=100)
    monkeypatch.setattr(bootstrap, "_CELLS", 1000)
    assert bootstrap_interval(VALUES, resamples=100) == whole


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - it is the thing under test
    bootstrap_interval(VALUES)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_reduce_of_several_statistics() -> None:
    table = np.stack([VALUES, np.full(400, 2.0)], axis=1)

    def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums[:, 0] / sums[:, 1]

    halved = tuple(edge / 2.0 for edge in bootstrap_interval(VALUES))
    assert bootstrap_interval(table, reduce=ratio) == pytest.approx(halved, rel=1e-12)


def test_a_clear_difference_and_none() -> None:
    noise = numpy_generator(4, "test").normal(0.0, 1.0, size=400)
    better = paired_bootstrap(VALUES + 1.0 + noise, VALUES, resamples=2000)
    assert better.difference == pytest.approx(1.0 + noise.mean())
    assert better.interval[0] > 0.0
    assert better.p_value == 1.0 / 2001.0
    same = paired_bootstrap(VALUES, VALUES)
    assert (same.difference, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert (same.n, same.resamples) == (400, 1000)


def test_p_value_agrees_with_the_paired_t_test() -> None:
    noise = numpy_generator(9, "test").normal(0.0, 1.0, size=400)
    shifted = VALUES + noise - noise.mean() + 0.09
    expected = stats.ttest_rel(shifted, VALUES).pvalue
    assert paired_bootstrap(shifted, VALUES, resamples=4000).p_value == pytest.approx(expected, abs=0.02)


def test_pairing_matters() -> None:
    noise = numpy_generator(4, "test").normal(0.0, 0.1, size=400)
    paired = paired_bootstrap(VALUES + noise, VALUES)
    crossed = paired_bootstrap(VALUES + noise, VALUES[::-1])
    assert paired.interval[1] - paired.interval[0] < 0.1 * (crossed.interval[1] - crossed.interval[0])


def test_swapping_the_systems_turns_the_sign() -> None:
    one, other = paired_bootstrap(VALUES, VALUES[::-1] * 1.1), paired_bootstrap(VALUES[::-1] * 1.1, VALUES)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), rel=1e-9)


def test_wrong_input() -> None:
    with pytest.raises(DataError):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="same examples"):
        paired_bootstrap([1.0], [1.0, 2.0])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_interval_stays_within_the_values(values: list[float]) -> None:
    low, high = bootstrap_interval(values, resamples=50)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
