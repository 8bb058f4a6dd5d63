"""Fitting loss(n) = floor + scale * n ** -exponent to a few noisy points, robustly.

Given the floor, log(loss - floor) is a straight line in log n. So the floor alone is searched, on
grids that close in on the best one, and the line is found by least squares, reweighted so that
outliers count less (Huber). Everything is batched over leading axes.
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray

_CANDIDATES = 17
"""Floors on a grid."""
_ZOOMS = 6
"""Times that a grid closes in."""
_REWEIGHTINGS = 4
_OUTLIER = 1e-3
"""Relative error from which a point counts by its size instead of its square, as in ADO."""
_STEEPEST = 3.0
"""Largest exponent."""


@dataclass(frozen=True)
class PowerLaw:
    """loss(n) = floor + exp(log_scale) n ** -exponent; all float64[...]."""

    floor: FloatArray
    log_scale: FloatArray
    exponent: FloatArray

    def at(self, tokens: FloatArray) -> FloatArray:
        """The loss after ``tokens`` (> 0)."""
        return self.floor + np.exp(self.log_scale - self.exponent * np.log(tokens))

    def each(self, tokens: FloatArray) -> FloatArray:
        """The losses [..., H] after ``tokens`` [..., H] (> 0)."""
        logs = self.log_scale[..., None] - self.exponent[..., None] * np.log(tokens)
        return self.floor[..., None] + np.exp(logs)

    def slope(self, tokens: FloatArray) -> FloatArray:
        """-d loss / d tokens after ``tokens`` (> 0)."""
        return self.exponent * (self.at(tokens) - self.floor) / tokens


def fit_power_law(
    tokens: FloatArray,
    losses: FloatArray,
    known: BoolArray,
    precision: FloatArray | None = None,
) -> PowerLaw:
    """The robust fit over the last axis; exponents are kept within 0 and :data:`_STEEPEST`.

    Where fewer than two points are known the law is flat.

    Args:
        tokens: float64[..., H], positive where known.
        losses: float64[..., H], positive where known.
        known: bool[..., H].
        precision: float64[..., H], one over the variance of each loss, in any unit; None: alike.
    """
    counts = None if precision is None else _over_largest(precision, known)
    logs = np.log(np.where(known, tokens, 1.0))
    found = np.where(known, losses, 1.0)
    low, high = np.zeros(known.shape[:-1]), _middle(losses, known)
    most, steps, best = high, np.linspace(0.0, 1.0, _CANDIDATES), low
    for _ in range(_ZOOMS):
        floors = low[..., None] + (high - low)[..., None] * steps
        misfit = _line(logs, found, known, floors, counts)[2]
        best = np.take_along_axis(floors, misfit.argmin(-1)[..., None], -1)[..., 0]
        reach = (high - low) / (_CANDIDATES - 1)
        low, high = np.maximum(best - reach, 0.0), np.minimum(best + reach, most)
    log_scale, exponent, _ = _line(logs, found, known, best[..., None], counts)
    return PowerLaw(best, log_scale[..., 0], exponent[..., 0])


def _middle(losses: FloatArray, known: BoolArray) -> FloatArray:
    """float64[...], lower median of what is known: a floor above it is no floor."""
    ordered = np.sort(np.where(known, losses, np.inf), axis=-1)
    place = np.maximum(known.sum(-1, keepdims=True) - 1, 0) // 2
    middle = np.take_along_axis(ordered, place, -1)[..., 0]
    return np.where(np.isfinite(middle), middle, 1.0)


def _over_largest(precision: FloatArray, known: BoolArray) -> FloatArray:
    """float64[..., H] in [0, 1]."""
    kept = np.where(known, precision, 0.0)
    return kept / np.maximum(kept.max(-1, keepdims=True), 1e-300)


def _line(
    logs: FloatArray,
    losses: FloatArray,
    known: BoolArray,
    floors: FloatArray,
    counts: FloatArray | None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Log scale, exponent and misfit, float64[..., E], for every floor [..., E].

    ``counts`` [..., H]: what a point counts beside the others.
    """
    x, loss = logs[..., None, :], losses[..., None, :]
    above = np.maximum(loss - floors[..., None], 1e-12)
    y = np.log(above)
    trust = np.where(known[..., None, :], (above / loss) ** 2, 0.0)  # of y, for equal noise of loss
    if counts is not None:
        trust = trust * counts[..., None, :]
    weights = trust
    for _ in range(_REWEIGHTINGS):
        log_scale, exponent = _weighted_line(x, y, weights)
        fitted = floors[..., None] + np.exp(log_scale[..., None] - exponent[..., None] * x)
        error = np.where(known[..., None, :], np.log(fitted / loss), 0.0)
        size = np.abs(error)
        weights = trust * np.minimum(1.0, _OUTLIER / np.maximum(size, _OUTLIER))
    huber = np.where(size <= _OUTLIER, 0.5 * size**2, _OUTLIER * (size - 0.5 * _OUTLIER))
    if counts is not None:
        huber = huber * counts[..., None, :]
    return log_scale, exponent, huber.sum(-1)


def _weighted_line(
    x: FloatArray, y: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Intercept and minus the slope of the weighted least-squares line, slope within bounds."""
    total = np.maximum(weights.sum(-1), 1e-300)
    middle_x, middle_y = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
    away = x - middle_x[..., None]
    spread = (weights * away**2).sum(-1)
    tilt = (weights * away * (y - middle_y[..., None])).sum(-1)
    enough = spread > 1e-12 * total
    exponent = np.clip(np.where(enough, -tilt / np.where(enough, spread, 1.0), 0.0), 0.0, _STEEPEST)
    return middle_y + exponent * middle_x, exponent
