"""Merges on the sphere, as coefficients of a linear combination.

Slerp, its weighted kin, Karcher means and model stock move only inside the span of the models, so
their coefficients follow from the K x K matrix of inner products. One pass over the tensors gives
that matrix, a second one forms the combination: nothing here ever sees a tensor.

Sources: Shoemake (1985) for slerp, Buss and Fillmore (2001) for spherical means, Jang et al. (2024)
for model stock.
"""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_PARALLEL_COSINE = 0.9995
"""Slerp falls back to the straight line beyond this cosine, as is customary."""

_SMALLEST_SINE = 1e-8


def cosine(gram: Matrix, i: int, j: int) -> float:
    """Return the cosine between vectors i and j, 1 if one of them is zero."""
    norms = float(np.sqrt(gram[i, i] * gram[j, j]))
    return float(np.clip(gram[i, j] / norms, -1.0, 1.0)) if norms > 0 else 1.0


def _arc(angle: float, t: float) -> Vector:
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)


def slerp(gram: Matrix, t: float) -> Vector:
    """Return float64[2]: the coefficients of slerp at ``t`` from vector 0 to vector 1.

    >>> slerp(np.eye(2), 0.5).round(4).tolist()
    [0.7071, 0.7071]
    """
    c = cosine(gram, 0, 1)
    if abs(c) > _PARALLEL_COSINE:
        return np.array([1 - t, t])
    return _arc(float(np.arccos(c)), t)


def nuslerp(gram: Matrix, weights: Vector) -> Vector:
    """Return float64[2]: slerp at the share of weight 1, straight only where it is undefined."""
    t = float(weights[1] / weights.sum())
    c = cosine(gram, 0, 1)
    angle = float(np.arccos(c))
    if abs(np.sin(angle)) < _SMALLEST_SINE:
        return np.array([1 - t, t])
    return _arc(angle, t)


def _tangent_mean(units: Matrix, weights: Vector, at: Vector) -> Vector:
    """Return float64[K]: the weighted mean, in the tangent space at ``at``, of the unit vectors.

    Args:
        units: Gram matrix of the unit vectors, float64[K, K].
        weights: float64[K] with sum 1.
        at: Coefficients of a unit vector.
    """
    cosines = np.clip(units @ at, -1.0, 1.0)
    angles = np.arccos(cosines)
    sines = np.sin(angles)
    stretch = np.where(sines > _SMALLEST_SINE, angles / np.maximum(sines, _SMALLEST_SINE), 1.0)
    pull = weights * stretch
    return pull - float(pull @ cosines) * at


def _length(units: Matrix, coefficients: Vector) -> float:
    return float(np.sqrt(max(0.0, float(coefficients @ units @ coefficients))))


def _step(units: Matrix, at: Vector, tangent: Vector) -> Vector:
    """Follow a tangent vector along the sphere, and renormalise."""
    angle = _length(units, tangent)
    if angle < np.finfo(np.float64).tiny:
        return at
    moved = np.cos(angle) * at + np.sin(angle) / angle * tangent
    return moved / _length(units, moved)


def spherical_mean(gram: Matrix, weights: Vector, steps: int, tol: float) -> Vector:
    """Return float64[K]: coefficients of the spherical mean, scaled to the mean norm.

    No step from the normalised straight mean is ``multislerp``; many are the Karcher mean.

    Args:
        gram: Inner products of the vectors, float64[K, K].
        weights: float64[K], non-negative, not all zero.
        steps: Iterations at most.
        tol: Stop when the next step is shorter than this, in radians.
    """
    weights = weights / weights.sum()
    norms = np.sqrt(np.diag(gram))
    live = norms > 0
    if not live.any():
        return weights
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=live)
    units = gram * np.outer(inverse, inverse)
    shares = np.where(live, weights, 0.0)
    length = _length(units, shares)
    if length < _SMALLEST_SINE:  # opposite vectors: no mean direction exists
        return weights
    at = shares / length
    for _ in range(steps):
        tangent = _tangent_mean(units, shares / shares.sum(), at)
        if _length(units, tangent) < tol:
            break
        at = _step(units, at, tangent)
    result: Vector = at * inverse * float(weights @ norms)
    return _settle(result, gram)


def _settle(coefficients: Vector, gram: Matrix) -> Vector:
    """Make the coefficients sum to exactly 1 where all vectors are one and the same."""
    if np.all(gram == gram[0, 0]):
        return coefficients / coefficients.sum()
    return coefficients


def model_stock(gram: Matrix) -> Vector:
    """Return float64[K]: coefficients of the deltas in base + t * (mean of the deltas).

    t = K c / (1 + (K - 1) c) with c the mean cosine between pairs. Where the deltas oppose each
    other (c < 0) there is nothing in common to keep, and t is 0.

    Args:
        gram: Inner products of the deltas, float64[K, K].
    """
    models = len(gram)
    pairs = [cosine(gram, i, j) for i in range(models) for j in range(i)]
    c = max(0.0, float(np.mean(pairs)))
    t = models * c / (1 + (models - 1) * c)
    return np.full(models, t / models)
