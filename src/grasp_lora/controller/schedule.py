"""When to probe again, and when the answer stands."""

from __future__ import annotations

import math

from .answer import Glimpse

AHEAD = 12
"""Probes whose worth is asked before going on: four rounds of three."""
GROWTH = 1.2
"""The fit is renewed once the history has grown by this factor."""
STRIDE = 2
"""Rounds from one probe to the next where the curve has settled."""
SPARSE = 1.35
"""While training still flattens the curve, the next probe waits until this multiple of the present round."""
FIRST_STOP = 4
"""No stop before this round: a landscape that settles cannot be told from one that does not any earlier."""
UNSETTLED = 0.1


def after_round(round_index: int, found: Glimpse, tolerance: float) -> tuple[int, str | None]:
    """Return the next round to probe in, and why probing can end now (None: it goes on); tolerance in nats."""
    if found.unsettled > UNSETTLED:
        # What training is still flattening says little about the settled curve: wait, ever longer.
        return max(round_index + STRIDE, math.ceil(round_index * SPARSE)), None
    if round_index >= FIRST_STOP and found.gain < tolerance:
        why = (
            f"{AHEAD} more probes are expected to lower the loss at p_star by {found.gain:.1e} nats, less than "
            f"controller.tolerance={tolerance:g}"
        )
        return round_index + STRIDE, why
    return round_index + STRIDE, None


def spent(evaluations: int, budget: int | None) -> str:
    """Return what was spent and saved, in words."""
    if not budget:
        return f"{evaluations} evaluations spent"
    return f"{evaluations} of {budget} evaluations spent, {max(budget - evaluations, 0) / budget:.0%} saved"
