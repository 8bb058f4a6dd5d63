"""The mixture: weights over sources, and over the strata inside each source.

The maps from raw actions to weights are pure functions over any leading dimensions, so that one
environment is a batch of one. Nothing here knows what the weights are used for.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import MixgymError


@dataclass(frozen=True)
class Mixture:
    """Validated weights.

    Attributes:
        sources: float64[K], sums to 1.
        strata: float64[K, G]; each row of a source with a weight sums to 1.

    Raises:
        MixgymError: if a weight is negative or not finite, a sum is not 1, or the shapes do not
            belong together.

    >>> Mixture.of([0.5, 0.5], [[1.0, 0.0], [0.5, 0.5]]).cells.tolist()
    [[0.5, 0.0], [0.25, 0.25]]
    """

    sources: FloatArray
    strata: FloatArray

    def __post_init__(self) -> None:
        if self.strata.ndim != 2 or self.sources.shape != self.strata.shape[:1]:
            raise MixgymError(
                f"mixture: sources [K] and strata [K, G] expected, got {self.sources.shape} and "
                f"{self.strata.shape}"
            )
        for name, weights in (("sources", self.sources), ("strata", self.strata)):
            if not np.isfinite(weights).all() or (weights < 0).any():
                raise MixgymError(f"mixture: {name} must be finite and not negative, got {weights}")
        if abs(self.sources.sum() - 1.0) > 1e-6:
            raise MixgymError(f"mixture: source weights must sum to 1, got {self.sources.sum()}")
        sums = self.strata.sum(-1)
        used = self.sources > 0
        if (np.abs(sums[used] - 1.0) > 1e-6).any():
            raise MixgymError(f"mixture: strata weights must sum to 1 per source, got {sums}")

    @classmethod
    def of(cls, sources: object, strata: object) -> "Mixture":
        """Build from anything that NumPy understands."""
        return cls(np.asarray(sources, np.float64), np.asarray(strata, np.float64))

    @property
    def cells(self) -> FloatArray:
        """float64[K, G], the weight of every (source, stratum)."""
        return self.sources[:, None] * self.strata

    def restricted(self, available: BoolArray) -> "Mixture":
        """The same mixture over the cells that still have rows.

        A source without an available stratum gets weight 0; what it had goes to the others in
        proportion. A source whose weighted strata are all used up keeps its weight and spreads it
        evenly over the strata that are left.

        Args:
            available: bool[K, G].

        Raises:
            MixgymError: if no source with a weight has rows left.
        """
        return Mixture(*restricted(self.sources, self.strata, available))


def normalise(weights: FloatArray, mask: BoolArray) -> FloatArray:
    """Divide by the sum over the last axis; all-zero rows become uniform over ``mask``.

    Rows whose mask is empty stay zero.
    """
    total = weights.sum(-1, keepdims=True)
    count = mask.sum(-1, keepdims=True)
    uniform = mask / np.maximum(count, 1)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), uniform)


def restricted(
    sources: FloatArray, strata: FloatArray, available: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """:meth:`Mixture.restricted` over any leading axes: float64[..., K] and float64[..., K, G].

    Args:
        sources: float64[..., K].
        strata: float64[..., K, G].
        available: bool[..., K, G].

    Raises:
        MixgymError: if no source with a weight has rows left.
    """
    strata = normalise(np.where(available, strata, 0.0), available)
    sources = np.where(available.any(-1), sources, 0.0)
    total = sources.sum(-1, keepdims=True)
    if (total <= 0).any():
        raise MixgymError(
            "every source with a weight is used up: raise max_epochs, "
            "or give a weight to a source that has rows left"
        )
    return sources / total, strata


def logit_scale(count: int, reach: float) -> float:
    """The scale s at which one of ``count`` weights can reach ``reach`` from a uniform prior.

    With actions in [-1, 1] the largest weight is 1 / (1 + (K - 1) e^(-2s)); solved for s.

    >>> round(logit_scale(4, 0.9), 2)
    1.65
    """
    if count < 2:
        return 0.0
    return max(0.0, 0.5 * float(np.log((count - 1) * reach / (1.0 - reach))))


def floored(prior: FloatArray, mask: BoolArray, floor: float) -> FloatArray:
    """The prior with ``floor`` of uniform mixed in, over the allowed entries only."""
    prior = normalise(np.where(mask, prior, 0.0), mask)
    uniform = normalise(mask.astype(np.float64), mask)
    return (1.0 - floor) * prior + floor * uniform


def weights_from_logits(
    action: FloatArray, prior: FloatArray, mask: BoolArray, scale: float, floor: float
) -> FloatArray:
    """P = (1 - e) softmax(s a + log q') + e q', with q' the floored prior.

    A zero action gives q'. Masked entries get weight 0 exactly.

    Args:
        action: float64[..., n] in [-1, 1].
        prior: float64[..., n].
        mask: bool[..., n], the allowed entries.
        scale: s, see :func:`logit_scale`.
        floor: e.

    Returns:
        float64[..., n]; rows with an empty mask are zero.
    """
    return weights_around(action, floored(prior, mask, floor), scale, floor)


def weights_around(
    action: FloatArray, base: FloatArray, scale: "float | FloatArray", floor: float
) -> FloatArray:
    """:func:`weights_from_logits` for a prior that is floored already.

    softmax(s a + log q') is q' e^(s a) over its sum; with |s a| of a few units no power overflows.
    """
    powers = scale * action
    np.exp(powers, out=powers)
    powers *= base
    total = last_sum(powers)
    powers *= ((1.0 - floor) / np.where(total > 0, total, 1.0))[..., None]
    powers += floor * base
    return powers


def last_sum(values: "NDArray[Any]") -> FloatArray:
    """Sum over a short last axis, one column after the other.

    Much faster than a reduction of a short axis, and the same bits whatever comes before it.
    """
    columns = values.shape[-1]
    if columns == 1 or values.dtype != np.float64:
        total = values[..., 0].astype(np.float64)
        rest = range(1, columns)
    else:
        total = values[..., 0] + values[..., 1]
        rest = range(2, columns)
    for column in rest:
        total += values[..., column]
    return total


def logits_from_weights(
    weights: FloatArray, prior: FloatArray, mask: BoolArray, scale: float, floor: float
) -> FloatArray:
    """The action whose weights are nearest to ``weights``: the inverse up to a shift, clipped.

    The shift puts the largest and the smallest logit at the same distance from 0, so that as much
    as possible stays inside [-1, 1].
    """
    if scale <= 0:
        return np.zeros_like(weights)
    base = floored(prior, mask, floor)
    return np.clip(centred(log_ratios(weights, base, floor), base > 0) / scale, -1.0, 1.0)


def log_ratios(weights: FloatArray, base: FloatArray, floor: float) -> FloatArray:
    """The logits z with weights = (1 - e) softmax(z + log q') + e q', up to a shift.

    Args:
        weights: float64[..., n].
        base: q', float64[..., n]; 0 in entries that are not allowed, whose logit is 0.
        floor: e. Weights at or below their floor are taken to be barely above it.
    """
    allowed = base > 0
    soft = np.maximum((weights - floor * base) / max(1.0 - floor, 1e-12), 1e-12)
    return np.where(allowed, np.log(soft) - np.log(np.where(allowed, base, 1.0)), 0.0)


def centred(logits: FloatArray, allowed: BoolArray) -> FloatArray:
    """Logits shifted so that the largest and the smallest allowed one are as far from 0.

    Others are 0. Unlike the mean, this middle stays where it is when both ends are cut off alike.
    """
    high = logits.max(-1, keepdims=True, initial=-np.inf, where=allowed)
    low = logits.min(-1, keepdims=True, initial=np.inf, where=allowed)
    some = allowed.any(-1, keepdims=True)
    middle = (np.where(some, high, 0.0) + np.where(some, low, 0.0)) / 2
    return np.where(allowed, logits - middle, 0.0)


def weights_moved(
    current: FloatArray,
    shift: FloatArray,
    base: FloatArray,
    scale: "float | FloatArray",
    floor: float,
) -> FloatArray:
    """The current weights with their logits shifted: z <- clip(z + shift - middle, -s, s).

    A zero shift leaves weights that are in reach as they are; a common shift of all entries does
    nothing; entries that are not allowed stay at 0.

    Args:
        current: float64[..., n], weights to start from.
        shift: float64[..., n], change of each logit.
        base: q', the floored prior, float64[..., n].
        scale: s, as far as logits may go, see :func:`logit_scale`.
        floor: e.
    """
    raw = log_ratios(current, base, floor) + shift
    logits = np.clip(centred(raw, base > 0), -scale, scale)
    return weights_around(logits, base, 1.0, floor)


@dataclass(frozen=True)
class MixtureFrame:
    """What actions are read against.

    Attributes:
        prior: the mixture that a zero action stands for.
        mask: bool[K, G], the cells that may get a weight.
        shape: (K_max, G_max), the padded size of actions.
        current: the mixture that was set last; None means the prior.
    """

    prior: Mixture
    mask: BoolArray
    shape: tuple[int, int]
    current: Mixture | None = None


class Padded(Protocol):
    """What actions are padded by: a :class:`MixtureFrame`, or a batch of them."""

    @property
    def mask(self) -> BoolArray:
        """bool[..., K, G], the cells that may get a weight."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(K_max, G_max), the padded size of actions."""
        ...


def split_action(action: FloatArray, frame: Padded) -> tuple[FloatArray, FloatArray]:
    """Cut padded actions [..., entries] into float64[..., K] and float64[..., K, G].

    Raises:
        MixgymError: if the length is wrong or an entry is NaN (the index is named).
    """
    most_sources, most_strata = frame.shape
    action = np.asarray(action, np.float64)
    size = action.shape[-1] if action.ndim else 1
    if size != action_size(frame.shape):
        raise MixgymError(
            f"action has {size} entries, {action_size(frame.shape)} expected "
            f"({most_sources} sources + {most_sources} x {most_strata} strata)"
        )
    if np.isnan(action).any():
        place = ", ".join(str(index) for index in np.argwhere(np.isnan(action))[0])
        raise MixgymError(f"action[{place}] is NaN: check the agent's policy for divergence")
    sources, groups = frame.mask.shape[-2:]
    strata = action[..., most_sources:].reshape(*action.shape[:-1], most_sources, most_strata)
    return action[..., :sources], strata[..., :sources, :groups]


def join_action(top: FloatArray, strata: FloatArray, frame: MixtureFrame) -> FloatArray:
    """The inverse of :func:`split_action`; padding is 0."""
    most_sources, most_strata = frame.shape
    sources, groups = strata.shape
    first = np.zeros(most_sources)
    first[:sources] = top
    second = np.zeros((most_sources, most_strata))
    second[:sources, :groups] = strata
    return np.concatenate([first, second.ravel()])


def action_size(shape: tuple[int, int]) -> int:
    """Entries of a joint action: K_max + K_max * G_max."""
    return shape[0] + shape[0] * shape[1]
