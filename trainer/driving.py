"""From a configuration to an environment with an agent in its seat."""

from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv

from mixgym.agents.registry import find_algorithm
from mixgym.agents.requires import Requires
from mixgym.envs.build import build_environment
from mixgym.envs.environment import EpisodeHook, MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import AgentOptions, RunConfig


@dataclass(frozen=True)
class Seat:
    """An environment, the same as a vector of one, and the agent that acts in it."""

    env: MixtureEnv
    vector: DummyVecEnv
    agent: Any


def seat(config: RunConfig, on_episode_end: EpisodeHook | None = None) -> Seat:
    """Build the environment that the agent asks for, and the agent in it."""
    algorithm = find_algorithm(config.agent.name)
    env = build_environment(suited(config, algorithm.requires), on_episode_end=on_episode_end)
    vector = DummyVecEnv([lambda: env])
    vector.seed(config.seed)
    return Seat(env, vector, make_agent(config.agent, vector, env.world.names))


def suited(config: RunConfig, requires: Requires) -> RunConfig:
    """The configuration with the action kind and the observation that the agent needs."""
    environment = config.environment.model_copy(
        update={"action": requires.action, "observation": requires.observation}
    )
    return config.model_copy(update={"environment": environment})


def make_agent(options: AgentOptions, vector: Any, names: tuple[str, ...]) -> Any:
    """The agent of that name.

    Raises:
        ConfigError: for an unknown name, or options that it does not know.
    """
    factory = find_algorithm(options.name).load()
    try:
        return factory(vector, names=names, **options.options)
    except TypeError as error:
        given = ", ".join(options.options) or "none"
        raise ConfigError(
            f"agent.options: {options.name} does not take these ({error}; given: {given})"
        ) from error
