"""The global level of a vector environment: one row per environment, at its own pace.

The learner of this level sees the flat joint observation and sets the weights of sources; somebody
else, or the prior, sets the strata. It may decide more rarely than the environment moves: with a
period of n, one of its decisions holds for n decisions of the environment, which makes a semi-MDP.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.curves.vector import OneObjectVecEnv
from mixgym.envs.errors import MixgymError
from mixgym.envs.levels.predictor import Predictor
from mixgym.envs.spaces.observations import shape_of


class GlobalLevel(OneObjectVecEnv):
    """A vector environment whose actions are the logits of sources.

    The reward of a decision is the sum of the rewards in its span, the i-th of them times
    ``discount ** i``; a learner that discounts at all has to discount its own decisions by
    ``discount ** period``. The last span of an episode may be shorter; it ends in a terminal state.

    Args:
        joint: a vector environment with logits and the flat observation.
        local: decides over strata; None means the prior. It gets the joint observations.
        period: decisions of ``joint`` in a span.
        discount: of rewards inside a span, per decision of ``joint``.
    """

    def __init__(
        self,
        joint: VecEnv,
        local: Predictor | None = None,
        *,
        period: int = 1,
        discount: float = 1.0,
    ) -> None:
        self.joint = joint
        self.local = local
        self.period = period
        self.discount = discount
        self.shape = level_shape(joint)
        action = level_actions(joint, self.shape[0])
        super().__init__(joint.num_envs, joint.observation_space, action)
        self._flat: NDArray[np.float32] = np.zeros((0,), np.float32)
        self._state: Any = None
        self._start = np.ones(joint.num_envs, np.bool_)
        self._top: NDArray[np.float32] = np.zeros((0,), np.float32)

    def reset(self) -> NDArray[np.float32]:
        """Start all episodes."""
        self._flat = np.asarray(self.joint.reset())
        self._state, self._start = None, np.ones(self.joint.num_envs, np.bool_)
        return self._flat

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Remember the weights of sources for the span."""
        self._top = np.asarray(actions, np.float32)

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Move to the end of the span, or of the episodes.

        Raises:
            MixgymError: if some episodes end inside a span and others go on.
        """
        total = np.zeros(self.num_envs, np.float64)
        for index in range(self.period):
            flat, rewards, dones, infos = self.joint.step(self._whole())
            self._flat, self._start = np.asarray(flat), dones
            total += self.discount**index * rewards
            if ends_span(dones, index, self.period):
                break
        return self._flat, total.astype(np.float32), dones, infos

    def _whole(self) -> NDArray[np.float32]:
        """The joint actions: this level's, and the other's."""
        whole = np.zeros((self.num_envs, self.shape[0] * (1 + self.shape[1])), np.float32)
        if self.local is not None:
            action, self._state = self.local.predict(self._flat, self._state, self._start, True)
            whole[:] = action
        whole[:, : self.shape[0]] = self._top
        return whole

    def memory(self) -> list[NDArray[Any]]:
        """Arrays from which :meth:`set_memory` continues: what is seen, and the other's memory."""
        return [self._flat, self._start, *(self._state or ())]

    def set_memory(self, memory: list[NDArray[Any]]) -> None:
        """Continue from :meth:`memory`."""
        self._flat, self._start, *rest = memory
        self._state = tuple(rest) or None

    def seed(self, seed: int | None = None) -> Any:
        """Seed the joint environment."""
        return self.joint.seed(seed)

    def close(self) -> None:
        """Close the joint environment."""
        self.joint.close()


def level_shape(joint: VecEnv) -> tuple[int, int]:
    """(K_max, G_max) of a joint vector environment.

    Raises:
        ValueError: if it has not the flat observation and logits.
    """
    observation, action = joint.observation_space, joint.action_space
    if not isinstance(observation, spaces.Box) or not isinstance(action, spaces.Box):
        raise ValueError("a level needs an environment with the flat observation and logits")
    return shape_of(observation.shape[0], action.shape[0])


def level_actions(joint: VecEnv, entries: int) -> spaces.Box:
    """The space of a level's entries in the joint action."""
    space = joint.action_space
    assert isinstance(space, spaces.Box)
    return spaces.Box(float(space.low[0]), float(space.high[0]), (entries,), np.float32)


def ends_span(dones: NDArray[np.bool_], index: int, period: int) -> bool:
    """Whether a span is over after its decision ``index``.

    Raises:
        MixgymError: if some episodes end inside a span and others go on.
    """
    if index + 1 == period or dones.all():
        return True
    if dones.any():
        raise MixgymError(
            f"{int(dones.sum())} of {len(dones)} episodes ended inside a span of {period} "
            "decisions: side by side, episodes have to be of one length; set train.period=1"
        )
    return False
