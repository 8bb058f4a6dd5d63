"""From a configuration to an environment with an agent in its seat."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv

from mixgym.agents.registry import TRAINED, find_algorithm
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


@dataclass(frozen=True)
class AgentKind:
    """An agent that is not made yet.

    Attributes:
        requires: the environment that it needs.
        make: ``(vector environment or None, names of the sources) -> agent``.
        environment: options of the environment that it was trained with.
    """

    requires: Requires
    make: Callable[[Any, tuple[str, ...]], Any]
    environment: dict[str, Any]


def seat(config: RunConfig, on_episode_end: EpisodeHook | None = None) -> Seat:
    """Build the environment that the agent asks for, and the agent in it."""
    kind = find_agent(config.agent)
    env = build_environment(suited(config, kind), on_episode_end=on_episode_end)
    vector = DummyVecEnv([lambda: env])
    vector.seed(config.seed)
    return Seat(env, vector, kind.make(vector, env.world.names))


def suited(config: RunConfig, kind: AgentKind) -> RunConfig:
    """The configuration with the action kind and the observation that the agent needs."""
    update = {
        "action": kind.requires.action,
        "observation": kind.requires.observation,
        **kind.environment,
    }
    environment = config.environment.model_copy(update=update)
    return config.model_copy(update={"environment": environment})


def find_agent(options: AgentOptions) -> AgentKind:
    """The agent of that name: a registered algorithm, or the folder of a training run.

    Raises:
        ConfigError: for an unknown name, a folder without an agent, or options that it does not
            know.
    """
    folder = Path(options.name)
    if folder.is_dir():
        return _exported(folder, options)
    algorithm = find_algorithm(options.name)
    if algorithm.requires is TRAINED:
        algorithm.load()()
    return AgentKind(algorithm.requires, lambda env, names: _rule(options, env, names), {})


def _exported(folder: Path, options: AgentOptions) -> AgentKind:
    from mixgym.agents.policies.export import CARD, ExportedPolicy, read_card

    inner = folder / "agent"
    where = inner if (inner / CARD).is_file() else folder
    card = read_card(where)
    if options.options:
        raise ConfigError(
            f"agent.options: the agent in {where} is trained and takes none, "
            f"got {', '.join(options.options)}"
        )
    kept: dict[str, Any] = {name: card[name] for name in ("floor", "reach") if name in card}
    return AgentKind(TRAINED, lambda env, names: ExportedPolicy(where, env), kept)


def _rule(options: AgentOptions, vector: Any, names: tuple[str, ...]) -> Any:
    factory = find_algorithm(options.name).load()
    try:
        return factory(vector, names=names, **options.options)
    except TypeError as error:
        given = ", ".join(options.options) or "none"
        raise ConfigError(
            f"agent.options: {options.name} does not take these ({error}; given: {given})"
        ) from error
