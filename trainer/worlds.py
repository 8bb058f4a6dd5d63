"""Vector environments to train agents in, and their state for exact resume."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from mixgym.envs.build import build_environment
from mixgym.envs.curves.task import TASK_SETS
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer import storage
from mixgym.trainer.config import RunConfig

STATE, ARRAYS = "world.json", "world.npz"


class TrainingWorld(Protocol):
    """A vector environment that can be saved between two rollouts."""

    @property
    def env(self) -> VecEnv:
        """The environment."""
        ...

    def save(self, folder: Path) -> None:
        """Write its state."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`, bit-equal."""
        ...


class FastWorld:
    """The fast world on its training tasks.

    Args:
        config: number of environments, seed, action range.
    """

    def __init__(self, config: RunConfig) -> None:
        self.env = CurvesVecEnv(
            config.train.environments,
            TASK_SETS["train"],
            agent_options(config.environment, padded=False),
            seed=config.seed,
        )

    def save(self, folder: Path) -> None:
        """See :class:`TrainingWorld`."""
        state = self.env.state()
        arrays = {**state["arrays"], "returns": state["returns"]}
        np.savez(folder / ARRAYS, **arrays)
        storage.write_json(folder / STATE, {"random": state["random"]})

    def load(self, folder: Path) -> None:
        """See :class:`TrainingWorld`."""
        arrays = _arrays(folder)
        random = storage.read_json(folder / STATE)["random"]
        returns = arrays.pop("returns")
        self.env.set_state({"arrays": arrays, "returns": returns, "random": random})


class LanguageWorld:
    """One environment around a language model; an episode is a fine-tuning run.

    Args:
        config: sources, model, training.
    """

    def __init__(self, config: RunConfig) -> None:
        options = agent_options(config.environment, padded=True).model_copy(
            update={"learner": "causal_lm"}
        )
        self._inner: MixtureEnv = build_environment(
            config.model_copy(update={"environment": options})
        )
        self._monitor = Monitor(self._inner)
        self.env: VecEnv = DummyVecEnv([lambda: self._monitor])

    def save(self, folder: Path) -> None:
        """See :class:`TrainingWorld`."""
        self._inner.save(folder / "environment")
        storage.write_json(folder / STATE, {"rewards": [float(r) for r in self._monitor.rewards]})

    def load(self, folder: Path) -> None:
        """See :class:`TrainingWorld`."""
        self.env.reset()
        self._inner.load(folder / "environment")
        self._monitor.rewards = storage.read_json(folder / STATE)["rewards"]


def make_world(stage: str, config: RunConfig) -> TrainingWorld:
    """The world of a training stage."""
    return FastWorld(config) if stage == "curves" else LanguageWorld(config)


def agent_options(options: EnvironmentOptions, *, padded: bool) -> EnvironmentOptions:
    """The options under which trained agents act: logits, and the flat observation."""
    update: dict[str, Any] = {"action": "logits", "observation": "flat"}
    if not padded:
        update |= {"learner": "curves", "max_sources": None, "max_strata": None}
    return options.model_copy(update=update)


def _arrays(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / ARRAYS) as file:
        return {name: file[name] for name in file.files}
