"""Percentile bootstrap over examples (Efron and Tibshirani, 1993, ch. 13 and 16), with its own random stream.

A score is a function of sums over examples: the mean of n values is their sum over n, corpus BLEU is a
function of summed n-gram counts. So one resample is a weighted sum of per-example statistics, and all are
made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..rng import numpy_generator

Array = npt.NDArray[np.float64]
Reduce = Callable[[Array], Array]
"""Maps summed statistics of shape (resamples, k) to scores of shape (resamples,)."""

_LEVEL = 0.95
_CELLS = 1 << 22  # draws held in memory at once


@dataclass(frozen=True)
class PairedComparison:
    """Score of a minus score of b, its 95 % interval, and the two-sided p-value of no difference.

    The p-value is that of the bootstrap test: the share of resampled differences, shifted to mean zero, that
    are at least as large as the observed one (the observed one counted among them, so it is never 0).
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    n: int
    resamples: int


def _statistics(values: Sequence[float] | Array) -> Array:
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if len(table) == 0:
        raise DataError("there are no examples to score. Give a split that has some.")
    return table


def _mean_of(n: int) -> Reduce:
    return lambda sums: sums[:, 0] / n


def _resampled_sums(table: Array, resamples: int, seed: int) -> Array:
    """Return sums, shape (resamples, k), over n rows drawn with replacement; draws depend on n and seed."""
    n, generator = len(table), numpy_generator(seed, "bootstrap")
    chunk, sums = max(1, _CELLS // n), []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = generator.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        # einsum and not matmul: the order of its sums does not depend on the number of BLAS threads.
        sums.append(np.einsum("rn,nk->rk", counts, table))
    return np.concatenate(sums)


def _interval(samples: Array) -> tuple[float, float]:
    tail = (1.0 - _LEVEL) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float] | Array, *, reduce: Reduce | None = None, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a score.

    `values` has shape (n,), or (n, k) with a `reduce` from summed statistics to scores; without `reduce` the
    score is the mean. Raises `DataError` for n = 0.
    """
    table = _statistics(values)
    return _interval((reduce or _mean_of(len(table)))(_resampled_sums(table, resamples, seed)))


def paired_bootstrap(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    *,
    reduce: Reduce | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two systems on the same examples: both are resampled with the same draws.

    `a` and `b` have shape (n,), or (n, k) with a `reduce` as in `bootstrap_interval`. Raises `ValueError`
    when their shapes differ and `DataError` for n = 0.
    """
    first, second = _statistics(a), _statistics(b)
    if first.shape != second.shape:
        raise ValueError(f"paired systems need the same examples: shapes {first.shape} and {second.shape}")
    n, k = first.shape
    score = reduce or _mean_of(n)
    sums = _resampled_sums(np.concatenate([first, second], axis=1), resamples, seed)
    differences = score(sums[:, :k]) - score(sums[:, k:])
    observed = float((score(first.sum(axis=0)[None]) - score(second.sum(axis=0)[None]))[0])
    # A hair of slack, so that rounding does not decide whether a shifted difference reaches an observed one.
    extreme = np.abs(differences - differences.mean()) >= abs(observed) - 1e-12 * max(1.0, abs(observed))
    p_value = (1.0 + float(extreme.sum())) / (resamples + 1.0)
    return PairedComparison(observed, _interval(differences), p_value, n, resamples)
