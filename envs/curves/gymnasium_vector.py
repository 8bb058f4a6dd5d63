"""The fast world's face for Gymnasium: ``gym.make_vec("mixgym/Mixture-v0", num_envs=...)``."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.autoreset import AutoresetVectorEnv, Moved
from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.tasks.sets import task_set
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import CURVES, LEARNERS
from mixgym.envs.options import WorldOptions


class CurvesVectorEnv(AutoresetVectorEnv):
    """A batch of the environments that ``gym.make`` gives for the same options.

    Environment i of a batch reset with ``seed=s`` does what the single environment does after
    ``reset(seed=s + i)``. ``infos["decision"]`` holds a record for each environment, a mapping that
    is made when it is read.

    Args:
        num_envs: environments.
        render_mode: None: a batch has no picture.
        autoreset_mode: of Gymnasium: ``SAME_STEP`` (an environment is reset in the very step that
            ends its episode; the last observation is in ``infos["final_obs"]``), ``NEXT_STEP`` or
            ``DISABLED``.
        options: as of ``mixgym/Mixture-v0``.

    Raises:
        ConfigError: for options that a batch does not have, and a batch of nothing.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **options: Any,
    ) -> None:
        if render_mode is not None:
            raise ConfigError(f"render_mode={render_mode}: a batch has no picture; use gym.make")
        self.core = _make_core(num_envs, options)
        super().__init__(num_envs, self._spaces(), autoreset_mode)

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """The spaces of one environment's observations and actions."""
        return self.core.observation_space, self.core.action_space

    def _seed(self, seeds: list[int | None]) -> None:
        self.core.seed(seeds)

    def _restart(self, which: BoolArray) -> dict[str, tuple[FloatArray, BoolArray]]:
        self.core.reset(np.flatnonzero(which))
        view = self.core.view
        return {
            f"source{k}": (view.nll[:, k], view.sources[:, k]) for k in range(self.core.shape[0])
        }

    def _move(self, actions: NDArray[Any], moving: BoolArray) -> Moved:
        rewards, dones = self.core.step(actions)
        return Moved(self._look(), rewards, dones, {"decision": self.core.records()})

    def _look(self) -> Any:
        return self.core.observe()


def _make_core(num_envs: int, options: dict[str, Any]) -> CurvesCore:
    """The arrays of a batch, by the options of the single environment.

    Raises:
        ConfigError: for options that a batch does not have, and a batch of nothing.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs}: give at least 1")
    environment = {"learner": CURVES, **dict(options.get("environment") or {})}
    world = WorldOptions.model_validate({**options, "environment": environment})
    training, chosen = world.training, world.environment
    _check(world)
    tasks = task_set(chosen.tasks, world.seed, world.data.strata)
    if chosen.tasks is None and not isinstance(tasks[0], int):
        sources, strata = tasks[0].size.shape
        padding = {
            "max_sources": chosen.max_sources or sources,
            "max_strata": chosen.max_strata or strata,
        }
        chosen = chosen.model_copy(update=padding)
    return CurvesCore(
        num_envs,
        tasks,
        chosen,
        seed=world.seed,
        decisions=-(-training.steps // training.interval),
        interval=training.interval,
        steps=training.steps,
        bilevel=world.bilevel,
    )


def _check(world: WorldOptions) -> None:
    if not LEARNERS[world.environment.learner].closed_form:
        raise ConfigError(
            f"environment.learner={world.environment.learner}: only curves come as a batch; "
            "use vectorization_mode='sync' or 'async'"
        )
    unit = world.training.budget_unit
    if unit != "steps":
        raise ConfigError(
            f"training.{unit}={world.training.budget}: all environments of a batch decide at the "
            "same steps: give the budget as training.steps, or use vectorization_mode='sync'"
        )
