"""How rewards move an actor: each rule gives the ascent direction in its logits.

Pure functions over any leading axes. With p = softmax(z) and a reward R_k for each of K units:

- ``enumerated`` (Wang et al. 2025, eq. 6): sum_k R_k grad log p_k = R - (sum R) p. Every unit
  counts alike, whatever its weight, so this is the gradient of a cross-entropy with the soft label
  R / sum R, and that is where it comes to rest.
- ``expected``: the policy gradient of E_p[R] proper, p (R - <p, R>). It comes to rest on the best
  unit alone.
- ``sampled`` (REINFORCE, Williams 1992): R_a (e_a - p) for one drawn unit a; its mean is
  ``expected``.
- ``sampled_importance_weighted``: the same over p_a; its mean is ``enumerated``.
- ``closed_form``: log(R / sum R) - z, so that a step of size n on a table of logits is
  z <- (1 - n) z + n log(R / sum R). The baseline that every actor has to beat.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray

LEAST_WEIGHT = 0.01  # that importance weighting divides by: a rare unit is no reason to explode
_LEAST_SHARE = 1e-3  # of R / sum R in the closed form, over 1 / K: rewards may be 0 or negative

Gradient = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class UpdateRule:
    """A way of moving logits.

    Attributes:
        summary: one line.
        gradient: ``(weights p, rewards R, uniform draws) -> direction``, float64[..., K] each but
            the draws, float64[...] in [0, 1). Masked units have p = 0 and R = 0.
        samples: whether it uses the draws.
    """

    summary: str
    gradient: Gradient
    samples: bool = False


def softmax(logits: FloatArray, mask: BoolArray) -> FloatArray:
    """float64[..., K]; masked units get 0, and rows without any unit are 0."""
    high = np.max(logits, axis=-1, keepdims=True, where=mask, initial=-np.inf)
    powers = np.where(mask, np.exp(np.where(mask, logits - high, 0.0)), 0.0)
    return powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)


def enumerated(weights: FloatArray, rewards: FloatArray, _: FloatArray) -> FloatArray:
    """Every unit alike: R - (sum R) p.

    >>> enumerated(np.array([0.5, 0.3, 0.2]), np.array([2.0, 1.0, 1.0]), np.zeros(())).round(3)
    array([ 0. , -0.2,  0.2])
    """
    return rewards - rewards.sum(-1, keepdims=True) * weights


def expected(weights: FloatArray, rewards: FloatArray, _: FloatArray) -> FloatArray:
    """Every unit by its weight: p (R - <p, R>)."""
    mean = (weights * rewards).sum(-1, keepdims=True)
    return weights * (rewards - mean)


def sampled(weights: FloatArray, rewards: FloatArray, draws: FloatArray) -> FloatArray:
    """R_a (e_a - p) for a unit a ~ p."""
    chosen = one_hot_draw(weights, draws)
    return (chosen * rewards).sum(-1, keepdims=True) * (chosen - weights)


def sampled_importance_weighted(
    weights: FloatArray, rewards: FloatArray, draws: FloatArray
) -> FloatArray:
    """R_a / p_a (e_a - p) for a unit a ~ p; p_a counts as at least :data:`LEAST_WEIGHT`."""
    chosen = one_hot_draw(weights, draws)
    paid = (chosen * rewards / np.maximum(weights, LEAST_WEIGHT)).sum(-1, keepdims=True)
    return paid * (chosen - weights)


def closed_form(weights: FloatArray, rewards: FloatArray, _: FloatArray) -> FloatArray:
    """The gap log(R / sum R) - log p, less its mean; a reward of 0 or less counts as tiny."""
    mask = weights > 0
    count = np.maximum(mask.sum(-1, keepdims=True), 1)
    paid = np.where(mask, np.maximum(rewards, 0.0), 0.0)
    share = paid / np.maximum(paid.sum(-1, keepdims=True), 1e-300)
    share = np.where(mask, np.maximum(share, _LEAST_SHARE / count), 1.0)
    gap = np.where(mask, np.log(share) - np.log(np.where(mask, weights, 1.0)), 0.0)
    return np.where(mask, gap - gap.sum(-1, keepdims=True) / count, 0.0)


def one_hot_draw(weights: FloatArray, draws: FloatArray) -> FloatArray:
    """float64[..., K], 1 at the unit whose stretch of the cumulated weights holds the draw."""
    edges = np.cumsum(weights, -1)
    below = edges - weights
    point = np.asarray(draws)[..., None] * edges[..., -1:]
    inside = (point >= below) & (point < edges)
    return inside.astype(np.float64)


UPDATES = {
    "enumerated": UpdateRule("every unit with its reward: the paper's update", enumerated),
    "sampled": UpdateRule("REINFORCE with one drawn unit", sampled, samples=True),
    "sampled_importance_weighted": UpdateRule(
        "one drawn unit, its reward over its weight: enumerated in the mean",
        sampled_importance_weighted,
        samples=True,
    ),
    "expected": UpdateRule("the policy gradient of the expected reward", expected),
    "closed_form": UpdateRule("track R / sum R directly", closed_form),
}
