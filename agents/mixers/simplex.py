"""Weights over sources: pure functions that cannot overflow; masked sources get exactly 0."""

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray

TINY = 1e-300


def even(mask: BoolArray) -> FloatArray:
    """float64[..., K], uniform over the mask; zero where nothing is in it.

    >>> even(np.array([True, False, True])).tolist()
    [0.5, 0.0, 0.5]
    """
    return np.asarray(mask / np.maximum(mask.sum(-1, keepdims=True), 1), np.float64)


def shares(values: FloatArray, mask: BoolArray) -> FloatArray:
    """float64[..., K], non-negative values over their sum; uniform where all of them are 0.

    >>> shares(np.array([1.0, 3.0, 5.0]), np.array([True, True, False])).tolist()
    [0.25, 0.75, 0.0]
    """
    kept = np.where(mask, values, 0.0)
    top = kept.max(-1, keepdims=True)
    kept = kept / np.maximum(top, TINY)  # a sum of huge values would be infinite
    total = kept.sum(-1, keepdims=True)
    return np.where(total > 0, kept / np.maximum(total, TINY), even(mask))


def softmax(scores: FloatArray, mask: BoolArray) -> FloatArray:
    """float64[..., K], softmax of the scores in the mask."""
    low = np.where(mask, scores, -np.inf)
    top = np.max(low, -1, keepdims=True)
    powers = np.exp(low - np.where(np.isfinite(top), top, 0.0))
    return shares(powers, mask)


def smoothed(weights: FloatArray, mask: BoolArray, share: float) -> FloatArray:
    """(1 - share) weights + share * uniform over the mask."""
    return (1.0 - share) * weights + share * even(mask)


def stepped(weights: FloatArray, gains: FloatArray, mask: BoolArray) -> FloatArray:
    """One exponentiated-gradient step: proportional to weights * exp(gains).

    A weight of 0 stays 0.

    >>> stepped(np.array([0.5, 0.5]), np.log([1.0, 3.0]), np.array([True, True])).round(9).tolist()
    [0.25, 0.75]
    """
    alive = mask & (weights > 0)
    return softmax(np.log(np.maximum(weights, TINY)) + gains, alive)


def mean_of(values: FloatArray, mask: BoolArray) -> float:
    """Mean over the mask; 0 where nothing is in it."""
    return float(np.where(mask, values, 0.0).sum() / max(int(mask.sum()), 1))
