"""The interval of p_star: resampled minima, and where examples that differ may have moved the minimum of their mean.

The examples' own best ratios differ, so the mean sees the common curve f averaged over shifts of standard deviation s.
A valley that is steeper on one side then has its lowest mean loss on the flatter side. To second order the average is
f + s^2 f'' / 2. A kink with slopes a (left) and b (right) is beyond that: the average is lowest where a share
b / (a + b) of the examples is still left of its kink, which for normal shifts is s Phi^-1(b / (a + b)) before f's own.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from .features import Matrix, Vector

REACH = 2.0
"""Slopes are measured over this many standard deviations of the shifts."""
STEEPEST = 0.9
"""The largest share b / (a + b) (and the smallest, 1 less it) that a measured pair of slopes is taken for."""
KINK = 1.5
"""How far the end on the steep side goes, in displacements of a kink: above 1, because the fit rounds a knee as well.

Set on the development families (`docs/controller.md`, section 5), where the mean coverage was to be 0.9.
"""


def sharpened(curves: Matrix, ratios: Vector, blur: float, part: Matrix) -> Matrix:
    """Return curves (B, G) over ratios (G,) with parts (B, 1) of their blur taken back: f - part v f'' / 2."""
    step = float(ratios[1] - ratios[0])
    if step <= 0:
        return curves
    bend = np.gradient(np.gradient(curves, step, axis=1), step, axis=1)
    return np.asarray(curves - 0.5 * blur * part * bend)


def displaced(ends: tuple[float, float], mean: Vector, ratios: Vector, at: float, blur: float) -> tuple[float, float]:
    """Return an interval's ends, the one on the steep side of the mean curve (G,) at ratio `at` moved outwards.

    `blur` is the variance of the examples' own best ratios. At a bound, where one side is unknown, nothing is moved.
    """
    (low, high), step = ends, float(ratios[1] - ratios[0])
    if step <= 0 or blur <= 0:
        return ends
    here = int(np.argmin(np.abs(ratios - at)))
    reach = max(1, round(REACH * blur**0.5 / step))
    left, right = max(here - reach, 0), min(here + reach, len(ratios) - 1)
    if not left < here < right:
        return ends
    a = max(float(mean[left] - mean[here]), 0.0) / (here - left)
    b = max(float(mean[right] - mean[here]), 0.0) / (right - here)
    if a + b == 0:
        return ends
    shift = KINK * blur**0.5 * float(ndtri(np.clip(b / (a + b), 1 - STEEPEST, STEEPEST)))
    return max(low + min(shift, 0.0), float(ratios[0])), min(high + max(shift, 0.0), float(ratios[-1]))
