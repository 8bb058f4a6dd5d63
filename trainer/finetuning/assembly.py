"""From a configuration to an environment with an agent in its seat."""

from collections.abc import Callable, Mapping
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
        environment: options of the environment that it was trained with.
    """

    requires: Requires
    make: Callable[[Any, tuple[str, ...]], Any]
    environment: dict[str, Any]


def assemble(config: RunConfig, on_episode_end: EpisodeHook | None = None) -> Assembly:
    """Build the environment that the agent asks for, and the agent in it."""
    kind = find_agent(config.agent)
    env = build_environment(with_agent_needs(config, kind), on_episode_end=on_episode_end)
    vector = DummyVecEnv([lambda: env])
    vector.seed(config.seed)
    return Assembly(env, vector, kind.make(vector, env.world.names))


def with_agent_needs(config: RunConfig, kind: AgentKind) -> RunConfig:
    """The configuration with the environment that the agent needs; what it does not ask for stays.

    Raises:
        ConfigError: if it needs a reference model and none is configured.
    """
    needs, given = kind.requires, config.environment
    update: dict[str, Any] = {"action": needs.action, "observation": needs.observation}
    if needs.probes:
        update["probes"] = merged_probes(given.probes, needs.probes)
    if needs.probe_at_start:
        update["probe_at_start"] = True
    if needs.step_rule != "plain":
        update["step_rule"] = needs.step_rule
    if needs.reference and given.reference is None:
        raise ConfigError(
            f"environment.reference: {config.agent.name} reads the losses of a reference model; "
            "give the folder of one"
        )
    environment = given.model_copy(update={**update, **kind.environment})
    return config.model_copy(update={"environment": environment})


def merged_probes(given: Mapping[str, int], needed: Mapping[str, int]) -> dict[str, int]:
    """Probes that somebody asked for, each at the smaller of its periods.

    >>> merged_probes({"loss": 4}, {"loss": 2, "gradient_norm": 3})
    {'loss': 2, 'gradient_norm': 3}
    """
    periods = dict(given)
    for name, period in needed.items():
        periods[name] = min(period, periods.get(name, period))
    return periods


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
    needs = algorithm.needs(options.options)
    return AgentKind(needs, lambda env, names: _rule(options, env, names), {})


def _exported(folder: Path, options: AgentOptions) -> AgentKind:
    from mixgym.agents.policies.composed import load_agent, policy_folders
    from mixgym.agents.policies.export import CARD, read_card

    inner = folder / "agent"
    where = inner if (inner / CARD).is_file() else folder
    card = read_card(where)
    if options.options:
        raise ConfigError(
            f"agent.options: the agent in {where} is trained and takes none, "
            f"got {', '.join(options.options)}"
        )
    acted_in = ("floor", "reach", "action", "step")
    kept: dict[str, Any] = {name: card[name] for name in acted_in if name in card}
    if any(read_card(part).get("costs") for part in policy_folders(where).values()):
        kept["costs"] = True
    return AgentKind(TRAINED, lambda env, names: load_agent(where, env), kept)


def _rule(options: AgentOptions, vector: Any, names: tuple[str, ...]) -> Any:
    factory = find_algorithm(options.name).load()
    try:
        return factory(vector, names=names, **options.options)
    except TypeError as error:
        given = ", ".join(options.options) or "none"
        raise ConfigError(
            f"agent.options: {options.name} does not take these ({error}; given: {given})"
        ) from error
