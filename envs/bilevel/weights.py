"""Source weights p = softmax(log prior + lambda): their gradient in closed form, and their steps.

Pure functions on float64 arrays, and the optimiser of lambda. Nothing here knows a model: what
comes in are per-source losses. See Pan et al., "ScaleBiO" (arXiv 2406.19976).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.errors import MixgymError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BETAS = (0.9, 0.999)
TINY = 1e-12
CHECKED = 1e-6  # relative error at which the closed form and autograd disagree


def softmax_around(base: FloatArray, logits: FloatArray) -> FloatArray:
    """float64[K], softmax(log base + logits); exactly 0 where the base is.

    >>> softmax_around(np.array([0.5, 0.5, 0.0]), np.array([np.log(3.0), 0.0, 9.0]))
    array([0.75, 0.25, 0.  ])
    """
    used = base > 0
    shifted = np.where(used, logits, -np.inf)
    raised = np.where(used, base * np.exp(shifted - shifted.max()), 0.0)
    result: FloatArray = raised / raised.sum()
    return result


def weight_gradient(weights: FloatArray, gap: FloatArray, present: BoolArray) -> FloatArray:
    """float64[K], gradient of sum_j p_j gap_j by lambda: J^T gap, with J = diag(p) - p p^T.

    Over the sources that are present in the batch, whose weights are normalised among themselves;
    the others get exactly 0. The entries sum to 0.

    Args:
        weights: float64[K], p.
        gap: float64[K], alpha (l(w) - l(u)) per source; ignored where absent.
        present: bool[K].

    >>> weight_gradient(np.array([0.5, 0.5]), np.array([1.0, -1.0]), np.array([True, True]))
    array([ 0.5, -0.5])
    """
    p = np.where(present, weights, 0.0)
    total = p.sum()
    if total <= 0:
        return np.zeros_like(weights)
    p = p / total
    values = np.where(present, gap, 0.0)
    result: FloatArray = p * (values - p @ values)
    return result


def check_gradient(
    logits: FloatArray, base: FloatArray, gap: FloatArray, present: BoolArray, found: FloatArray
) -> None:
    """Compare ``found`` with what autograd says of sum_j p_j gap_j.

    Raises:
        MixgymError: if they differ by more than rounding.
    """
    import torch

    used = torch.from_numpy(present & (base > 0))
    lam = torch.from_numpy(logits.copy()).requires_grad_()
    if not used.any():
        return
    scores = torch.from_numpy(np.log(np.where(base > 0, base, 1.0))) + lam
    p = torch.softmax(scores.masked_fill(~used, -torch.inf), 0)
    (p * torch.from_numpy(np.where(present, gap, 0.0))).sum().backward()
    assert lam.grad is not None
    wanted = lam.grad.numpy()
    scale = max(float(np.abs(wanted).max()), float(np.abs(gap[present]).max(initial=0.0)), TINY)
    error = float(np.abs(wanted - found).max()) / scale
    if error > CHECKED:
        raise MixgymError(
            f"bilevel.check: the closed form {found.tolist()} of the weights' gradient differs "
            f"from autograd's {wanted.tolist()}"
        )


def effective_sources(weights: FloatArray) -> float:
    """exp(entropy): how many sources the weights are spread over.

    >>> round(effective_sources(np.array([0.5, 0.5, 0.0])), 9)
    2.0
    """
    used = weights[weights > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


@dataclass
class Logits:
    """Lambda and the state of its optimiser.

    A step is sized in logits: no entry moves by more than ``size`` in :meth:`move`, whatever the
    gradient (``update="gradient"`` moves by ``size`` times the gradient instead, which ``clip``
    bounds). So the travel of a run is what the caller hands out.

    Attributes:
        value: float64[K], lambda; 0 is the prior.
        travelled: sum over all steps of the largest move of an entry, in logits.
    """

    value: FloatArray
    update: Literal["adam", "mirror", "gradient"] = "adam"
    clip: float | None = None
    decay: float = 0.0
    travelled: float = 0.0
    _steps: int = 0
    _mean: FloatArray = field(default_factory=lambda: np.zeros(0))
    _square: FloatArray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self._mean = np.zeros_like(self.value)
        self._square = np.zeros_like(self.value)

    def weights(self, base: FloatArray) -> FloatArray:
        """float64[K], p for a prior ``base``."""
        return softmax_around(base, self.value)

    def gradient(self, weights: FloatArray, gap: FloatArray, present: BoolArray) -> FloatArray:
        """float64[K], see :func:`weight_gradient`."""
        return weight_gradient(weights, gap, present)

    def move(self, gradient: FloatArray, weights: FloatArray, size: float) -> None:
        """One step against ``gradient``; ``size`` in logits."""
        full = gradient + self.decay * self.value
        if self.clip is not None:
            full = np.clip(full, -self.clip, self.clip)
        change = -size * self._direction(full, weights)
        self.value = self.value + change
        self.travelled += float(np.abs(change).max())

    def _direction(self, gradient: FloatArray, weights: FloatArray) -> FloatArray:
        if self.update == "gradient":
            return gradient
        first, second = BETAS
        self._steps += 1
        if self.update == "mirror":
            gradient = np.where(weights > 0, gradient / np.maximum(weights, TINY), 0.0)
        squares = gradient**2
        if self.update == "mirror":
            squares = np.full_like(gradient, squares.max())
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * squares
        mean = self._mean / (1 - first**self._steps)
        scale = np.sqrt(self._square / (1 - second**self._steps))
        result: FloatArray = np.clip(mean / (scale + TINY), -1.0, 1.0)
        return result

    def snapshot(self) -> dict[str, Any]:
        """Plain data from which :meth:`restore` continues exactly."""
        return {
            "value": self.value.tolist(),
            "travelled": self.travelled,
            "steps": self._steps,
            "mean": self._mean.tolist(),
            "square": self._square.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        self.value = np.array(state["value"], np.float64)
        self.travelled = float(state["travelled"])
        self._steps = int(state["steps"])
        self._mean = np.array(state["mean"], np.float64)
        self._square = np.array(state["square"], np.float64)
