"""Many environments of the fast world at once, for Stable-Baselines3 and for Gymnasium.

Both faces stand on one core. Tasks are drawn inside, from a frozen set, at every reset:
Stable-Baselines3 passes reset options only once. Both reset an environment in the very step that
ends its episode, and leave the last observation in ``info``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs.curves.core import DECISIONS, CurvesCore
from mixgym.envs.curves.task import TASK_SETS
from mixgym.envs.mixture import BoolArray, action_size
from mixgym.envs.observations import dict_space, flat_space
from mixgym.envs.options import EnvironmentOptions


def _spaces(core: CurvesCore) -> tuple[gym.Space[Any], gym.spaces.Box]:
    flat = core.options.observation == "flat"
    low = 0.0 if core.options.action == "weights" else -1.0
    action = gym.spaces.Box(low, 1.0, (action_size(core.shape),), np.float32)
    return (flat_space(core.shape) if flat else dict_space(core.shape)), action


class CurvesVecEnv(VecEnv):
    """The Stable-Baselines3 face; arguments as of :class:`CurvesCore`.

    ``infos`` hold ``decision`` (a mapping read when needed) and, at the end of an episode,
    ``terminal_observation`` and ``episode`` with return and length.
    """

    def __init__(
        self,
        count: int,
        seeds: Sequence[int] = TASK_SETS["train"],
        options: EnvironmentOptions | None = None,
        **kwargs: Any,
    ) -> None:
        self.core = CurvesCore(count, seeds, options or EnvironmentOptions(), **kwargs)
        observation, action = _spaces(self.core)
        super().__init__(count, observation, action)
        self.render_mode = None
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
                infos[i]["terminal_observation"] = _row(observation, int(i))
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

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once per environment."""
        return [getattr(self, attr_name)] * len(self._list(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all environments (they are one object)."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method once; its answer, once per environment."""
        answer = getattr(self, method_name)(*args, **kwargs)
        return [answer] * len(self._list(indices))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Never wrapped; episode statistics are in ``info`` all the same."""
        return [False] * len(self._list(indices))

    def _list(self, indices: Any) -> list[int]:
        return list(self._get_indices(indices))


class CurvesVectorEnv(VectorEnv[Any, NDArray[np.float32], NDArray[np.float64]]):
    """The Gymnasium face: ``gym.make_vec("mixgym/Mixture-v0", num_envs=..., ...)``.

    Args:
        num_envs: environments.
        tasks: ``train``, ``validation`` or ``test``.
        environment: options, as plain data.
        decisions: in an episode.
        seed: of the streams, until ``reset(seed=...)`` gives another.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        tasks: str = "train",
        environment: Mapping[str, Any] | None = None,
        decisions: int = DECISIONS,
        seed: int = 0,
    ) -> None:
        options = EnvironmentOptions.model_validate({"learner": "curves", **(environment or {})})
        self.core = CurvesCore(num_envs, TASK_SETS[tasks], options, seed=seed, decisions=decisions)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = _spaces(self.core)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes."""
        if isinstance(seed, int):
            self.core.seed(seed)
        self.core.reset()
        return self.core.observe(), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Any, NDArray[np.float64], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Move all environments."""
        rewards, dones = self.core.step(np.asarray(actions))
        decisions = np.array(self.core.records(), dtype=object)
        infos: dict[str, Any] = {"decision": decisions, "_decision": np.ones_like(dones)}
        observation = self.core.observe()
        if dones.any():
            final = np.array([_row(observation, i) for i in range(self.num_envs)], dtype=object)
            infos |= {"final_obs": final, "_final_obs": dones}
            self.core.reset(np.flatnonzero(dones))
            observation = self.core.observe()
        return observation, rewards, dones, np.zeros_like(dones), infos


def _row(observation: Any, index: int) -> Any:
    if isinstance(observation, dict):
        return {name: values[index].copy() for name, values in observation.items()}
    return observation[index].copy()
