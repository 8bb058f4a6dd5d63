"""Second stage of a staged merge: how the surviving deltas of the models become one.

A combiner gets the thinned deltas of a chunk and returns the merged delta. It knows nothing of
how they were thinned. The selection of whole values stands in ``selection.py``.

Sources: task arithmetic (Ilharco et al., 2023), sign election of TIES (Yadav et al., 2023), SCE
(Wan et al., 2024).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.methods.numerics import Array
from mixgym.trainer.merging.methods.sparsify import StageSettings
from mixgym.trainer.merging.methods.sums import SquareSum


class Combiner(Protocol):
    """Merges thinned deltas, after ``passes`` looks at all of them."""

    passes: int

    def observe(self, deltas: list[Array], scales: list[float]) -> None:
        """Take statistics of one chunk."""

    def finish(self) -> None:
        """End the pass over all chunks."""

    def combine(self, deltas: list[Array], scales: list[float]) -> Array:
        """Return the merged delta of a chunk; may change ``deltas``.

        Args:
            deltas: One array[n] per model.
            scales: Factor of each model's deltas that is still to be applied.
        """


class Sum:
    """lambda * sum of w * delta, divided by the sum of w if normalised."""

    passes = 0

    def __init__(self, settings: StageSettings) -> None:
        self._weights = settings.per_model["weight"]
        self._factor = float(settings.shared["lambda"])
        if settings.shared["normalize"]:
            self._factor /= sum(self._weights)

    def observe(self, deltas: list[Array], scales: list[float]) -> None:
        """Nothing to measure."""

    def finish(self) -> None:
        """Nothing to end."""

    def combine(self, deltas: list[Array], scales: list[float]) -> Array:
        """Add up."""
        factors = [w * s * self._factor for w, s in zip(self._weights, scales, strict=True)]
        total = times(deltas[0], factors[0])
        for delta, factor in zip(deltas[1:], factors[1:], strict=True):
            total += times(delta, factor)
        return total


class Consensus(Sum):
    """The sum of those weighted deltas that have the sign of their sum; + where that is zero.

    Normalised, it is divided by the sum of the weights that took part, or by 1 if none did.
    """

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        self._factor = float(settings.shared["lambda"])
        self._normalize = bool(settings.shared["normalize"])

    def combine(self, deltas: list[Array], scales: list[float]) -> Array:
        """Elect a sign for each element, and add up what agrees."""
        pulls = [
            times(delta, w * s) for delta, w, s in zip(deltas, self._weights, scales, strict=True)
        ]
        merged, sign = _agreeing_sum(
            pulls, _elected_sign(pulls), self._weights if self._normalize else None
        )
        merged *= sign
        return times(merged, self._factor)


class Energy(Sum):
    """Consensus with each model weighted by its mean squared delta over the tensor.

    The sign is elected by the unweighted sum.
    """

    passes = 1

    def __init__(self, settings: StageSettings) -> None:
        self._factor = float(settings.shared["lambda"])
        self._energy = SquareSum(settings.models)
        self._shares: NDArray[np.float64] = np.full(settings.models, 1.0 / settings.models)

    def observe(self, deltas: list[Array], scales: list[float]) -> None:
        """Sum squares."""
        for k, (delta, scale) in enumerate(zip(deltas, scales, strict=True)):
            self._energy.add_squares(k, times(delta, scale))

    def finish(self) -> None:
        """Turn energies into shares; equal ones if all deltas are zero."""
        total = float(self._energy.squares.sum())
        if total > 0:
            self._shares = self._energy.squares / total

    def combine(self, deltas: list[Array], scales: list[float]) -> Array:
        """Elect a sign for each element, and average what agrees by energy."""
        scaled = [times(delta, scale) for delta, scale in zip(deltas, scales, strict=True)]
        sign = _elected_sign(scaled)
        shares = [float(share) for share in self._shares]
        pulls = [times(delta, share) for delta, share in zip(scaled, shares, strict=True)]
        merged, sign = _agreeing_sum(pulls, sign, shares)
        merged *= sign
        return times(merged, self._factor)


def times(values: Array, factor: float) -> Array:
    """Multiply in place by a factor, unless it is 1; return ``values``."""
    if factor != 1.0:
        values *= values.dtype.type(factor)
    return values


def _elected_sign(pulls: list[Array]) -> Array:
    """Return 1 where the sum of the pulls is at least zero, else -1, in working precision."""
    total = pulls[0].copy()
    for pull in pulls[1:]:
        total += pull
    sign = np.greater_equal(total, 0).astype(total.dtype)
    sign *= 2
    sign -= 1
    return sign


def _agreeing_sum(
    pulls: list[Array], sign: Array, weights: list[float] | None
) -> tuple[Array, Array]:
    """Return the sum of sign * pull over pulls of that sign, and the sign.

    With ``weights`` it is divided by the sum of the weights of the pulls that agree.
    """
    merged = np.zeros_like(sign)
    tally = _Tally(sign, weights) if weights is not None else None
    for k, pull in enumerate(pulls):
        pull *= sign
        if tally:
            tally.add(k, pull > 0)
        merged += np.maximum(pull, 0, out=pull)
    if tally:
        merged /= tally.divisor()
    return merged, sign


class _Tally:
    """Sum of the weights that agree at each element; counts when all weights are equal."""

    def __init__(self, like: Array, weights: list[float]) -> None:
        self._weights = weights
        self._work = like.dtype
        self._equal = len(set(weights)) == 1 and len(weights) < 256
        self._sum = np.zeros(like.shape, np.uint8 if self._equal else like.dtype)

    def add(self, index: int, agrees: Array) -> None:
        if self._equal:
            self._sum += agrees
        else:
            self._sum += agrees * self._work.type(self._weights[index])

    def divisor(self) -> Array:
        self._sum += self._sum == 0
        values = self._sum.astype(self._work)
        return times(values, self._weights[0]) if self._equal else values


COMBINE: dict[str, Callable[[StageSettings], Combiner]] = {
    "sum": Sum,
    "mean": Sum,
    "consensus": Consensus,
    "energy": Energy,
}
