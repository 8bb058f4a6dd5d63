"""Action kinds: how raw actions of an agent stand for mixtures.

Everything is decoded over any leading axes: a batch of environments is a pair of arrays, and the
mixture of a single one a batch of one.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import MixgymError
from mixgym.envs.spaces.mixture import (
    Mixture,
    MixtureFrame,
    action_size,
    centred,
    floored,
    join_action,
    log_ratios,
    logit_scale,
    logits_from_weights,
    normalise,
    restricted,
    split_action,
    weights_around,
    weights_moved,
)

Levels = tuple[FloatArray, FloatArray]
"""A value per source float64[..., K], and one per stratum float64[..., K, G]."""


@dataclass(frozen=True)
class Frames:
    """What the actions of many environments are read against; any leading axes may come first.

    Attributes:
        prior: weights of sources, and of strata in each.
        base: the same with the floor mixed in; 0 in cells that may not get a weight.
        scale: logit scales of the levels, float64[..., 1] and [..., 1, 1].
        current: the mixtures that were set last.
        mask: bool[..., K, G], the cells that may get a weight.
        shape: (K_max, G_max), the padded size of actions.
        exists: bool[..., K, G], the cells that are no padding; None: all.
    """

    prior: Levels
    base: Levels
    scale: tuple[FloatArray | float, FloatArray | float]
    current: Levels
    mask: BoolArray
    shape: tuple[int, int]
    exists: BoolArray | None = None

    @classmethod
    def of_one(cls, frame: MixtureFrame, floor: float, reach: float) -> "Frames":
        """The frame of a single environment, without leading axes."""
        sources, groups = frame.mask.shape
        prior, current = frame.prior, frame.current or frame.prior
        return cls(
            prior=(prior.sources, prior.strata),
            base=(
                floored(prior.sources, np.asarray(frame.mask.any(-1)), floor),
                floored(prior.strata, frame.mask, floor),
            ),
            scale=(logit_scale(sources, reach), logit_scale(groups, reach)),
            current=(current.sources, current.strata),
            mask=frame.mask,
            shape=frame.shape,
        )


class ActionKind(Protocol):
    """How actions, padded to K_max sources and G_max strata, stand for mixtures."""

    def space(self, shape: tuple[int, int]) -> gym.Space[Any]:
        """The space of one environment's actions, padded to (K_max, G_max)."""
        ...

    def weights(self, actions: NDArray[Any], frames: Frames) -> Levels:
        """The weights that actions [..., entries] stand for."""
        ...

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """The mixture of a single action."""
        ...

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> NDArray[Any]:
        """An action that stands for the mixture, or for the nearest one in reach."""
        ...


@dataclass(frozen=True)
class Logits:
    """Action kind ``logits``: shifts of the prior's logits, in [-1, 1]; the default for agents.

    The global level takes the first K entries, the strata of source k the G entries at
    ``K_max + k * G_max``. The scales follow from the numbers of sources and strata.
    """

    floor: float = 0.02
    reach: float = 0.9

    def space(self, shape: tuple[int, int]) -> gym.Space[Any]:
        """``Box(-1, 1, (K_max + K_max * G_max,))``."""
        return _box(-1.0, shape)

    def weights(self, actions: NDArray[Any], frames: Frames) -> Levels:
        """See :class:`ActionKind`."""
        top, inner = split_action(_clipped(actions, -1.0), frames)
        return (
            weights_around(top, frames.base[0], frames.scale[0], self.floor),
            weights_around(inner, frames.base[1], frames.scale[1], self.floor),
        )

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        frames = Frames.of_one(frame, self.floor, self.reach)
        return Mixture(*self.weights(np.asarray(action).reshape(-1), frames))

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> FloatArray:
        """See :class:`ActionKind`; weights outside the reach are clipped to it."""
        sources, groups = frame.mask.shape
        top = logits_from_weights(
            mixture.sources,
            frame.prior.sources,
            np.asarray(frame.mask.any(-1)),
            logit_scale(sources, self.reach),
            self.floor,
        )
        inner = logits_from_weights(
            mixture.strata,
            frame.prior.strata,
            frame.mask,
            logit_scale(groups, self.reach),
            self.floor,
        )
        return join_action(top, inner, frame)


@dataclass(frozen=True)
class Weights:
    """Action kind ``weights``: the weights themselves, in [0, 1], normalised per level.

    For rules, which know the mixture that they want: every mixture can be said exactly, weights of
    0 included. A level that is all zero means the prior.
    """

    def space(self, shape: tuple[int, int]) -> gym.Space[Any]:
        """``Box(0, 1, (K_max + K_max * G_max,))``."""
        return _box(0.0, shape)

    def weights(self, actions: NDArray[Any], frames: Frames) -> Levels:
        """See :class:`ActionKind`."""
        top, inner = split_action(_clipped(actions, 0.0), frames)
        if frames.exists is not None:
            top = np.where(frames.exists.any(-1), top, 0.0)
            inner = np.where(frames.exists, inner, 0.0)
        top = np.where(top.sum(-1, keepdims=True) > 0, top, frames.prior[0])
        inner = np.where(inner.sum(-1, keepdims=True) > 0, inner, frames.prior[1])
        anywhere = np.ones(inner.shape, np.bool_)
        asked = top / top.sum(-1, keepdims=True), normalise(inner, anywhere)
        return restricted(*asked, frames.mask)

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        frames = Frames.of_one(frame, 0.0, 0.5)  # neither floor nor reach bounds weights
        return Mixture(*self.weights(np.asarray(action).reshape(-1), frames))

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> FloatArray:
        """See :class:`ActionKind`."""
        return join_action(mixture.sources, mixture.strata, frame)


