"""What held-out losses of the fast world are off by.

The rows of a held-out set are the same in every measurement of a run, so most of the error of a
loss stays as it is, and a smaller part moves as the model does.
"""

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.random_streams import EpisodeNoise
from mixgym.envs.spaces.mixture import last_sum


class HeldOutNoise:
    """Draws the relative errors of episodes; one object serves them all."""

    def __init__(self) -> None:
        self._moving = EpisodeNoise()
        self._staying = EpisodeNoise("curves: held-out rows")

    def draw(
        self, episode: int, count: int, shape: tuple[int, int]
    ) -> tuple[FloatArray, FloatArray]:
        """Normal numbers of an episode's first measurements: float64[count, K, G] and [K, G].

        The second ones are the same in all measurements; see :func:`relative_errors`.
        """
        moving = self._moving.start(episode).standard_normal((count, *shape))
        return moving, self._staying.start(episode).standard_normal(shape)


def relative_errors(
    moving: FloatArray, staying: FloatArray, noise: FloatArray, stays: FloatArray | float
) -> FloatArray:
    """float64[..., K, G], relative errors of measurements.

    Args:
        moving: normal numbers of each measurement.
        staying: those that all measurements of an episode share.
        noise: standard deviations.
        stays: share of the variance that is the same in all measurements.
    """
    errors = np.sqrt(1.0 - stays) * moving
    errors += np.sqrt(stays) * staying
    errors *= noise
    return errors


def standard_errors(noise: FloatArray, nll: FloatArray) -> FloatArray:
    """float64[..., K, G], nats: what is known of the errors' size."""
    return noise * nll


def mean_error(errors: FloatArray, cell_mean: FloatArray) -> FloatArray:
    """float64[..., K], standard errors of the mean loss over a source's strata, each on its own.

    Args:
        errors: float64[..., K, G], of every stratum.
        cell_mean: float64[..., K, G], weights of the mean.
    """
    part = errors * cell_mean
    part *= part
    return np.sqrt(last_sum(part))
