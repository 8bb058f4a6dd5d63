"""Optimisers of actors: pure and batched, with state in arrays, so that an agent's memory is data.

Both ascend. Stable-Baselines3's optimisers are torch's; the same steps come out (tested).
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Moments:
    """State of Adam for parameters [..., P].

    Attributes:
        first, second: float64[..., P], running means of the gradient and of its square.
        steps: float64[..., 1], steps taken.
    """

    first: FloatArray
    second: FloatArray
    steps: FloatArray

    @classmethod
    def start(cls, parameters: FloatArray) -> "Moments":
        """No step taken."""
        zeros = np.zeros_like(parameters)
        return cls(zeros, zeros, np.zeros((*parameters.shape[:-1], 1)))


def direction(name: str, gradient: FloatArray, moments: Moments) -> tuple[FloatArray, Moments]:
    """What is added to the parameters per unit of learning rate, and the state after it.

    Args:
        name: ``sgd``, which returns the gradient itself, or ``adam`` (Kingma and Ba 2015) with
            betas 0.9 and 0.999 and epsilon 1e-8.
        gradient: float64[..., P].
        moments: the state before.
    """
    if name == "sgd":
        return gradient, moments
    steps = moments.steps + 1.0
    first = BETAS[0] * moments.first + (1.0 - BETAS[0]) * gradient
    second = BETAS[1] * moments.second + (1.0 - BETAS[1]) * gradient**2
    scaled = first / (1.0 - BETAS[0] ** steps)
    root = np.sqrt(second / (1.0 - BETAS[1] ** steps))
    return scaled / (root + EPSILON), Moments(first, second, steps)
