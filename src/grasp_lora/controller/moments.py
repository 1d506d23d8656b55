"""Normal equations of the settling curve, from sums over the evaluations of each round.

Every column of the design is a function of the round times 1 or a feature of the point, and rounds are independent of
each other. So all the inner products are weighted sums, over rounds, of one small matrix per round, whatever the
settling time is; the number of evaluations plays no part beyond these matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .features import Matrix, Vector


@dataclass(frozen=True)
class Sums:
    """Weighted sums over the evaluations of each of T rounds, with x = (1, features) of a point and its losses y.

    Of 1 (T,), x (T, 1 + J), y (T, m), x x' (T, 1 + J, 1 + J), x y' (T, 1 + J, m); `size` (T,) of the squared mean loss.
    """

    weights: Vector
    x: Matrix
    y: Matrix
    xx: Matrix
    xy: Matrix
    size: Vector

    @classmethod
    def of(cls, phi: Matrix, Y: Matrix, weights: Vector, member: Matrix) -> Sums:
        """Return the sums of features (n, J) and losses (n, m) with weights (n,); `member` (T, n) holds the rounds."""
        owner = member.argmax(axis=0)
        order = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[order], np.arange(len(member)))
        x = np.concatenate([np.ones((len(phi), 1)), phi], axis=1)[order]
        wx, y, w = x * weights[order][:, None], Y[order], weights[order]
        summed = [w, wx, y * w[:, None], wx[:, :, None] * x[:, None, :], wx[:, :, None] * y[:, None, :]]
        return cls(*(np.add.reduceat(s, starts) for s in (*summed, w * y.mean(axis=1) ** 2)))

    def whitened(self, effect: float) -> Whitened:
        """Return x' V^-1 x and x' V^-1 Y of every round for V = W^-1 + effect 1 1' within it (Woodbury)."""
        shrink = effect / (1 + effect * self.weights)
        left = self.x * shrink[:, None]
        size = self.size - shrink * self.y.mean(axis=1) ** 2
        # What the evidence of every choice shares: y' V^-1 y of the mean loss and half of log |V|.
        shared = -0.5 * float(size.sum()) - 0.5 * float(np.log1p(effect * self.weights).sum())
        return Whitened(
            self.xx - left[:, :, None] * self.x[:, None, :], self.xy - left[:, :, None] * self.y[:, None, :], shared
        )


@dataclass(frozen=True)
class Whitened:
    """x' V^-1 x (T, 1 + J, 1 + J) and x' V^-1 Y (T, 1 + J, m) of every round, and the evidence that choices share."""

    xx: Matrix
    xy: Matrix
    shared: float

    def still(self, drift: Vector) -> tuple[Matrix, Matrix]:
        """Return X'X (1, D, D), lower triangle, and X'Y (1, D, m) of the columns 1, drift and the features."""
        J = self.xx.shape[1] - 1
        XtX, XtY = np.zeros((1, 2 + J, 2 + J)), np.empty((1, 2 + J, self.xy.shape[2]))
        total = self.xx.sum(axis=0)
        along = drift @ self.xx[:, 0]
        XtX[0, 0, 0], XtX[0, 1, 0], XtX[0, 1, 1] = total[0, 0], along[0], drift**2 @ self.xx[:, 0, 0]
        XtX[0, 2:, 0], XtX[0, 2:, 1], XtX[0, 2:, 2:] = total[1:, 0], along[1:], total[1:, 1:]
        both = self.xy.sum(axis=0)
        XtY[0, 0], XtY[0, 1], XtY[0, 2:] = both[0], drift @ self.xy[:, 0], both[1:]
        return XtX, XtY

    def settling(self, drift: Vector, fades: Matrix, shares: Vector) -> tuple[Matrix, Matrix]:
        """Return X'X (K, D, D), lower triangle, and X'Y (K, D, m) for every fade e (k, T) and share rho.

        The columns are 1, drift, a phi, e, b phi with a = rho + (1 - rho) e and b = 1 - e.
        """
        T, J, m = len(drift), self.xx.shape[1] - 1, self.xy.shape[2]
        plain, along = self.still(drift)
        powers = np.concatenate([np.ones((1, T)), fades, fades**2])
        sums = (powers @ self.xx.reshape(T, -1)).reshape(-1, 1, 1 + J, 1 + J)
        zero, one, two = sums[:1], sums[1 : 1 + len(fades)], sums[1 + len(fades) :]
        faded = ((fades * drift) @ self.xx[:, 0])[:, None]
        rho, rest = shares[:, None], 1 - shares[:, None]
        XtX = np.zeros((len(fades), len(shares), 3 + 2 * J, 3 + 2 * J))
        a, e, b = slice(2, 2 + J), 2 + J, slice(3 + J, None)
        XtX[..., :2, :2] = plain[0, :2, :2]
        XtX[..., a, 0] = rho * zero[..., 0, 1:] + rest * one[..., 0, 1:]
        XtX[..., a, 1] = rho * plain[0, 2:, 1] + rest * faded[..., 1:]
        XtX[..., e, 0], XtX[..., e, 1], XtX[..., e, e] = one[..., 0, 0], faded[..., 0], two[..., 0, 0]
        XtX[..., e, a] = rho * one[..., 0, 1:] + rest * two[..., 0, 1:]
        XtX[..., b, 0], XtX[..., b, 1] = zero[..., 0, 1:] - one[..., 0, 1:], plain[0, 2:, 1] - faded[..., 1:]
        XtX[..., b, e] = one[..., 0, 1:] - two[..., 0, 1:]
        zero, one, two = (block[..., 1:, 1:] for block in (zero, one, two))
        rho, rest = rho[..., None], rest[..., None]
        XtX[..., a, a] = rho**2 * zero + 2 * rho * rest * one + rest**2 * two
        XtX[..., b, a] = rho * zero + (rest - rho) * one - rest * two
        XtX[..., b, b] = zero - 2 * one + two
        XtY = np.empty((len(fades), len(shares), 3 + 2 * J, m))
        at = (fades @ self.xy.reshape(T, -1)).reshape(-1, 1, 1 + J, m)
        XtY[..., :2, :] = along[0, :2]
        XtY[..., a, :], XtY[..., e, :] = rho * along[0, 2:] + rest * at[..., 1:, :], at[..., 0, :]
        XtY[..., b, :] = along[0, 2:] - at[..., 1:, :]
        return XtX.reshape(-1, *XtX.shape[2:]), XtY.reshape(-1, *XtY.shape[2:])
