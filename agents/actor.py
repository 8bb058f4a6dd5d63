"""The loop around ``predict``: the same calls as a Stable-Baselines3 algorithm, nothing trained.

Rules and exported policies act through it, so that callbacks, loggers and checkpoints of a run
do not care who decides.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import MaybeCallback
    from stable_baselines3.common.vec_env import VecEnv

State = tuple[NDArray[Any], ...]


class Actor(ABC):
    """Acts in a vector environment; subclasses give :meth:`predict`.

    Args:
        env: the vector environment, or None to predict only.
    """

    def __init__(self, env: "VecEnv | None" = None) -> None:
        self.env = env
        self.num_timesteps = 0
        self._logger: Logger | None = None
        self._observation: Any = None
        self._state: State | None = None
        self._start: NDArray[np.bool_] | None = None

    @abstractmethod
    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], State | None]:
        """Actions for one or several environments, as in Stable-Baselines3.

        Args:
            observation: with or without a leading axis of environments.
            state: what the last call returned, and left as it is; None at the start.
            episode_start: bool[n], where memory is cleared.
            deterministic: whether the most likely action is taken.
        """

    def learn(
        self,
        total_timesteps: int,
        callback: "MaybeCallback" = None,
        log_interval: int = 1,
        tb_log_name: str = "actor",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Act for ``total_timesteps`` decisions, with callbacks; nothing is trained.

        A callback that returns False ends the loop, as in Stable-Baselines3.
        """
        env = self.get_env()
        hooks = self._callbacks(callback, progress_bar)
        if reset_num_timesteps:
            self.num_timesteps = 0
        total_timesteps += self.num_timesteps
        if self._observation is None or reset_num_timesteps:
            self.begin(env.reset())
            self._start = np.ones(env.num_envs, np.bool_)  # forgets an earlier `learn`
        hooks.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            actions, self._state = self.predict(self._observation, self._state, self._start)
            self._observation, rewards, dones, infos = env.step(actions)
            self._annotate(infos)
            self._start = dones
            self.num_timesteps += env.num_envs
            hooks.update_locals(locals())
            if not hooks.on_step():
                break
        hooks.on_training_end()
        return self

    def report(self, index: int, names: tuple[str, ...]) -> dict[str, Any]:
        """What there is to say of the last prediction for environment ``index``, for the records.

        Args:
            index: of the environment.
            names: of its sources.
        """
        return {}

    def _annotate(self, infos: list[dict[str, Any]]) -> None:
        """Add reports as ``actor`` to the records of the decisions that were just taken."""
        for index, info in enumerate(infos):
            record = info.get("decision")
            if isinstance(record, dict) and (said := self.report(index, tuple(record["mixture"]))):
                record["actor"] = said

    def begin(self, observation: Any, decisions: int = 0) -> None:
        """Start :meth:`learn` from an observation, after ``decisions`` decisions."""
        self._observation = observation
        self._start = np.zeros(self.get_env().num_envs, np.bool_)
        self.num_timesteps = decisions

    def _callbacks(self, callback: "MaybeCallback", progress_bar: bool) -> Any:
        from stable_baselines3.common.callbacks import (
            BaseCallback,
            CallbackList,
            ConvertCallback,
            ProgressBarCallback,
        )

        hooks = list(callback) if isinstance(callback, list) else [callback] if callback else []
        hooks = [
            hook if isinstance(hook, BaseCallback) else ConvertCallback(hook) for hook in hooks
        ]
        chain = CallbackList([*hooks, *([ProgressBarCallback()] if progress_bar else [])])
        chain.init_callback(self)  # type: ignore[arg-type]  # it has the members that are used
        return chain

    @property
    def logger(self) -> "Logger":
        """The Stable-Baselines3 logger; prints nothing unless one was set."""
        if self._logger is None:
            from stable_baselines3.common.logger import Logger

            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: "Logger") -> None:
        """Log to ``logger``."""
        self._logger = logger

    def get_env(self) -> "VecEnv":
        """The vector environment.

        Raises:
            ValueError: if there is none.
        """
        if self.env is None:
            raise ValueError(f"{type(self).__name__} was made without an environment: pass env=...")
        return self.env

    def get_vec_normalize_env(self) -> None:
        """None: nothing is normalised outside (callbacks of Stable-Baselines3 ask)."""
        return None

    def memory(self) -> list[Any] | None:
        """The state of :meth:`learn` as plain data."""
        return None if self._state is None else [array.tolist() for array in self._state]

    def set_memory(self, memory: list[Any] | None) -> None:
        """Continue from :meth:`memory`."""
        self._state = None if memory is None else tuple(np.array(array) for array in memory)
