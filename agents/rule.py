"""The face of an agent that is a rule: the same calls as a Stable-Baselines3 algorithm.

A rule is a function from raw signals to a mixture. It reads the Dict observation, answers in the
action kind ``weights``, and keeps what it remembers in ``state``, as a recurrent policy does, so
that ``predict`` alone adapts. ``learn`` is the loop around ``predict`` with callbacks and a logger.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.mixture import BoolArray, FloatArray
from mixgym.envs.observations import CELL_SIGNALS, PROGRESS, SIGNALS, parts_of

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import MaybeCallback
    from stable_baselines3.common.vec_env import VecEnv

Observation = dict[str, NDArray[np.float32]]
State = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Signals:
    """What a rule sees of one environment; absent sources and strata are cut off.

    Attributes:
        used: share of the budget that is used.
        sources: name of :data:`mixgym.envs.observations.SIGNALS` -> float64[K].
        cells: name of :data:`mixgym.envs.observations.CELL_SIGNALS` -> float64[K, G_max].
    """

    used: float
    sources: dict[str, FloatArray]
    cells: dict[str, FloatArray]

    @property
    def trainable(self) -> BoolArray:
        """bool[K], sources that have training rows."""
        return self.sources["size"] > 0


class Rule(ABC):
    """Base of rules; subclasses give :meth:`weights`.

    Args:
        env: a vector environment with the Dict observation, or None to predict only.
        names: of the sources, in order, for rules that are configured by name.
    """

    #: arrays of the state, per environment; a rule without memory has none
    state_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ()

    def __init__(self, env: "VecEnv | None" = None, names: tuple[str, ...] = ()) -> None:
        self.env = env
        self.names = names
        self.num_timesteps = 0
        self._logger: Logger | None = None
        self._observation: Any = None
        self._state: State | None = None
        self._start: NDArray[np.bool_] | None = None

    @abstractmethod
    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray | None]:
        """The mixture for one environment.

        Args:
            signals: what is known.
            memory: this environment's slice of the state; write into it to remember.

        Returns:
            float64[K] over sources, and float64[K, G_max] over strata or None for the natural
            shares. Neither has to be normalised.
        """

    def predict(
        self,
        observation: Observation,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], State | None]:
        """Actions for one or several environments, as in Stable-Baselines3.

        Args:
            observation: the Dict observation, with or without a leading axis of environments.
            state: what the last call returned, and left as it is; None at the start.
            episode_start: bool[n], where memory is cleared.
            deterministic: ignored: rules do not sample.
        """
        single = observation["signals"].ndim == 1
        batch = {name: values[None] if single else values for name, values in observation.items()}
        parts = parts_of(batch)
        count = len(parts["signals"])
        memory = (
            tuple(np.zeros((count, *shape)) for shape in self.state_shapes)
            if state is None
            else tuple(array.copy() for array in state)
        )
        if episode_start is not None:
            for array in memory:
                array[np.asarray(episode_start, np.bool_)] = 0.0
        actions = np.stack(
            [self._action(parts, i, tuple(array[i] for array in memory)) for i in range(count)]
        ).astype(np.float32)
        return (actions[0] if single else actions), (memory or None)

    def _action(self, parts: Observation, index: int, memory: State) -> FloatArray:
        signals = read_signals(parts, index)
        top, inner = self.weights(signals, memory)
        most_sources, most_strata = parts["cell_signals"].shape[1:3]
        first = np.zeros(most_sources)
        first[: len(top)] = top / max(top.max(), 1e-300)
        second = np.zeros((most_sources, most_strata))
        if inner is not None:
            second[: len(inner)] = inner / np.maximum(inner.max(-1, keepdims=True), 1e-300)
        return np.concatenate([first, second.ravel()])

    def learn(
        self,
        total_timesteps: int,
        callback: "MaybeCallback" = None,
        log_interval: int = 1,
        tb_log_name: str = "rule",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "Rule":
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
            self._start = dones
            self.num_timesteps += env.num_envs
            hooks.update_locals(locals())
            if not hooks.on_step():
                break
        hooks.on_training_end()
        return self

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
        chain.init_callback(self)  # type: ignore[arg-type]  # a rule has the members that are used
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
            ValueError: if the rule was made without one.
        """
        if self.env is None:
            raise ValueError(f"{type(self).__name__} was made without an environment: pass env=...")
        return self.env

    def get_vec_normalize_env(self) -> "VecEnv | None":
        """None: rules read raw signals (callbacks of Stable-Baselines3 ask)."""
        return None

    def memory(self) -> list[Any] | None:
        """The state of :meth:`learn` as plain data."""
        return None if self._state is None else [array.tolist() for array in self._state]

    def set_memory(self, memory: list[Any] | None) -> None:
        """Continue from :meth:`memory`."""
        self._state = None if memory is None else tuple(np.array(array) for array in memory)

    def options(self) -> dict[str, Any]:
        """Constructor options, for :meth:`save`."""
        return {}

    def save(self, path: str | Path) -> None:
        """Write the rule as JSON: no pickle, safe to share."""
        state = {"rule": type(self).__name__, "names": list(self.names), "options": self.options()}
        Path(path).write_text(json.dumps(state))

    @classmethod
    def load(cls, path: str | Path, env: "VecEnv | None" = None) -> "Rule":
        """Read a rule that :meth:`save` wrote.

        Raises:
            ValueError: if the file holds another rule.
        """
        state = json.loads(Path(path).read_text())
        if state["rule"] != cls.__name__:
            raise ValueError(f"{path} holds the rule {state['rule']}, not {cls.__name__}")
        return cls(env, tuple(state["names"]), **state["options"])


def read_signals(parts: Observation, index: int) -> Signals:
    """The raw signals of one environment of a batch (see :func:`parts_of`)."""
    table = parts["signals"][index].astype(np.float64)
    present = table[:, SIGNALS.index("present")] > 0
    cells = parts["cell_signals"][index].astype(np.float64)[present]
    remaining = float(parts["progress"][index, PROGRESS.index("remaining")])
    return Signals(
        1.0 - remaining,
        {name: table[present, i] for i, name in enumerate(SIGNALS)},
        {name: cells[..., i] for i, name in enumerate(CELL_SIGNALS)},
    )
