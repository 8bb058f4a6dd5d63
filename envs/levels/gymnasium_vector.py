"""The two levels as batches for Gymnasium: ``gym.make_vec("mixgym/Global-v0", num_envs=...)``.

They move the arrays of the joint batch, as :mod:`mixgym.envs.levels.single` moves the single joint
environment, and give the same for the same seeds.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.autoreset import Moved, merged
from mixgym.envs.curves.gymnasium_vector import CurvesVectorEnv
from mixgym.envs.levels.predictor import Action, Predictor
from mixgym.envs.levels.single import check_level, check_period, find_source
from mixgym.envs.spaces.observations import local_observation, local_space


class _LevelVectorEnv(CurvesVectorEnv):
    """What both levels share: the other level's decisions.

    Args:
        num_envs: environments.
        other: decides over the rest of the joint action; None means the prior.
        options: as of :class:`CurvesVectorEnv`.
    """

    def __init__(self, num_envs: int, other: Predictor | None, **options: Any) -> None:
        self.other = other
        self._memory: Any = None  # of the other
        self._first = np.ones(num_envs, np.bool_)  # whose episode the other has not seen yet
        super().__init__(num_envs, **options)
        check_level(self.core.options)

    def _restart(self, which: BoolArray) -> dict[str, tuple[FloatArray, BoolArray]]:
        self._first = self._first | which
        return super()._restart(which)

    def _others(self) -> Action:
        """The joint actions that the other level wants; zero (the prior) if there is nobody."""
        shape = self.core.action_space.shape or ()
        if self.other is None:
            return np.zeros((self.num_envs, *shape), np.float32)
        seen = self.core.observe()
        action, self._memory = self.other.predict(seen, self._memory, self._first, True)
        self._first = np.zeros(self.num_envs, np.bool_)
        return np.array(action, np.float32)


class GlobalVectorEnv(_LevelVectorEnv):
    """A batch of ``mixgym/Global-v0``; what the arguments mean is said there.

    With a period, every environment stops where its own episode ends.
    """

    def __init__(
        self,
        num_envs: int = 1,
        local: Predictor | None = None,
        period: int = 1,
        discount: float = 1.0,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **options: Any,
    ) -> None:
        check_period(period)
        self.period, self.discount = period, discount
        super().__init__(
            num_envs, local, render_mode=render_mode, autoreset_mode=autoreset_mode, **options
        )

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        action = gym.spaces.Box(-1.0, 1.0, (self.core.shape[0],), np.float32)
        return self.core.observation_space, action

    def _move(self, actions: NDArray[Any], moving: BoolArray) -> Moved:
        """Hold the weights of sources for a period, or until each episode ends."""
        total, ended = np.zeros(self.num_envs), ~moving
        last: list[Any] = [None] * self.num_envs
        spans: list[list[Any]] = [[] for _ in last]
        observation = self._observation
        for index in range(self.period):
            rewards, dones = self.core.step(self._completed(actions))
            observation = merged(~ended, self._look(), observation)
            total += np.where(ended, 0.0, self.discount**index * rewards)
            for i in np.flatnonzero(~ended).tolist():
                last[i] = self.core.record(i)
                spans[i].append(last[i])
            ended = ended | dones
            if ended.all():
                break
        infos: dict[str, Sequence[Any]] = {"decision": last}
        if self.period > 1:
            infos["decisions"] = spans
        return Moved(observation, total, ended & moving, infos)

    def _completed(self, actions: NDArray[Any]) -> Action:
        whole = self._others()
        whole[:, : self.core.shape[0]] = actions
        return whole


class LocalVectorEnv(_LevelVectorEnv):
    """A batch of ``mixgym/Local-v0``; what the arguments mean is said there."""

    def __init__(
        self,
        num_envs: int = 1,
        source: str | int = 0,
        other: Predictor | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **options: Any,
    ) -> None:
        super().__init__(
            num_envs, other, render_mode=render_mode, autoreset_mode=autoreset_mode, **options
        )
        self.source, self._index = find_source(source, self.core.common_names)

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        strata = self.core.shape[1]
        action = gym.spaces.Box(-1.0, 1.0, (strata,), np.float32)
        return local_space(strata), action

    def _look(self) -> Any:
        rows = local_observation(self.core.observe(), self.core.shape)
        return rows[:, self._index].copy()

    def _move(self, actions: NDArray[Any], moving: BoolArray) -> Moved:
        sources, strata = self.core.shape
        start = sources + self._index * strata
        whole = self._others()
        whole[:, start : start + strata] = actions
        _, dones = self.core.step(whole)
        own = np.nan_to_num(self.core.last.local[:, self._index])
        return Moved(self._look(), own, dones, {"decision": self.core.records()})
