"""The fast world's face for Gymnasium: ``gym.make_vec("mixgym/Mixture-v0", num_envs=...)``."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.task import task_set
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import CURVES, LEARNERS
from mixgym.envs.options import WorldOptions


class CurvesVectorEnv(VectorEnv[Any, NDArray[np.float32], NDArray[np.float64]]):
    """A batch of the environments that ``gym.make`` gives for the same options.

    Environment i of a batch reset with ``seed=s`` does what the single environment does after
    ``reset(seed=s + i)``. An environment is reset in the very step that ends its episode; the last
    observation is in ``info["final_obs"]``.

    Args:
        num_envs: environments.
        render_mode: None: a batch has no picture.
        options: as of ``mixgym/Mixture-v0``.

    Raises:
        ConfigError: for options that a batch does not have.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **options: Any) -> None:
        if render_mode is not None:
            raise ConfigError(f"render_mode={render_mode}: a batch has no picture; use gym.make")
        options["environment"] = {"learner": CURVES, **dict(options.get("environment") or {})}
        world = WorldOptions.model_validate(options)
        training = world.training
        _check(world)
        tasks = task_set(world.environment.tasks, world.seed, world.data.strata)
        environment = world.environment
        if environment.tasks is None:
            shape = tasks[0].size.shape if not isinstance(tasks[0], int) else (None, None)
            environment = environment.model_copy(
                update={
                    "max_sources": environment.max_sources or shape[0],
                    "max_strata": environment.max_strata or shape[1],
                }
            )
        self.core = CurvesCore(
            num_envs,
            tasks,
            environment,
            seed=world.seed,
            decisions=training.steps // training.interval,
            interval=training.interval,
            bilevel=world.bilevel,
        )
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = self.core.observation_space
        self.single_action_space = self.core.action_space
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes."""
        if seed is not None:
            self.core.seed(seed)
        self.core.reset()
        return self.core.observe(), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Any, NDArray[np.float64], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Move all environments."""
        rewards, dones = self.core.step(np.asarray(actions))
        decisions = _objects(self.core.records())
        infos: dict[str, Any] = {"decision": decisions, "_decision": np.ones_like(dones)}
        observation = self.core.observe()
        if dones.any():
            ended = np.flatnonzero(dones)
            last: list[Any] = [None] * self.num_envs
            for i in ended.tolist():
                last[i] = row_of(observation, i)
            final = {"decision": decisions, "_decision": dones}
            infos |= {"final_obs": _objects(last), "_final_obs": dones}
            infos |= {"final_info": final, "_final_info": dones}
            self.core.reset(ended)
            observation = self.core.observe()
        return observation, rewards, dones, np.zeros_like(dones), infos


def row_of(observation: Any, index: int) -> Any:
    """A copy of one environment's observation."""
    if isinstance(observation, dict):
        return {name: values[index].copy() for name, values in observation.items()}
    return observation[index].copy()


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects, whatever they are: NumPy would look into arrays and mappings."""
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def _check(world: WorldOptions) -> None:
    training = world.training
    if not LEARNERS[world.environment.learner].closed_form:
        raise ConfigError(
            f"environment.learner={world.environment.learner}: only curves come as a batch; "
            "use vectorization_mode='sync' or 'async'"
        )
    if training.supervised_tokens is not None or training.steps % training.interval:
        raise ConfigError(
            "training.steps, interval, supervised_tokens: all environments of a batch decide at "
            "the same steps: make steps a multiple of interval, and leave supervised_tokens out"
        )
