"""Actors as distributions with parameters: p = softmax(offset + f(parameters, features)).

Each actor is a pair of pure functions over leading axes: the logits of its units, and the pull of
a direction in the logits back to the parameters (a vector-Jacobian product). Any update rule of
:mod:`mixgym.agents.hbo.updates` so moves any actor. Parameters are flat float64 vectors: an
agent's memory is data, copied, saved and forked as such.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mixgym.agents.hbo.optimizers import Moments, direction
from mixgym.agents.hbo.updates import softmax
from mixgym.envs.arrays import BoolArray, FloatArray

FIT_ERROR, FIT_STEPS = 1e-10, 200_000  # of the warm start by regression
_FIT_CHECKED = 100  # steps between two looks at the error


class LogitActor(Protocol):
    """Logits of U units from parameters [..., P] and features [..., U, F]."""

    def start(self, units: int, features: int, random: np.random.Generator) -> FloatArray:
        """float64[P], parameters before training."""
        ...

    def logits(self, parameters: FloatArray, features: FloatArray) -> FloatArray:
        """float64[..., U]."""
        ...

    def pull(
        self, parameters: FloatArray, features: FloatArray, gradient: FloatArray
    ) -> FloatArray:
        """float64[..., P], the gradient [..., U] in the logits as one in the parameters."""
        ...


class Table:
    """One logit per unit: context-free, a softmax bandit."""

    def start(self, units: int, features: int, random: np.random.Generator) -> FloatArray:
        """See :class:`LogitActor`; all 0."""
        return np.zeros(units)

    def logits(self, parameters: FloatArray, features: FloatArray) -> FloatArray:
        """See :class:`LogitActor`."""
        shape = np.broadcast_shapes(parameters.shape, features.shape[:-1])
        return np.broadcast_to(parameters, shape)

    def pull(
        self, parameters: FloatArray, features: FloatArray, gradient: FloatArray
    ) -> FloatArray:
        """See :class:`LogitActor`."""
        return gradient


@dataclass(frozen=True)
class Perceptron:
    """The same two-layer perceptron on every unit's features: w2 . tanh(W1 f + b1).

    It starts with w2 = 0, at the prior. A bias of the output would be the same for all units, and
    change nothing.

    Attributes:
        hidden: width of the hidden layer.
    """

    hidden: int = 16

    def start(self, units: int, features: int, random: np.random.Generator) -> FloatArray:
        """See :class:`LogitActor`."""
        first = random.standard_normal((features, self.hidden)) / np.sqrt(features)
        return np.concatenate([first.ravel(), np.zeros(2 * self.hidden)])

    def logits(self, parameters: FloatArray, features: FloatArray) -> FloatArray:
        """See :class:`LogitActor`."""
        _, last = self._layers(parameters, features.shape[-1])
        codes = self._codes(parameters, features)
        return (codes * last[..., None, :]).sum(-1)

    def pull(
        self, parameters: FloatArray, features: FloatArray, gradient: FloatArray
    ) -> FloatArray:
        """See :class:`LogitActor`."""
        _, last = self._layers(parameters, features.shape[-1])
        codes = self._codes(parameters, features)
        to_last = (gradient[..., None] * codes).sum(-2)
        inner = gradient[..., None] * last[..., None, :] * (1.0 - codes**2)  # [..., U, H]
        to_first = np.swapaxes(features, -1, -2) @ inner
        lead = to_first.shape[:-2]
        return np.concatenate([to_first.reshape(*lead, -1), inner.sum(-2), to_last], axis=-1)

    def _layers(self, parameters: FloatArray, features: int) -> tuple[FloatArray, FloatArray]:
        """The first layer [..., F, H], and the last [..., H]."""
        first = parameters[..., : features * self.hidden]
        lead = parameters.shape[:-1]
        return first.reshape(*lead, features, self.hidden), parameters[..., -self.hidden :]

    def _codes(self, parameters: FloatArray, features: FloatArray) -> FloatArray:
        first, _ = self._layers(parameters, features.shape[-1])
        bias = parameters[..., -2 * self.hidden : -self.hidden]
        codes: FloatArray = np.tanh(features @ first + bias[..., None, :])
        return codes


def fitted(
    actor: LogitActor,
    parameters: FloatArray,
    features: FloatArray,
    target: FloatArray,
    mask: BoolArray,
    rate: float,
) -> tuple[FloatArray, Moments]:
    """Regress softmax(logits) onto ``target`` by mean squared error with Adam.

    The released code's warm start. Rows stop together, when the worst is at :data:`FIT_ERROR`.

    Args:
        actor: whose parameters are fitted.
        parameters: float64[..., P].
        features: float64[..., U, F].
        target: float64[..., U], a distribution.
        mask: bool[..., U].
        rate: Adam's learning rate.

    Returns:
        The parameters, and Adam's state, which the released code carries into training.
    """
    moments = Moments.start(parameters)
    count = np.maximum(mask.sum(-1, keepdims=True), 1)
    for step in range(FIT_STEPS):
        weights = softmax(actor.logits(parameters, features), mask)
        gap = np.where(mask, weights - target, 0.0)
        if (
            step % _FIT_CHECKED == 0
            and ((gap**2).sum(-1, keepdims=True) / count).max() <= FIT_ERROR
        ):
            break
        slope = 2.0 / count * weights * (gap - (weights * gap).sum(-1, keepdims=True))
        pulled = shared_mean(actor.pull(parameters, features, -slope), parameters.shape)
        step_taken, moments = direction("adam", pulled, moments)
        parameters = parameters + rate * step_taken
    return parameters, moments


def shared_mean(gradient: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Gradients [..., P] averaged over the axes that share one vector of parameters."""
    for axis, (own, found) in enumerate(zip(shape, gradient.shape, strict=True)):
        if own == 1 and found > 1:
            gradient = gradient.mean(axis, keepdims=True)
    return gradient
