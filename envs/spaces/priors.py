"""The mixture that a zero action stands for, and the one-line rules that it can be.

Pure functions over any leading axes: the tasks of a batch are worked out at once.
"""

from typing import Literal

import numpy as np

from mixgym.envs.arrays import FloatArray

Prior = Literal["uniform", "proportional", "cost_power"]

SIZE_EXPONENT = COST_EXPONENT = 0.25
"""Of the prior ``cost_power``; see :func:`cost_power`."""
POOL = 0.25
"""Share of its weight that a source with target 0 keeps under the prior ``cost_power``: an agent
can take it away or give it more, which it could not if the prior had nothing there."""


def cost_power(
    size: FloatArray,
    cost: FloatArray,
    target: FloatArray,
    *,
    size_exponent: float = SIZE_EXPONENT,
    cost_exponent: float = COST_EXPONENT,
    pool: float = POOL,
) -> FloatArray:
    """float64[..., K] that sums to 1: p ~ size ** size_exponent * cost ** -cost_exponent.

    Sources with target 0 get ``pool`` of that, unless no source that can be trained on counts.

    Args:
        size: float64[..., K], what the sources hold, in any unit; 0: cannot be trained on.
        cost: float64[..., K], tokens read per supervised token; 0 where unknown, which is taken
            for the geometric mean of those that are known.
        target: float64[..., K], not negative.
        size_exponent: 0 leaves sizes alone, 1 is proportional.
        cost_exponent: 0 leaves costs alone, 1 reads equally many tokens of all.
        pool: 0 to 1.

    >>> size, ones = np.array([1.0, 16.0]), np.ones(2)
    >>> cost_power(size, ones, ones, size_exponent=0.5).tolist()
    [0.2, 0.8]
    >>> cost_power(size, ones, np.array([1.0, 0.0]), size_exponent=0.5).tolist()
    [0.5, 0.5]
    """
    there, known = size > 0, (size > 0) & (cost > 0)
    logs = np.log(np.where(known, cost, 1.0))
    mean = logs.sum(-1, keepdims=True) / np.maximum(known.sum(-1, keepdims=True), 1)
    powers = size_exponent * np.log(np.where(there, size, 1.0))
    powers = powers - cost_exponent * np.where(known, logs - mean, 0.0)
    counted = there & (target > 0)
    kept = np.where(counted | ~counted.any(-1, keepdims=True), 1.0, pool)
    top = np.where(there, powers, -np.inf).max(-1, keepdims=True)
    weights = np.where(there, kept * np.exp(powers - np.where(np.isfinite(top), top, 0.0)), 0.0)
    return np.asarray(weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300))


def prior_weights(
    prior: Prior, size: FloatArray, cost: FloatArray, target: FloatArray
) -> FloatArray:
    """float64[..., K], not normalised: the weights of sources under a prior by its word.

    Args:
        prior: the word.
        size: float64[..., K].
        cost: float64[..., K].
        target: float64[..., K].
    """
    if prior == "cost_power":
        return cost_power(size, cost, target)
    return size if prior == "proportional" else (size > 0).astype(np.float64)
