"""Two learners in one rollout: a manager over the sources and one shared learner of the strata.

The environment is stepped once and both learn from it: the manager sees the joint observation and
the joint reward, summed over its period; the shared one sees every source as a row and is paid by
that source's own progress. Works for every pair of algorithms that learn from a rollout buffer or a
replay buffer (see :mod:`mixgym.trainer.training.stepped_learner`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.levels.batch_global import ends_span, level_shape
from mixgym.envs.levels.batch_local import row_infos, row_rewards, rows_of
from mixgym.trainer.training.stepped_learner import SteppedLearner, Steps


class Together:
    """One environment, one rollout, two learners.

    Args:
        env: a joint vector environment with logits and the flat observation.
        top: learns to set the sources; None: the prior.
        inner: learns to set the strata, a row per source; None: the prior.
        period: decisions that an action of ``top`` holds for.
        discount: of rewards inside that span.
        team: share of the joint reward in every source's pay.
    """

    def __init__(
        self,
        env: VecEnv,
        top: SteppedLearner | None,
        inner: SteppedLearner | None,
        *,
        period: int = 1,
        discount: float = 1.0,
        team: float = 0.0,
    ) -> None:
        self.env = env
        self.top = top
        self.inner = inner
        self.shape = level_shape(env)
        self.period = period
        self.discount = discount
        self.team = team

    def learners(self) -> list[tuple[str, SteppedLearner]]:
        """The learners by level."""
        both = (("global", self.top), ("local", self.inner))
        return [(level, learner) for level, learner in both if learner is not None]

    @property
    def begun(self) -> bool:
        """Whether the learners have seen anything: they were made, or continue."""
        return all(learner.algorithm._last_obs is not None for _, learner in self.learners())

    def reset(self) -> None:
        """Start all episodes."""
        flat = np.asarray(self.env.reset())
        seen = ((self.top, flat), (self.inner, rows_of(flat, self.shape)))
        for learner, observation in seen:
            if learner is not None:
                learner.algorithm._last_obs = observation
                learner.algorithm._last_episode_starts = np.ones(len(observation), np.bool_)

    def learn(self, wanted: Callable[[], bool], between: Callable[[], None]) -> None:
        """Train both.

        Args:
            wanted: whether another span is wanted; asked before each.
            between: called before each span, while nothing is under way.
        """
        while wanted():
            between()
            self._span()

    def _span(self) -> None:
        sources, strata = self.shape
        count = self.env.num_envs
        top = np.zeros((count, sources), np.float32) if self.top is None else self.top.act()
        total = np.zeros(count, np.float64)
        for index in range(self.period):
            whole = np.zeros((count, sources * (1 + strata)), np.float32)
            whole[:, :sources] = top
            if self.inner is not None:
                whole[:, sources:] = self.inner.act().reshape(count, -1)
            seen, rewards, dones, infos = self.env.step(whole)
            flat = np.asarray(seen)
            if self.inner is not None:
                self.inner.feed(self._rows(flat, rewards, dones, infos))
            total += self.discount**index * rewards
            if ends_span(dones, index, self.period):
                break
        if self.top is not None:
            self.top.feed((flat, total.astype(np.float32), dones, infos))

    def _rows(
        self,
        flat: NDArray[np.float32],
        rewards: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> Steps:
        return (
            rows_of(flat, self.shape),
            row_rewards(rewards, infos, self.shape[0], self.team),
            np.repeat(dones, self.shape[0]),
            row_infos(infos, self.shape),
        )
