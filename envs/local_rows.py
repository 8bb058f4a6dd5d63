"""Every source of every environment as a row: one shared learner for all local levels."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.levels import Predictor
from mixgym.envs.observations import BOUND, local_observation, local_size, shape_of
from mixgym.envs.one_object import OneObjectVecEnv


class LocalRows(OneObjectVecEnv):
    """A vector environment with K_max lock-stepped rows per joint environment.

    Row ``i * K_max + k`` is source k of environment i: it sees that source's rows of the joint
    observation, sets its strata, and is paid by its own part of the reward. Rows of absent sources
    are zero, and so is their pay.

    Args:
        joint: a vector environment with logits and the flat observation.
        top: decides over sources; None means the prior. It gets the joint observations.
    """

    def __init__(self, joint: VecEnv, top: Predictor | None = None) -> None:
        self.joint = joint
        self.top = top
        observation, action = joint.observation_space, joint.action_space
        if not isinstance(observation, spaces.Box) or not isinstance(action, spaces.Box):
            raise ValueError("local_rows needs an environment with the flat observation")
        self.shape = shape_of(observation.shape[0], action.shape[0])
        sources, strata = self.shape
        super().__init__(
            joint.num_envs * sources,
            spaces.Box(-BOUND, BOUND, (local_size(strata),), np.float32),
            spaces.Box(-1.0, 1.0, (strata,), np.float32),
        )
        self._flat: NDArray[np.float32] = np.zeros((0,), np.float32)
        self._state: Any = None
        self._start = np.ones(joint.num_envs, np.bool_)

    def reset(self) -> NDArray[np.float32]:
        """Start all episodes."""
        self._flat = np.asarray(self.joint.reset())
        self._state, self._start = None, np.ones(self.joint.num_envs, np.bool_)
        return self._rows(self._flat)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Complete the rows' actions with the top level's and send them on."""
        count, sources = self.joint.num_envs, self.shape[0]
        whole = np.zeros((count, sources * (1 + self.shape[1])), np.float32)
        if self.top is not None:
            action, self._state = self.top.predict(self._flat, self._state, self._start, True)
            whole[:, :sources] = np.asarray(action)[:, :sources]
        whole[:, sources:] = actions.reshape(count, -1)
        self.joint.step_async(whole)

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Rows, each with its own reward; all rows of an environment end together."""
        flat, rewards, dones, infos = self.joint.step_wait()
        self._flat, self._start = np.asarray(flat), dones
        sources = self.shape[0]
        paid = np.stack(
            [self._paid(info, reward) for info, reward in zip(infos, rewards, strict=True)]
        )
        rows: list[dict[str, Any]] = []
        for info in infos:
            last = info.get("terminal_observation")
            own = None if last is None else local_observation(np.asarray(last), self.shape)
            for k in range(sources):
                rows.append({} if own is None else {"terminal_observation": own[k]})
        return self._rows(self._flat), paid.reshape(-1), np.repeat(dones, sources), rows

    def _paid(self, info: dict[str, Any], reward: float) -> NDArray[np.float32]:
        """float32[K_max], each source's part; everybody pays where training diverged."""
        if "decision" not in info:
            return np.full(self.shape[0], reward, np.float32)
        decision = info["decision"]
        local = decision["reward"]["local"]
        paid = np.zeros(self.shape[0], np.float32)
        for k, name in enumerate(decision["mixture"]):
            paid[k] = local.get(name, 0.0)
        return paid

    def _rows(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = local_observation(flat, self.shape)
        return rows.reshape(self.num_envs, -1)

    def close(self) -> None:
        """Close the joint environment."""
        self.joint.close()


def local_rows(joint: VecEnv, top: Predictor | None = None) -> LocalRows:
    """One row per source of every environment (see :class:`LocalRows`)."""
    return LocalRows(joint, top)
