"""What the reward of a decision is computed from, gathered from the environment."""

from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.curves.noise import EpisodeNoise
from mixgym.envs.mixture import FloatArray
from mixgym.envs.probes import BACKWARD
from mixgym.envs.rewards import RewardInput, as_reward

if TYPE_CHECKING:
    from mixgym.envs.environment import MixtureEnv


def reward_input(env: "MixtureEnv", *, probes: bool) -> RewardInput:
    """The input of the reward of the decision that ``env`` has just booked.

    Args:
        env: the environment.
        probes: whether the reward reads probes.
    """
    world, seen, done, mixture = env.world, env.measurements, env.progress, env.mixture
    size = world.cell_size
    latest, options = seen.probes.values, env.options
    given: dict[str, FloatArray] = {}
    if probes:
        top, inner = options.reward_sources, options.reward_strata
        given["source_probe"] = as_reward(top, latest[top])
        given["stratum_probe"] = as_reward(inner, latest[inner])
        given["draws"] = arm_draws(done.seed, done.decisions, len(world.names))[-1]
    return RewardInput(
        before=seen.before.source_nll,
        after=seen.now.source_nll,
        targets=world.targets,
        start=seen.start.source_nll,
        weight=mixture.sources,
        strata=mixture.strata,
        prior=world.prior.sources,
        prior_strata=world.prior.strata,
        epochs=(env.plane.epochs() * size).sum(-1) / np.maximum(size.sum(-1), 1e-12),
        probe_cost=seen.probe_tokens / max(BACKWARD * env.last_tokens, 1),
        **given,
    )


def arm_draws(seed: int, decisions: int, sources: int) -> FloatArray:
    """float64[decisions, K + 1], uniform numbers of an episode's decisions, for reward ``arm``."""
    return EpisodeNoise("arms").start(seed).random((decisions, sources + 1))
