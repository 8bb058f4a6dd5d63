"""Numbers without scale, of which features are made: in single precision, to be quick.

Over any leading axes; what is missing is NaN in what comes in, and 0 in what goes out.
"""

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.spaces.mixture import last_sum

Single = NDArray[np.float32]

BOUND = 10.0
"""Of features."""
LEAST_ERROR = 1e-4
"""Of a held-out loss, relative; what is smaller looks like this."""
_TOP, _ONE = np.float32(BOUND), np.float32(1.0)


def single(values: FloatArray) -> Single:
    """In single precision, whose logarithms take a quarter of the time."""
    return np.asarray(values, np.float32)


def log_costs(cost: FloatArray, cell_cost: FloatArray) -> tuple[FloatArray, FloatArray]:
    """float64[..., K] and [..., K, G], logs of costs over the mean of the sources; 0 if unknown.

    Strata are measured by the same mean, so that they compare across sources.
    """
    known = np.isfinite(cost)
    total = last_sum(np.where(known, cost, 0.0))
    mean = np.where(known.any(-1), total, 1.0) / np.maximum(known.sum(-1), 1)
    return (
        np.nan_to_num(np.log(cost / mean[..., None]), nan=0.0),
        np.nan_to_num(np.log(cell_cost / mean[..., None, None]), nan=0.0),
    )


def relative_error(error: FloatArray, value: FloatArray) -> Single:
    """log10(error / value) from -4 to 0; 0 where either is unknown (NaN)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # an absent row is 0 / 0
        relative = np.asarray(error / value)
    # fmin, of a number and NaN, is the number
    np.fmin(relative, 1.0, out=relative)
    least = single(np.maximum(relative, LEAST_ERROR, out=relative))
    return np.log10(least, out=least)


def log_ratio(value: FloatArray, inverse: FloatArray) -> Single:
    """log(value * inverse), at least -10; 0 where that is missing (NaN) or not positive."""
    ratio = single(value * inverse)
    ratio = np.where(ratio > 0, ratio, _ONE)
    return np.maximum(np.log(ratio), -_TOP)


def fall_of(
    before: FloatArray, after: FloatArray, inverse: FloatArray, measured: bool
) -> FloatArray:
    """10 (before - after) * inverse; 0 where ``inverse`` is, though losses be unmeasured (NaN)."""
    fall = before - after
    fall *= inverse
    fall *= 10.0
    return fall if measured else np.where(inverse > 0, fall, 0.0)


def log_share(value: FloatArray) -> Single:
    """log(value), at least -10, which is also what 0 becomes."""
    return np.log(single(np.maximum(value, np.exp(-BOUND))))
