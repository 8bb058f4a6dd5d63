"""What decisions of a batch of environments are paid, and the draws of reward ``arm``."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.noise import EpisodeNoise
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BILEVEL_GAIN
from mixgym.envs.rewards import Reward, RewardInput, as_reward, make_reward, penalised


class BatchRewards:
    """The reward of many environments.

    Args:
        options: which reward, which probes it reads, which penalties.
        count: environments.
        decisions: in an episode.
        most: K_max.
    """

    def __init__(self, options: EnvironmentOptions, count: int, decisions: int, most: int) -> None:
        self._options = options
        self._kind = make_reward(options.reward)
        self.draws = np.zeros((count, decisions, most + 1))

    def draw(self, index: int, episode: int, sources: int) -> None:
        """The uniform numbers of an episode of environment ``index``."""
        if self._kind.probes:
            decisions = self.draws.shape[1]
            self.draws[index, :, : sources + 1] = arm_draws(episode, decisions, sources)

    def reward(
        self, seen: RewardInput, probes: dict[str, FloatArray], decision: NDArray[np.int64]
    ) -> Reward:
        """The rewards of the last decision.

        Args:
            seen: all but what the reward reads of probes.
            probes: the last values by name, float64[n, K] or [n, K, G].
            decision: int64[n], its number, from 1.
        """
        if self._kind.probes:
            top, inner = self._options.reward_sources, self._options.reward_strata
            seen = replace(
                seen,
                source_probe=as_reward(top, probes[top]),
                stratum_probe=as_reward(inner, probes[inner]),
                draws=self.draws[np.arange(len(decision)), decision - 1],
            )
        if self._kind.gains:
            seen = replace(seen, gains=probes[BILEVEL_GAIN])
        return penalised(self._kind.compute(seen), seen, self._options.penalties)


def arm_draws(seed: int, decisions: int, sources: int) -> FloatArray:
    """float64[decisions, K + 1], uniform numbers of an episode's decisions, for reward ``arm``."""
    return EpisodeNoise("arms").start(seed).random((decisions, sources + 1))
