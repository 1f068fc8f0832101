"""Least squares with weights that are not negative, so that more is never better (Lawson and Hanson 1974, ch. 23)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TOLERANCE = 1e-10


def solve(a: Floats, b: Floats) -> Floats:
    """The x >= 0 that minimises |a x - b|."""
    x = np.zeros(a.shape[1])
    active = np.zeros(a.shape[1], dtype=bool)
    for _ in range(10 * a.shape[1]):
        gain = np.where(active, -np.inf, a.T @ (b - a @ x))
        best = int(gain.argmax())
        if gain[best] <= _TOLERANCE:
            break
        active[best] = True
        x = _within(a, b, x, active)
    return x


def _within(a: Floats, b: Floats, x: Floats, active: NDArray[np.bool_]) -> Floats:
    """The best x over the active columns; columns that would be negative leave."""
    while True:
        wanted = np.zeros_like(x)
        wanted[active] = np.linalg.lstsq(a[:, active], b, rcond=None)[0]
        below = active & (wanted <= 0)
        if not below.any():
            return wanted
        step = (x[below] / (x[below] - wanted[below])).min()
        x = x + step * (wanted - x)
        active &= x > _TOLERANCE
