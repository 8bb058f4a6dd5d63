"""Action kinds: how a raw action of an agent stands for a mixture."""

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
    split_action,
    weights_from_logits,
    weights_moved,
)


class ActionKind(Protocol):
    """How an action, padded to K_max sources and G_max strata, stands for a mixture."""

    def space(self, shape: tuple[int, int]) -> gym.Space[Any]:
        """The space of actions padded to (K_max, G_max)."""
        ...

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """The mixture of an action."""
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

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        top, strata = split_action(np.clip(action, -1.0, 1.0), frame)
        return self._apply(top, strata, frame)

    def _apply(self, top: FloatArray, strata: FloatArray, frame: MixtureFrame) -> Mixture:
        sources, groups = frame.mask.shape
        weights = weights_from_logits(
            top,
            frame.prior.sources,
            np.asarray(frame.mask.any(-1)),
            logit_scale(sources, self.reach),
            self.floor,
        )
        inner = weights_from_logits(
            strata, frame.prior.strata, frame.mask, logit_scale(groups, self.reach), self.floor
        )
        return Mixture(weights, inner)

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

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        top, strata = split_action(np.clip(action, 0.0, 1.0), frame)
        if top.sum() <= 0:
            top = frame.prior.sources
        empty = strata.sum(-1, keepdims=True) <= 0
        strata = np.where(empty, frame.prior.strata, strata)
        asked = Mixture(top / top.sum(), normalise(strata, np.ones_like(frame.mask)))
        return asked.restricted(frame.mask)

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

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        top, inner = split_action(np.clip(action, -1.0, 1.0), frame)
        return self.moved(self.step * top, self.step * inner, frame)

    def moved(self, top: FloatArray, inner: FloatArray, frame: MixtureFrame) -> Mixture:
        """The current mixture after changes of logits float64[K] and float64[K, G]."""
        now = frame.current or frame.prior
        moved = [
            weights_moved(weights, shift, floored(prior, mask, self.floor), scale, self.floor)
            for weights, shift, prior, mask, scale in zip(
                (now.sources, now.strata), (top, inner), *self._levels(frame), strict=True
            )
        ]
        return Mixture(moved[0], moved[1])

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> FloatArray:
        """See :class:`ActionKind`; what is further than a step away is approached."""
        top, inner = (np.clip(gap / self.step, -1.0, 1.0) for gap in self.gaps(mixture, frame))
        return join_action(top, inner, frame)

    def gaps(self, mixture: Mixture, frame: MixtureFrame) -> tuple[FloatArray, FloatArray]:
        """How far the logits of a mixture are from the current ones: float64[K], float64[K, G]."""
        now = frame.current or frame.prior
        found = []
        for old, new, prior, mask, _ in zip(
            (now.sources, now.strata),
            (mixture.sources, mixture.strata),
            *self._levels(frame),
            strict=True,
        ):
            base = floored(prior, mask, self.floor)
            gap = log_ratios(new, base, self.floor) - log_ratios(old, base, self.floor)
            found.append(centred(gap, base > 0))
        return found[0], found[1]

    def _levels(self, frame: MixtureFrame) -> tuple[list[FloatArray], list[BoolArray], list[float]]:
        """Prior, mask and scale of both levels."""
        sources, groups = frame.mask.shape
        return (
            [frame.prior.sources, frame.prior.strata],
            [np.asarray(frame.mask.any(-1)), frame.mask],
            [logit_scale(sources, self.reach), logit_scale(groups, self.reach)],
        )


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

    def decode(self, action: FloatArray, frame: MixtureFrame) -> Mixture:
        """See :class:`ActionKind`."""
        index = nudge_index(action, frame.shape)
        shift = np.zeros(1 + action_size(frame.shape))
        shift[index] = self.step
        return self._delta.moved(*split_action(shift[1:], frame), frame)

    def encode(self, mixture: Mixture, frame: MixtureFrame) -> NDArray[Any]:
        """See :class:`ActionKind`: the entry that lacks most, unless all are within half a step."""
        gaps = join_action(*self._delta.gaps(mixture, frame), frame)
        best = int(gaps.argmax())
        return np.array(1 + best if 2 * gaps[best] > self.step else 0, np.int64)

    @property
    def _delta(self) -> Delta:
        return Delta(self.floor, self.reach, self.step)


def nudge_index(action: Any, shape: tuple[int, int]) -> int:
    """The index that a nudge is.

    Raises:
        MixgymError: if it is not a whole number in the space.
    """
    values = np.asarray(action, np.float64).reshape(-1)
    size = 1 + action_size(shape)
    if values.size != 1 or not 0 <= values[0] < size or values[0] != int(values[0]):
        raise MixgymError(f"action {action}: a nudge is one whole number from 0 to {size - 1}")
    return int(values[0])


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
