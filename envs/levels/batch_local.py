"""Every source of every environment as a row: one shared learner for all local levels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.curves.vector import OneObjectVecEnv
from mixgym.envs.levels.batch_global import level_actions, level_shape
from mixgym.envs.levels.predictor import Predictor
from mixgym.envs.spaces.observations import local_observation, local_space


class LocalRows(OneObjectVecEnv):
    """A vector environment with K_max lock-stepped rows per joint environment.

    Row ``i * K_max + k`` is source k of environment i: it sees that source's rows of the joint
    observation, sets its strata, and is paid by its own part of the reward. Rows of absent sources
    are zero, and so is their pay. The first row of an environment carries its ``episode`` record.

    Args:
        joint: a vector environment with logits and the flat observation.
        top: decides over sources; None means the prior. It gets the joint observations.
        team: share of the joint reward in every source's pay, 0 to 1.
    """

    def __init__(self, joint: VecEnv, top: Predictor | None = None, *, team: float = 0.0) -> None:
        self.joint = joint
        self.top = top
        self.team = team
        self.shape = level_shape(joint)
        sources, strata = self.shape
        super().__init__(
            joint.num_envs * sources,
            local_space(strata),
            level_actions(joint, strata),
        )
        self._flat: NDArray[np.float32] = np.zeros((0,), np.float32)
        self._state: Any = None
        self._start = np.ones(joint.num_envs, np.bool_)

    def reset(self) -> NDArray[np.float32]:
        """Start all episodes."""
        self._flat = np.asarray(self.joint.reset())
        self._state, self._start = None, np.ones(self.joint.num_envs, np.bool_)
        return rows_of(self._flat, self.shape)

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
        rows = rows_of(self._flat, self.shape)
        paid = row_rewards(rewards, infos, self.shape[0], self.team)
        return rows, paid, np.repeat(dones, self.shape[0]), row_infos(infos, self.shape)

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


def local_rows(joint: VecEnv, top: Predictor | None = None, *, team: float = 0.0) -> LocalRows:
    """One row per source of every environment (see :class:`LocalRows`)."""
    return LocalRows(joint, top, team=team)


def rows_of(flat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Flat joint observations [n, size] as rows [n * K_max, local size]."""
    rows = local_observation(flat, shape)
    return rows.reshape(-1, rows.shape[-1])


def present_rows(rows: NDArray[np.float32], strata: int) -> NDArray[np.bool_]:
    """Which rows [n, local size] may set a stratum at all: bool[n], from their masks."""
    return np.asarray(rows[..., -strata:].max(-1) > 0.5)


def row_rewards(
    rewards: NDArray[Any], infos: list[dict[str, Any]], sources: int, team: float = 0.0
) -> NDArray[np.float32]:
    """What every row is paid, float32[n * K_max].

    A source gets its own part of the reward, mixed with the joint one by ``team``; everybody pays
    where training diverged.
    """
    paid = np.stack(
        [_own(info, reward, sources, team) for info, reward in zip(infos, rewards, strict=True)]
    )
    return paid.reshape(-1)


def _own(info: dict[str, Any], reward: float, sources: int, team: float) -> NDArray[np.float32]:
    if "decision" not in info:
        return np.full(sources, reward, np.float32)
    decision = info["decision"]
    local = decision["reward"]["local"]
    paid = np.zeros(sources, np.float32)
    for k, name in enumerate(decision["mixture"]):
        paid[k] = (1.0 - team) * local.get(name, 0.0) + team * float(reward)
    return paid


def row_infos(infos: list[dict[str, Any]], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows' own infos: last observations, and the episode record on the first row of each."""
    rows: list[dict[str, Any]] = []
    for info in infos:
        own: list[dict[str, Any]] = [{} for _ in range(shape[0])]
        last = info.get("terminal_observation")
        if last is not None:
            seen = local_observation(np.asarray(last), shape)
            for k, row in enumerate(own):
                row["terminal_observation"] = seen[k]
                row["TimeLimit.truncated"] = bool(info.get("TimeLimit.truncated", False))
        if "episode" in info:
            own[0]["episode"] = info["episode"]
        rows += own
    return rows
