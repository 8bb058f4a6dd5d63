"""What an agent's actions tell of its health: pure functions over recorded arrays."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.spaces.mixture import logit_scale, normalise
from mixgym.envs.spaces.observations import layout

Shape = tuple[int, int]
_Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BOUND = 0.999  # of actions in [-1, 1]: nearer than this to the end is at it


def _masks_of(observations: NDArray[np.float32], shape: Shape) -> tuple[BoolArray, BoolArray]:
    """Which entries have an effect: bool[n, K] of sources, bool[n, K, G] of strata."""
    part, _ = layout(shape)["masks"]
    masks = observations[:, part] > 0.5
    return masks[:, : shape[0]], masks[:, shape[0] :].reshape(-1, *shape)


def shares(
    actions: NDArray[np.generic],
    observations: NDArray[np.float32],
    shape: Shape,
    kind: str,
    reach: float,
) -> list[FloatArray]:
    """What actions stand for, a distribution per level: float64[n, K] and float64[n * K', G].

    Logits, and changes of logits, are read from a uniform prior and without the floor; weights are
    normalised; a nudge is a distribution that has everything on itself. Rows that may not get a
    weight are left out.

    Args:
        actions: [n, K + K G], or integers [n] of nudges.
        observations: [n, size], flat, with the masks.
        shape: (K, G).
        kind: of actions.
        reach: of logits.
    """
    if kind == "nudge":
        return [np.eye(1 + shape[0] * (1 + shape[1]))[actions.ravel().astype(np.intp)]]
    top_mask, inner_mask = _masks_of(observations, shape)
    top = actions[:, : shape[0]].astype(np.float64)
    inner = actions[:, shape[0] :].astype(np.float64).reshape(-1, *shape)
    rows = inner_mask.any(-1)
    parts = ((top, top_mask), (inner[rows], inner_mask[rows]))
    if kind == "weights":
        return [normalise(np.where(mask, np.clip(part, 0, 1), 0.0), mask) for part, mask in parts]
    return [_soft(part, mask, reach) for part, mask in parts]


def _soft(logits: FloatArray, mask: BoolArray, reach: float) -> FloatArray:
    counts = mask.sum(-1)
    scales = np.array([logit_scale(n, reach) for n in range(mask.shape[-1] + 1)])
    powers = np.where(mask, np.exp(scales[counts][..., None] * np.clip(logits, -1, 1)), 0.0)
    return powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)


def moved(one: list[FloatArray], other: list[FloatArray]) -> float:
    """Mean share of weight that lies elsewhere, at the level where it is more.

    >>> moved([np.array([[0.5, 0.5]])], [np.array([[0.75, 0.25]])])
    0.25
    """
    return max(
        float(0.5 * np.abs(a - b).sum(-1).mean()) for a, b in zip(one, other, strict=True) if len(a)
    )


def shuffled(
    observations: NDArray[np.float32], shape: Shape, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Observations in which every row is somebody else's.

    Progress, rows of sources and rows of strata are permuted over all observations and places that
    exist, each on its own; the masks stay, so that the same entries have an effect.
    """

    def permute(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows[rng.permutation(len(rows))]

    return _with_rows(observations, shape, permute)


def constant(observations: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Observations in which every row is the mean row; the masks stay."""

    def mean(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.broadcast_to(rows.mean(0), rows.shape)

    return _with_rows(observations, shape, mean)


def _with_rows(
    observations: NDArray[np.float32], shape: Shape, change: _Change
) -> NDArray[np.float32]:
    whole = observations.copy()
    top_mask, inner_mask = _masks_of(observations, shape)
    everywhere = np.ones(len(observations), np.bool_)
    for name, mask in (("progress", everywhere), ("sources", top_mask), ("strata", inner_mask)):
        part, size = layout(shape)[name]
        rows = whole[:, part].reshape(-1, *size)
        if mask.any():
            rows[mask] = change(rows[mask])
        whole[:, part] = rows.reshape(len(whole), -1)
    return whole


def at_bound(
    actions: NDArray[np.generic], observations: NDArray[np.float32], shape: Shape
) -> tuple[float, float]:
    """Shares of entries with an effect that are at an end of [-1, 1]: of sources, of strata.

    A level that nobody decides on is at no bound.
    """
    top_mask, inner_mask = _masks_of(observations, shape)
    top, inner = actions[:, : shape[0]][top_mask], actions[:, shape[0] :].reshape(-1, *shape)
    return _share_at_bound(top), _share_at_bound(inner[inner_mask])


def _share_at_bound(entries: NDArray[np.generic]) -> float:
    return float((np.abs(entries.astype(np.float64)) >= BOUND).mean()) if entries.size else 0.0


def returns(rewards: FloatArray, discount: float) -> FloatArray:
    """What is still earned from every decision on, float64[T, ...].

    >>> returns(np.array([1.0, 2.0, 4.0]), 0.5).tolist()
    [3.0, 4.0, 4.0]
    """
    total = np.zeros_like(rewards)
    ahead = np.zeros(rewards.shape[1:])
    for t in range(len(rewards) - 1, -1, -1):
        ahead = rewards[t] + discount * ahead
        total[t] = ahead
    return total


def explained(values: FloatArray, found: FloatArray) -> float:
    """Share of the variance of returns that values explain; a constant explains 0.

    >>> explained(np.array([0.0, 1.0]), np.array([5.0, 6.0]))
    1.0
    """
    spread = float(np.var(found))
    return 1.0 - float(np.var(found - values)) / spread if spread > 0 else float("nan")


def spread(local: FloatArray) -> float:
    """How much rewards differ between sources: mean deviation over mean size, in one decision.

    Args:
        local: float64[n, K], NaN where a source is absent or unmeasured.

    Returns:
        0 if all sources of a decision are always paid alike; NaN if there never are two.
    """
    several = np.isfinite(local).sum(-1) > 1
    if not several.any():
        return float("nan")
    rows = local[several]
    size = np.nanmean(np.abs(rows))
    return float(np.nanmean(np.nanstd(rows, axis=-1)) / size) if size > 0 else 0.0