@dataclass(frozen=True)
class Delta:
    """Action kind ``delta``: changes of the current mixture's logits, in [-1, 1].

    An action of 1 raises a logit by ``step``; zero keeps the mixture. Logits stay in the reach of
    :class:`Logits`. Slow by design: a mixture cannot be torn about, and takes decisions to move.
    """

    floor: float = 0.02
    reach: float = 0.9
    step: float = 0.5

    def space(self, shape: tuple[int, int]) -> gym.Space[Any]:
        """``Box(-1, 1, (K_max + K_max * G_max,))``."""
        return _box(-1.0, shape)

    def weights(self, actions: NDArray[Any], frames: Frames) -> Levels:
        """See :class:`ActionKind`."""
        top, inner = split_action(_clipped(actions, -1.0), frames)
        return self.moved((self.step * top, self.step * inner), frames)

    def moved(self, shift: Levels, frames: Frames) -> Levels:
        """The current weights after changes of their logits."""
        top, inner = (
            weights_moved(now, move, base, scale, self.floor)
            for now, move, base, scale in zip(
                frames.current, shift, frames.base, frames.scale, strict=True
            )
        )
        return top, inner

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        frames = Frames.of_one(frame, self.floor, self.reach)
        return Mixture(*self.weights(np.asarray(action).reshape(-1), frames))

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> FloatArray:
        """See :class:`ActionKind`; what is further than a step away is approached."""
        top, inner = (np.clip(gap / self.step, -1.0, 1.0) for gap in self.gaps(mixture, frame))
        return join_action(top, inner, frame)

    def gaps(self, mixture: Mixture, frame: MixtureFrame) -> Levels:
        """How far the logits of a mixture are from the current ones."""
        frames = Frames.of_one(frame, self.floor, self.reach)
        top, inner = (
            centred(log_ratios(new, base, self.floor) - log_ratios(old, base, self.floor), base > 0)
            for old, new, base in zip(
                frames.current, (mixture.sources, mixture.strata), frames.base, strict=True
            )
        )
        return top, inner


@dataclass(frozen=True)
class Nudge:
    """Action kind ``nudge``: one entry up by ``step``, the others down in proportion.

    0 keeps the mixture; 1 + k raises source k; 1 + K_max + k * G_max + g raises stratum g of source
    k. Absent and used-up entries keep it as well. For value-based algorithms.
    """

    floor: float = 0.02
    reach: float = 0.9
    step: float = 0.5

    def space(self, shape: tuple[int, int]) -> gym.Space[Any]:
        """``Discrete(1 + K_max + K_max * G_max)``."""
        return gym.spaces.Discrete(1 + action_size(shape))

    def weights(self, actions: NDArray[Any], frames: Frames) -> Levels:
        """See :class:`ActionKind`; actions [...] have no axis of entries."""
        index = _nudge_indices(actions, frames)
        entries = np.arange(1, 1 + action_size(frames.shape))
        shift = np.where(index[..., None] == entries, self.step, 0.0)
        return self._delta.moved(split_action(shift, frames), frames)

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        frames = Frames.of_one(frame, self.floor, self.reach)
        return Mixture(*self.weights(action, frames))

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> NDArray[Any]:
        """See :class:`ActionKind`: the entry that lacks most, unless all are within half a step."""
        gaps = join_action(*self._delta.gaps(mixture, frame), frame)
        best = int(gaps.argmax())
        return np.array(1 + best if 2 * gaps[best] > self.step else 0, np.int64)

    @property
    def _delta(self) -> Delta:
        return Delta(self.floor, self.reach, self.step)


def _nudge_indices(actions: NDArray[Any], frames: Frames) -> NDArray[np.int64]:
    """int64[...], the indices that nudges are, one for each frame.

    Raises:
        MixgymError: if one is not a whole number in the space.
    """
    most = action_size(frames.shape)
    values, lead = np.asarray(actions, np.float64), frames.mask.shape[:-2]
    # written so that NaN is bad too
    bad = ~((values >= 0) & (values <= most) & (values == np.floor(values)))
    if bad.any() or values.size != int(np.prod(lead)):
        wrong = values[bad][0] if bad.any() else actions
        raise MixgymError(f"action {wrong}: a nudge is one whole number from 0 to {most}")
    return values.reshape(lead).astype(np.int64)


def _clipped(actions: NDArray[Any], low: float) -> NDArray[Any]:
    """Actions in [``low``, 1]; NaN stays. Much faster than ``numpy.clip`` of few numbers."""
    return np.minimum(np.maximum(actions, low), 1.0)


def _box(low: float, shape: tuple[int, int]) -> gym.spaces.Box:
    return gym.spaces.Box(low, 1.0, (action_size(shape),), np.float32)


ACTIONS = ("logits", "delta", "nudge", "weights")


def make_action_kind(name: str, *, floor: float, reach: float, step: float = 0.5) -> ActionKind:
    """The action kind of that name (:data:`ACTIONS`)."""
    if name == "logits":
        return Logits(floor=floor, reach=reach)
    if name == "weights":
        return Weights()
    if name == "delta":
        return Delta(floor=floor, reach=reach, step=step)
    if name == "nudge":
        return Nudge(floor=floor, reach=reach, step=step)
    raise MixgymError(f"unknown action kind {name!r}: choose {', '.join(ACTIONS)}")
