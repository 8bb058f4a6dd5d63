"""Actions of all environments at once: as :mod:`mixgym.envs.spaces.actions`, batched."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import MixgymError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.actions import nudge_index
from mixgym.envs.spaces.mixture import (
    action_size,
    normalise,
    weights_around,
    weights_moved,
)

Pair = tuple[FloatArray, FloatArray]
"""A value per source float64[n, K], and one per stratum float64[n, K, G]."""


@dataclass(frozen=True)
class BatchFrame:
    """What the actions of n environments are read against.

    Attributes:
        prior: weights of sources, and of strata in each.
        base: the same with the floor mixed in; 0 in absent cells.
        scale: logit scales, float64[n, 1] and [n, 1, 1].
        current: the mixtures that were set last.
        present: bool[n, K, G], cells that exist.
    """

    prior: Pair
    base: Pair
    scale: Pair
    current: Pair
    present: BoolArray


def decode_batch(
    actions: NDArray[np.generic], options: EnvironmentOptions, frame: BatchFrame
) -> Pair:
    """The mixtures of actions [n, entries], or of nudges [n].

    Raises:
        MixgymError: for a NaN, whose place is named, or a nudge that is out of range.
    """
    shape = (frame.present.shape[1], frame.present.shape[2])
    if options.action == "nudge":
        moves = _one_hot(actions, shape) * options.step
        return _moved(_split(moves, shape), options, frame)
    top, inner = _split(_clipped(actions), shape)
    if options.action == "delta":
        return _moved((options.step * top, options.step * inner), options, frame)
    if options.action == "weights":
        return _weights(top, inner, frame)
    return (
        weights_around(top, frame.base[0], frame.scale[0], options.floor),
        weights_around(inner, frame.base[1], frame.scale[1], options.floor),
    )


def _clipped(actions: NDArray[np.generic]) -> FloatArray:
    values = actions.astype(np.float64)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise MixgymError(
            f"action[{row}, {column}] is NaN: check the agent's policy for divergence"
        )
    return np.minimum(np.maximum(values, -1.0), 1.0)


def _split(values: FloatArray, shape: tuple[int, int]) -> Pair:
    most, groups = shape
    return values[:, :most], values[:, most:].reshape(-1, most, groups)


def _one_hot(actions: NDArray[np.generic], shape: tuple[int, int]) -> FloatArray:
    """float64[n, entries], 1 at the entry that is nudged; all 0 to stay."""
    indices = [nudge_index(action, shape) for action in np.asarray(actions).reshape(-1)]
    whole = np.zeros((len(indices), 1 + action_size(shape)))
    whole[np.arange(len(indices)), indices] = 1.0
    return whole[:, 1:]


def _moved(shift: Pair, options: EnvironmentOptions, frame: BatchFrame) -> Pair:
    top, inner = (
        weights_moved(now, move, base, scale, options.floor)
        for now, move, base, scale in zip(
            frame.current, shift, frame.base, frame.scale, strict=True
        )
    )
    return top, inner


def _weights(top: FloatArray, inner: FloatArray, frame: BatchFrame) -> Pair:
    sources = np.asarray(frame.present.any(-1))
    top = np.where(sources, np.clip(top, 0.0, 1.0), 0.0)
    top = np.where(top.sum(-1, keepdims=True) > 0, top, frame.prior[0])
    inner = np.where(frame.present, np.clip(inner, 0.0, 1.0), 0.0)
    inner = np.where(inner.sum(-1, keepdims=True) > 0, inner, frame.prior[1])
    return normalise(top, sources), normalise(inner, frame.present)
