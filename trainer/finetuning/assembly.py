"""From a configuration to an environment and the agent that acts in it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv

from mixgym.agents.agent_options import check_options
from mixgym.agents.registry import STOCK, find_algorithm
from mixgym.agents.requires import TRAINED, Requires
from mixgym.agents.stock import SUFFIX
from mixgym.envs.build import build_environment
from mixgym.envs.environment import EpisodeHook, MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import AgentOptions, RunConfig
from mixgym.trainer.environment_needs import environment_for


@dataclass(frozen=True)
class Assembly:
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
    """

    requires: Requires
    make: Callable[[Any, tuple[str, ...]], Any]


def assemble(config: RunConfig, on_episode_end: EpisodeHook | None = None) -> Assembly:
    """Build the environment that the agent asks for, and the agent in it."""
    kind = find_agent(config.agent)
    env = build_environment(environment_for(kind.requires, config), on_episode_end=on_episode_end)
    vector = DummyVecEnv([lambda: env])
    vector.seed(config.seed)
    return Assembly(env, vector, kind.make(vector, env.world.names))


def find_agent(options: AgentOptions) -> AgentKind:
    """The agent of that name: an algorithm, the folder of a training run, or a file of SB3's.

    Raises:
        ConfigError: for an unknown name, a folder without an agent, or options that it does not
            know.
    """
    folder = Path(options.name).expanduser()
    if folder.is_dir():
        return _exported(folder, options)
    if folder.suffix == SUFFIX and folder.is_file():
        own = {"path": str(folder), **options.options}
        options = AgentOptions(name=STOCK, options=own)
    elif "/" in options.name or os.sep in options.name:  # no algorithm has one in its name
        raise ConfigError(
            f"agent.name={options.name}: there is no such folder; give the folder of a run of "
            "`mixgym train`, or an algorithm's name (mixgym list algorithms)"
        )
    algorithm = find_algorithm(options.name)
    if algorithm.is_trained:
        algorithm.load()()
    needs = algorithm.needs(options.options)
    return AgentKind(needs, lambda env, names: _rule(options, env, names))


ACTING = ("floor", "reach", "step", "prior")
"""What an agent's actions mean, from its card."""


def _exported(folder: Path, options: AgentOptions) -> AgentKind:
    from mixgym.agents.policies.composed import load_agent
    from mixgym.agents.policies.export import CARD, read_card

    inner = folder / "agent"
    where = inner if (inner / CARD).is_file() else folder
    card = read_card(where)
    if options.options:
        raise ConfigError(
            f"agent.options: the agent in {where} is trained and takes none, "
            f"got {', '.join(options.options)}"
        )
    kept: dict[str, Any] = {name: card[name] for name in ACTING if name in card}
    needs = replace(TRAINED, action=card.get("action", TRAINED.action), settings=kept)
    return AgentKind(needs, lambda env, names: load_agent(where, env))


def _rule(options: AgentOptions, vector: Any, names: tuple[str, ...]) -> Any:
    factory = find_algorithm(options.name).load()
    check_options(options.name, options.options)
    try:
        return factory(vector, names=names, **options.options)
    except TypeError as error:
        given = ", ".join(options.options) or "none"
        raise ConfigError(
            f"agent.options: {options.name} does not take these ({error}; given: {given})"
        ) from error
