"""The face of an agent that is a rule: the same calls as a Stable-Baselines3 algorithm.

A rule is a function from raw signals to a mixture. It reads the Dict observation, answers in the
action kind ``weights``, and keeps what it remembers in ``state``, as a recurrent policy does, so
that ``predict`` alone adapts.
"""

import json
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import Actor, State
from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.spaces.observations import PROGRESS, parts_of
from mixgym.envs.spaces.signals import AGE, CELL_SIGNALS, PREFIX, SIGNALS

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

Observation = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Signals:
    """What a rule sees of one environment; absent sources and strata are cut off.

    Attributes:
        used: share of the budget that is used.
        sources: name of :data:`mixgym.envs.spaces.signals.SIGNALS` -> float64[K].
        cells: name of :data:`mixgym.envs.spaces.signals.CELL_SIGNALS` -> float64[K, G_max].
        probes: name -> float64[K] or [K, G_max], the last values; NaN where unknown.
        fresh: name -> whether the probe was measured after the last decision.
    """

    used: float
    sources: dict[str, FloatArray]
    cells: dict[str, FloatArray]
    probes: dict[str, FloatArray] = field(default_factory=dict)
    fresh: dict[str, bool] = field(default_factory=dict)

    @property
    def trainable(self) -> BoolArray:
        """bool[K], sources that have training rows."""
        return self.sources["size"] > 0


class Rule(Actor):
    """Base of rules; subclasses give :meth:`weights`.

    Args:
        env: a vector environment with the Dict observation, or None to predict only.
        names: of the sources, in order, for rules that are configured by name.
    """

    #: arrays of the state, per environment; a rule without memory has none
    state_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ()
    #: probes that a plug-in reads in ``signals.probes`` -> period in decisions
    probes: ClassVar[dict[str, int]] = {}

    def __init__(self, env: "VecEnv | None" = None, names: tuple[str, ...] = ()) -> None:
        super().__init__(env)
        self.names = names

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
    names = sorted(name for name in parts if name.startswith(PREFIX))
    age = parts[AGE][index] if names else np.zeros(0)
    found = {name: parts[name][index].astype(np.float64)[present] for name in names}
    return Signals(
        1.0 - remaining,
        {name: table[present, i] for i, name in enumerate(SIGNALS)},
        {name: cells[..., i] for i, name in enumerate(CELL_SIGNALS)},
        {n.removeprefix(PREFIX): np.where(v == 0, np.nan, v) for n, v in found.items()},
        {n.removeprefix(PREFIX): bool(a == 0) for n, a in zip(names, age, strict=True)},
    )
