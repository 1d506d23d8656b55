"""One thread for the small matrices of a fit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """Return a block in which the linear algebra of NumPy and SciPy uses one thread; what was set before comes back.

    Threads win nothing on matrices of some hundred rows, and those that wait for more work take the cores' time. Sums
    are the same then, however many cores there are.
    """
    found: AbstractContextManager[Any] = _pools().limit(limits=1, user_api="blas")
    return found
