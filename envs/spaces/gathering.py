"""What observations and rewards are made of, gathered from the single environment."""

from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.batch_rewards import arm_draws
from mixgym.envs.probes import BACKWARD, BILEVEL_GAIN, TOKEN_SECONDS, TOKEN_SECONDS_STRATA
from mixgym.envs.rewards import RewardInput, as_reward, target_mean
from mixgym.envs.spaces.observations import View

if TYPE_CHECKING:
    from mixgym.envs.environment import MixtureEnv


def view_of(env: "MixtureEnv") -> View:
    """The numbers that the next observation is made of."""
    world, done, seen = env.world, env.progress, env.measurements.parts_of_view()
    unknown = np.full(world.cell_size.shape, np.nan)
    trained = unknown[:, 0] if done.train_nll is None else np.array(done.train_nll, np.float64)
    cells = unknown if done.cell_train_nll is None else np.array(done.cell_train_nll, np.float64)
    return View(
        remaining=env.remaining,
        reward=done.reward,
        targets=world.targets,
        prior=world.prior.sources,
        weight=env.mixture.sources,
        share=np.array(done.given or np.zeros(len(world.names))) / max(done.supervised, 1),
        nll_train=trained,
        mean_nll=target_mean(seen["nll"], world.targets),
        mean_nll_start=target_mean(seen["nll_start"], world.targets),
        cell_size=world.cell_size,
        cell_prior=world.prior.strata,
        cell_weight=env.mixture.strata,
        cell_epochs=env.plane.epochs(),
        cell_nll_train=cells,
        available=env.plane.available(),
        costs=world.constants[TOKEN_SECONDS] if env.options.costs else None,
        cell_costs=world.constants[TOKEN_SECONDS_STRATA] if env.options.costs else None,
        **seen,
    )


def reward_input(env: "MixtureEnv", *, probes: bool, gains: bool = False) -> RewardInput:
    """The input of the reward of the decision that ``env`` has just booked.

    Args:
        env: the environment.
        probes: whether the reward reads probes.
        gains: whether it reads what step rule bilevel found.
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
    if gains:
        given["gains"] = latest[BILEVEL_GAIN]
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
        seconds=env.last_seconds,
        **given,
    )
