"""The temperature prior that actors start from."""

import numpy as np

from mixgym.envs.mixture import BoolArray, FloatArray


def temperature_prior(sizes: FloatArray, tau: float, mask: BoolArray | None = None) -> FloatArray:
    """q_k ** (1 / tau) over its sum, with q the sizes over their sum.

    Args:
        sizes: float64[..., K].
        tau: 1 is proportional, infinity uniform.
        mask: bool[..., K], units that may get a weight; those with a size if None.

    Returns:
        float64[..., K]; rows without any unit are 0.

    >>> temperature_prior(np.array([80.0, 20.0]), 2.0).round(6)
    array([0.666667, 0.333333])
    """
    used = sizes > 0 if mask is None else mask & (sizes > 0)
    largest = np.max(sizes, axis=-1, keepdims=True, where=used, initial=0.0)
    share = np.where(used, sizes / np.where(largest > 0, largest, 1.0), 1.0)
    powers = np.where(used, share ** (1.0 / tau), 0.0)
    return powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)
