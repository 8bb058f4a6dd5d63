"""Source weights p = softmax(log prior + lambda): their gradient in closed form, and their steps.

Pure functions on float64 arrays, and the optimiser of lambda. Nothing here knows a model: what
comes in are per-source losses. See Pan et al., "ScaleBiO" (arXiv 2406.19976).
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import MixgymError
from mixgym.envs.spaces.mixture import last_sum

BETAS = (0.9, 0.95)
TINY = 1e-12
_LARGEST_STEP = 0.5  # logits in an update, where a run has so few that one would decide
_CHECKED = 1e-6  # relative error at which the closed form and autograd disagree


def softmax_around(base: FloatArray, logits: FloatArray) -> FloatArray:
    """float64[..., K], softmax(log base + logits); exactly 0 where the base is.

    >>> softmax_around(np.array([0.5, 0.5, 0.0]), np.array([np.log(3.0), 0.0, 9.0]))
    array([0.75, 0.25, 0.  ])
    """
    shifted = np.where(base > 0, logits, -np.inf)
    raised = np.where(base > 0, base * np.exp(shifted - shifted.max(-1, keepdims=True)), 0.0)
    result: FloatArray = raised / last_sum(raised)[..., None]
    return result


def weight_gradient(weights: FloatArray, gap: FloatArray, present: BoolArray) -> FloatArray:
    """float64[..., K], gradient of sum_j p_j gap_j by lambda: J^T gap, J = diag(p) - p p^T.

    Over the sources that are present in the batch, whose weights are normalised among themselves;
    the others get exactly 0. The entries sum to 0.

    Args:
        weights: float64[..., K], p.
        gap: float64[..., K], alpha (l(w) - l(u)) per source; ignored where absent.
        present: bool[..., K].

    >>> weight_gradient(np.array([0.5, 0.5]), np.array([1.0, -1.0]), np.array([True, True]))
    array([ 0.5, -0.5])
    """
    # d p_i / d lambda_j = p_i (1[i = j] - p_j), so (J^T gap)_j = p_j (gap_j - sum_i p_i gap_i)
    p = np.where(present, weights, 0.0)
    p = p / np.maximum(last_sum(p)[..., None], TINY)
    values = np.where(present, gap, 0.0)
    result: FloatArray = p * (values - last_sum(p * values)[..., None])
    return result


def handed_out(update: str, progress: FloatArray | np.float64) -> FloatArray | np.float64:
    """Share of lambda's travel that a run may have used by ``progress`` in [0, 1].

    The steps of a normalised update do not shrink with the gaps, and when the model has learnt what
    tells sources apart, gaps are noise: so the steps shrink, from twice the mean to nothing.

    >>> float(handed_out("mirror", np.float64(0.5))), float(handed_out("gradient", np.float64(0.5)))
    (0.75, 0.5)
    """
    return progress if update == "gradient" else progress * (2.0 - progress)


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
    if error > _CHECKED:
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


class Logits:
    """Lambda and the state of its optimiser, of one run or of many.

    A step is sized in logits: no entry moves by more than ``size`` in :meth:`move`, whatever the
    gradient (``update="gradient"`` moves by ``size`` times the gradient instead, which ``clip``
    bounds). So the travel of a run is what the caller hands out.

    Args:
        value: float64[..., K], lambda at the start; 0 is the prior.
        update: see :class:`~mixgym.envs.bilevel.bilevel_options.BilevelOptions`.
        clip: largest entry of the gradient.
        decay: pull back to the prior.
        betas: of the running mean and square of the gradient; gradients shrink as weights do, so
            the square should remember no more than a good part of the run.

    Attributes:
        value: float64[..., K], lambda.
        travelled: float64[...], sum over all steps of the largest move of an entry, in logits.
    """

    def __init__(
        self,
        value: FloatArray,
        update: Literal["auto", "adam", "mirror", "gradient"] = "adam",
        clip: float | None = None,
        decay: float = 0.0,
        betas: tuple[float, float] = BETAS,
    ) -> None:
        self._betas = betas
        self.value = value
        self._update, self._clip, self._decay = update, clip, decay
        self.travelled = np.zeros(value.shape[:-1])
        self._steps = np.zeros(value.shape[:-1], np.int64)
        self._mean, self._square = np.zeros_like(value), np.zeros_like(value)

    def weights(self, base: FloatArray) -> FloatArray:
        """float64[..., K], p for a prior ``base``."""
        return softmax_around(base, self.value)

    def gradient(self, weights: FloatArray, gap: FloatArray, present: BoolArray) -> FloatArray:
        """float64[..., K], see :func:`weight_gradient`."""
        return weight_gradient(weights, gap, present)

    def move(self, gradient: FloatArray, weights: FloatArray, size: FloatArray | float) -> None:
        """One step against ``gradient``; ``size`` [...] in logits."""
        full = gradient + self._decay * self.value
        if self._clip is not None:
            full = np.clip(full, -self._clip, self._clip)
        if self._update != "gradient":
            size = np.minimum(size, _LARGEST_STEP)
        change = -np.asarray(size)[..., None] * self._direction(full, weights)
        self.value = self.value + change
        self.travelled = self.travelled + np.abs(change).max(-1)

    def _direction(self, gradient: FloatArray, weights: FloatArray) -> FloatArray:
        """float64[..., K], what a step of size 1 goes against: entries in [-1, 1].

        Adam takes m / sqrt(v) of the gradient h = J^T gap, entry by entry. Mirror descent on the
        simplex, p' ~ p exp(-size grad_p), is a step in logits along the gradient by p up to a
        constant: h_j / p_j = gap_j - sum_i p_i gap_i. It is divided by one running scale, the
        largest entry's, so that differences between sources keep their proportions.
        """
        if self._update == "gradient":
            return gradient
        first, second = self._betas
        self._steps = self._steps + 1
        if self._update == "mirror":
            gradient = np.where(weights > 0, gradient / np.maximum(weights, TINY), 0.0)
        squares = gradient**2
        if self._update == "mirror":
            squares = np.broadcast_to(squares.max(-1, keepdims=True), squares.shape)
        # running means from 0, so after t steps they lack a factor of 1 - beta^t
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * squares
        steps = self._steps[..., None]
        mean = self._mean / (1 - first**steps)
        scale = np.sqrt(self._square / (1 - second**steps))
        result: FloatArray = np.clip(mean / (scale + TINY), -1.0, 1.0)
        return result

    def clear(self, which: NDArray[np.intp]) -> None:
        """Start these runs (rows of the first axis) anew."""
        for name in ("value", "travelled", "_steps", "_mean", "_square"):
            fresh = getattr(self, name).copy()
            fresh[which] = 0
            setattr(self, name, fresh)

    def snapshot(self) -> dict[str, Any]:
        """Plain data from which :meth:`restore` continues exactly."""
        return {
            "value": self.value.tolist(),
            "travelled": self.travelled.tolist(),
            "steps": self._steps.tolist(),
            "mean": self._mean.tolist(),
            "square": self._square.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        self.value = np.array(state["value"], np.float64)
        self.travelled = np.array(state["travelled"], np.float64)
        self._steps = np.array(state["steps"], np.int64)
        self._mean = np.array(state["mean"], np.float64)
        self._square = np.array(state["square"], np.float64)
