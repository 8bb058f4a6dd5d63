"""What becomes of measured rewards before they move an actor. Pure functions, any leading axes."""

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray

NORMALISERS = ("none", "mean", "sum", "zscore")


def known_or_mean(rewards: FloatArray, mask: BoolArray) -> FloatArray:
    """Rewards [..., K] with units that are unknown (NaN) at the mean of the known; masked ones 0.

    Rows in which nothing is known are 0.
    """
    known = mask & np.isfinite(rewards)
    count = known.sum(-1, keepdims=True)
    mean = np.where(known, rewards, 0.0).sum(-1, keepdims=True) / np.maximum(count, 1)
    return np.where(known, rewards, np.where(mask, mean, 0.0))


def normalised(rewards: FloatArray, mask: BoolArray, how: str) -> FloatArray:
    """Rewards [..., K] over their mean or their sum, or as z-scores; masked ones stay 0.

    Rows whose mean, sum or spread is 0 are left as they are.

    >>> normalised(np.array([0.5, 0.7, 0.9, 1.1]), np.ones(4, bool), "mean")
    array([0.625, 0.875, 1.125, 1.375])
    """
    if how == "none":
        return rewards
    count = np.maximum(mask.sum(-1, keepdims=True), 1)
    total = np.where(mask, rewards, 0.0).sum(-1, keepdims=True)
    if how == "sum":
        return rewards / np.where(total != 0, total, 1.0)
    mean = total / count
    if how == "mean":
        return rewards / np.where(mean != 0, mean, 1.0)
    centred = np.where(mask, rewards - mean, 0.0)
    spread = np.sqrt((centred**2).sum(-1, keepdims=True) / count)
    return np.where(spread > 0, centred / np.where(spread > 0, spread, 1.0), rewards)


def averaged(rewards: FloatArray, before: FloatArray, share: float) -> FloatArray:
    """Exponential moving average; ``share`` is the weight of the NEW value (1: no memory).

    >>> averaged(np.array([3.0]), np.array([1.0]), 0.9)
    array([2.8])
    """
    return share * rewards + (1.0 - share) * before


def sharpened(rewards: FloatArray, power: float) -> FloatArray:
    """``rewards ** power`` with negative rewards at 0; 1 leaves them as they are."""
    return rewards if power == 1.0 else np.maximum(rewards, 0.0) ** power


def differs(rewards: FloatArray, before: FloatArray, mask: BoolArray, errors: float) -> BoolArray:
    """bool[...], whether rewards differ by more than ``errors`` standard errors of themselves.

    The noise of a measurement is taken from two in a row: with each row's mean taken out, the mean
    square of the change is twice the variance of the noise, plus drift, so that the error is
    never underrated in the mean. True where there is no earlier measurement (NaN), or where
    ``errors`` is 0.

    Args:
        rewards: float64[..., K].
        before: the measurement before it, in the same unit.
        mask: bool[..., K].
        errors: 2 asks for about two standard errors.
    """
    seen = mask & np.isfinite(before) & np.isfinite(rewards)
    count = seen.sum(-1)

    def around_mean(values: FloatArray) -> FloatArray:
        kept = np.where(seen, values, 0.0)
        mean = kept.sum(-1, keepdims=True) / np.maximum(count, 1)[..., None]
        return np.where(seen, kept - mean, 0.0)

    freedom = np.maximum(count - 1, 1)
    spread = (around_mean(rewards) ** 2).sum(-1) / freedom
    noise = (around_mean(rewards - before) ** 2).sum(-1) / freedom / 2.0
    return (count < 2) | (spread >= errors**2 * noise)


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
