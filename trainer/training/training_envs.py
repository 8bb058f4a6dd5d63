"""Vector environments to train agents in, and their state for exact resume."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn, VecEnvWrapper

from mixgym.agents.registry import HBO, training_of
from mixgym.envs import storage
from mixgym.envs.build import build_environment
from mixgym.envs.curves.core import DECISIONS
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.learners.kinds import CAUSAL_LM, CURVES
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import Learner, as_configured, environment_for

STATE, ARRAYS = "world.json", "world.npz"
_ARRAY = "<array>"  # key of what stands in plain data for an array

Watch = Callable[[NDArray[Any], NDArray[Any], list[dict[str, Any]]], None]


class Watched(VecEnvWrapper):
    """Counts decisions, and shows each of them to who watches, whoever takes them.

    A decision is one of the joint environment: levels that see it as rows, or decide more rarely,
    are all counted alike.

    Args:
        venv: what is watched.
        group: so many neighbours meet the same episodes, and each is paid what it earned beyond
            their mean, so that what a task is worth by itself is no noise; 1: all they earned.

    Attributes:
        decisions: taken so far.
        watch: called with rewards (all they earned), dones and infos after every step.
    """

    decisions = 0
    watch: Watch | None = None

    def __init__(self, venv: VecEnv, group: int = 1) -> None:
        super().__init__(venv)
        self._group = group

    def reset(self) -> Any:
        """Start all episodes."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Count, and show."""
        observation, rewards, dones, infos = self.venv.step_wait()
        self.decisions += self.num_envs
        if self.watch is not None:
            self.watch(rewards, dones, infos)
        return observation, self._paid(rewards), dones, infos

    def _paid(self, rewards: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._group == 1:
            return rewards
        rows = rewards.reshape(-1, self._group)
        # the mean of the others, so that a baseline holds nothing of one's own decision
        others = (rows.sum(1, keepdims=True) - rows) / (self._group - 1)
        paid: NDArray[np.float32] = (rows - others).ravel()
        return paid


class TrainingEnv(Protocol):
    """A vector environment that can be saved between two decisions.

    Attributes:
        env: the joint environment.
        episode: decisions in an episode.
    """

    env: Watched
    episode: int

    def save(self, folder: Path) -> None:
        """Write its state."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`, bit-equal."""
        ...


class FastTrainingEnv:
    """The fast world on its training tasks.

    Args:
        config: number of environments, seed, action range.
    """

    def __init__(self, config: RunConfig) -> None:
        self._curves = CurvesVecEnv(
            config.train.environments,
            config.train.tasks("train"),
            trained_in(config, CURVES).environment,
            seed=config.seed,
            bilevel=config.bilevel,
            group=group_of(config),
            exact_rewards=True,
        )
        self.env = Watched(self._curves, group_of(config))
        self.episode = DECISIONS

    def save(self, folder: Path) -> None:
        """See :class:`TrainingEnv`."""
        arrays: dict[str, NDArray[Any]] = {}
        plain = _without_arrays(self._curves.state(), "", arrays)
        np.savez(folder / ARRAYS, **arrays)  # type: ignore[arg-type]
        storage.write_json(folder / STATE, {"curves": plain, "decisions": self.env.decisions})

    def load(self, folder: Path) -> None:
        """See :class:`TrainingEnv`."""
        state = storage.read_json(folder / STATE)
        with np.load(folder / ARRAYS) as file:
            self._curves.set_state(_with_arrays(state["curves"], file))
        self.env.decisions = state["decisions"]


def group_of(config: RunConfig) -> int:
    """How many environments meet the same episodes: ``train.group``, where that makes sense.

    Search pairs its candidates itself, replay buffers hold what was earned, HBO and local
    levels have a pay of their own. Every group is whole: as large as divides the environments.
    """
    train = config.train
    suited = training_of(train.algo).family == "on_policy" and train.algo != HBO
    if not suited or train.level not in ("joint", "global"):
        return 1
    return math.gcd(train.group, train.environments)


class LanguageTrainingEnv:
    """One environment around a language model; an episode is a fine-tuning run.

    Args:
        config: sources, model, training.
    """

    def __init__(self, config: RunConfig) -> None:
        self._inner: MixtureEnv = build_environment(trained_in(config, CAUSAL_LM))
        self._monitor = Monitor(self._inner)
        self.env = Watched(DummyVecEnv([lambda: self._monitor]))
        self.episode = -(-config.training.steps // config.training.interval)

    def save(self, folder: Path) -> None:
        """See :class:`TrainingEnv`."""
        self._inner.save(folder / "environment")
        rewards = [float(r) for r in self._monitor.rewards]
        storage.write_json(folder / STATE, {"rewards": rewards, "decisions": self.env.decisions})

    def load(self, folder: Path) -> None:
        """See :class:`TrainingEnv`."""
        self.env.reset()
        self._inner.load(folder / "environment")
        state = storage.read_json(folder / STATE)
        self._monitor.rewards = state["rewards"]
        self.env.decisions = state["decisions"]


def make_training_env(stage: str, config: RunConfig) -> TrainingEnv:
    """The world of a training stage."""
    return FastTrainingEnv(config) if stage == CURVES else LanguageTrainingEnv(config)


def trained_in(config: RunConfig, learner: Learner) -> RunConfig:
    """The configuration of the environment that an agent is trained and judged in."""
    return environment_for(as_configured(config.environment), config, learner=learner)


def _without_arrays(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """A nested state as plain data: its arrays go into ``arrays``, their names in their place."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {_ARRAY: path}
    if isinstance(value, dict):
        return {k: _without_arrays(inner, f"{path}/{k}", arrays) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(inner, f"{path}/{i}", arrays) for i, inner in enumerate(value)]
    return value


def _with_arrays(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """The opposite of :func:`_without_arrays`; tuples come back as lists."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return arrays[value[_ARRAY]]
        return {name: _with_arrays(inner, arrays) for name, inner in value.items()}
    return [_with_arrays(inner, arrays) for inner in value] if isinstance(value, list) else value
