"""The fast world's face for Stable-Baselines3.

Tasks are drawn inside, from a frozen set, at every reset: Stable-Baselines3 passes reset options
only once. An environment is reset in the very step that ends its episode; the last observation is
in ``info``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.arrays import BoolArray
from mixgym.envs.curves.autoreset import row_of
from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.tasks.sets import Tasks, named_tasks
from mixgym.envs.errors import check_reset_options
from mixgym.envs.options import EnvironmentOptions


class OneObjectVecEnv(VecEnv):
    """A vector environment that is one object rather than many.

    Attributes and methods are those of the object, the same for every environment in it.
    """

    render_mode = None  # before the base class looks for it

    def close(self) -> None:
        """Nothing to close."""

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """There are no options of a reset.

        Raises:
            MixgymError: for any.
        """
        for own in options if isinstance(options, list) else [options]:
            check_reset_options(own)
        super().set_options(options)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once per environment."""
        return [getattr(self, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the attribute, for all environments."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call the method once; its answer, once per environment."""
        answer = getattr(self, method_name)(*args, **kwargs)
        return [answer] * self._count(indices)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never wrapped; episode statistics are in ``info`` all the same."""
        return [False] * self._count(indices)

    def _count(self, indices: Any) -> int:
        return len(list(self._get_indices(indices)))


class CurvesVecEnv(OneObjectVecEnv):
    """The Stable-Baselines3 face; arguments as of :class:`CurvesCore`.

    ``infos`` hold ``decision`` (a mapping read when needed) and, at the end of an episode,
    ``terminal_observation`` and ``episode`` with return and length.
    """

    def __init__(
        self,
        count: int,
        tasks: Tasks | None = None,
        options: EnvironmentOptions | None = None,
        **kwargs: Any,
    ) -> None:
        tasks = named_tasks("world-train") if tasks is None else tasks
        self.core = CurvesCore(count, tasks, options or EnvironmentOptions(), **kwargs)
        super().__init__(count, self.core.observation_space, self.core.action_space)
        self._actions: NDArray[np.float32] | None = None
        self._returns = np.zeros(count)

    def reset(self) -> Any:
        """Start all episodes."""
        self.core.reset()
        self._returns = np.zeros(self.num_envs)
        return self.core.observe()

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], BoolArray, list[dict[str, Any]]]:
        """Move all environments."""
        assert self._actions is not None
        rewards, dones = self.core.step(self._actions)
        self._returns = self._returns + rewards
        infos: list[dict[str, Any]] = [{"decision": d} for d in self.core.records()]
        observation = self.core.observe()
        if dones.any():
            ended = np.flatnonzero(dones)
            for i in ended:
                infos[i]["terminal_observation"] = row_of(observation, int(i))
                infos[i]["TimeLimit.truncated"] = False
                length = int(self.core.decisions)
                infos[i]["episode"] = {"r": float(self._returns[i]), "l": length, "t": 0.0}
            self._returns[ended] = 0.0
            self.core.reset(ended)
            observation = self.core.observe()
        return observation, rewards.astype(np.float32), dones, infos

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Start the streams anew; the next reset draws from them."""
        self.core.seed(0 if seed is None else seed)
        return [seed] * self.num_envs

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from, bit-equal."""
        return {**self.core.state(), "returns": self._returns.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.core.set_state(state)
        self._returns = np.array(state["returns"])
