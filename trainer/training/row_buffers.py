"""Buffers that keep only the rows of sources that exist, for the shared local learner.

Tasks of a vector environment have different numbers of sources, and ``local_rows`` pads them. A
padded row has nothing to decide and earns nothing; left in, it would fill most of a batch, and
advantages would be normalised over it.
"""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples

from mixgym.envs.levels.batch_local import present_rows

_ARRAYS = ("observations", "actions", "values", "log_probs", "advantages", "returns")
_DRAWS = 100


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


class _PresentSamples(ReplayBuffer):
    """Samples only rows that exist; all rows are stored, so that n-step returns find the next."""

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Transitions of rows that exist; see ``ReplayBuffer``.

        Raises:
            RuntimeError: if there are hardly any.
        """
        strata = int(self.action_space.shape[0])  # type: ignore[index]
        found: list[ReplayBufferSamples] = []
        for _ in range(_DRAWS):
            drawn = super().sample(2 * batch_size, env)
            kept = np.flatnonzero(present_rows(drawn.observations.numpy(), strata))
            found.append(_rows_of(drawn, torch.from_numpy(kept)))
            if sum(len(part.actions) for part in found) >= batch_size:
                return _rows_of(_joined(found), torch.arange(batch_size))
        raise RuntimeError(f"no {batch_size} rows that exist in {_DRAWS} draws of twice as many")


class PresentReplay(_PresentSamples):
    """A replay of all rows, of which only those that exist are learned from."""


class PresentNStepReplay(_PresentSamples, NStepReplayBuffer):
    """The same for n-step returns."""


def _rows_of(samples: ReplayBufferSamples, index: torch.Tensor) -> ReplayBufferSamples:
    return samples._replace(**{name: part[index] for name, part in _known(samples)})


def _joined(parts: list[ReplayBufferSamples]) -> ReplayBufferSamples:
    whole = {name: torch.cat([getattr(p, name) for p in parts]) for name, _ in _known(parts[0])}
    return parts[0]._replace(**whole)


def _known(samples: ReplayBufferSamples) -> list[tuple[str, torch.Tensor]]:
    """Its parts by name; one-step returns have no discounts."""
    return [(name, part) for name, part in samples._asdict().items() if part is not None]


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
        kind = _REPLAYS.get(type(replay)) if replay is not None else None
        if replay is None or kind is None or replay.optimize_memory_usage:
            return
        algorithm.replay_buffer_class = kind
        algorithm.replay_buffer = kind(
            algorithm.buffer_size,
            replay.observation_space,
            replay.action_space,
            replay.device,
            n_envs=replay.n_envs,
            handle_timeout_termination=replay.handle_timeout_termination,
            **algorithm.replay_buffer_kwargs,
        )


_REPLAYS: dict[type[ReplayBuffer], type[ReplayBuffer]] = {
    ReplayBuffer: PresentReplay,
    NStepReplayBuffer: PresentNStepReplay,
}
