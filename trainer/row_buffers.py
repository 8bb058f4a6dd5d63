"""Buffers that keep only the rows of sources that exist, for the shared local learner.

Tasks of a vector environment have different numbers of sources, and ``local_rows`` pads them. A
padded row has nothing to decide and earns nothing; left in, it would fill most of a batch, and
advantages would be normalised over it.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from mixgym.envs.local_rows import present_rows

_ARRAYS = ("observations", "actions", "values", "log_probs", "advantages", "returns")


class PresentRollout(RolloutBuffer):
    """A rollout of all rows, of which only those that exist are learned from."""

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Mini-batches over the rows that exist; see ``RolloutBuffer``."""
        assert self.full
        if not self.generator_ready:
            flat = {name: self.swap_and_flatten(getattr(self, name)) for name in _ARRAYS}
            strata = int(self.action_space.shape[0])  # type: ignore[index]
            kept = present_rows(flat["observations"], strata)
            for name, values in flat.items():
                setattr(self, name, values[kept])
            self.generator_ready = True
        count = len(self.observations)
        indices = np.random.permutation(count)  # noqa: NPY002  # the stream that it replaces
        size = count if batch_size is None else batch_size
        for start in range(0, count, size):
            yield self._get_samples(indices[start : start + size])


class PresentReplay(ReplayBuffer):
    """A replay of single rows; of every step, those that exist are added."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: Any = "auto",
        n_envs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=1, **kwargs)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add a step of all rows; see ``ReplayBuffer``."""
        kept = np.flatnonzero(present_rows(obs, action.shape[-1]))[: self.buffer_size]
        where = (self.pos + np.arange(len(kept))) % self.buffer_size
        self.observations[where, 0] = obs[kept]
        self.next_observations[where, 0] = next_obs[kept]
        self.actions[where, 0] = action[kept]
        self.rewards[where, 0] = reward[kept]
        self.dones[where, 0] = done[kept]
        if self.handle_timeout_termination:
            cut = [bool(infos[i].get("TimeLimit.truncated", False)) for i in kept]
            self.timeouts[where, 0] = cut
        self.full = self.full or self.pos + len(kept) >= self.buffer_size
        self.pos = (self.pos + len(kept)) % self.buffer_size


def learn_from_present_rows(algorithm: BaseAlgorithm) -> None:
    """Give an algorithm on ``local_rows`` the buffer that leaves padded rows out.

    Algorithms with a buffer of another kind, such as those with an LSTM, keep it: to them, padded
    rows are states in which nothing happens.
    """
    if isinstance(algorithm, OnPolicyAlgorithm):
        old = algorithm.rollout_buffer
        if type(old) is not RolloutBuffer:
            return
        algorithm.rollout_buffer_class = PresentRollout
        algorithm.rollout_buffer = PresentRollout(
            old.buffer_size,
            old.observation_space,
            old.action_space,
            old.device,
            old.gae_lambda,
            old.gamma,
            old.n_envs,
        )
    elif isinstance(algorithm, OffPolicyAlgorithm):
        replay = algorithm.replay_buffer
        if type(replay) is not ReplayBuffer or replay.optimize_memory_usage:
            return
        algorithm.replay_buffer_class = PresentReplay
        algorithm.replay_buffer = PresentReplay(
            algorithm.buffer_size,
            replay.observation_space,
            replay.action_space,
            replay.device,
            handle_timeout_termination=replay.handle_timeout_termination,
        )
