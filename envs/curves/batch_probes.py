"""The probes of a batch of closed-form environments: periods, last values, ages, costs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.probes import Seen, constant_probe, probe, probe_noise, probe_tokens
from mixgym.envs.measuring.probe_book import NEVER, training_loss_ratio, wanted_probes
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BILEVEL_GAIN, PROBES
from mixgym.envs.spaces.signals import probe_shape


class BatchProbes:
    """What :class:`mixgym.envs.measuring.probe_book.ProbeBook` is for one environment, for many.

    Arrays are replaced and never changed, so that records may hold on to them.

    Args:
        options: which probes, how often, over how many rows.
        count: environments.
        shape: (K_max, G_max).
        decisions: in an episode.

    Attributes:
        values: by name float64[n, K] or [n, K, G]; NaN where unknown.
        age: int64[n, probes], decisions since measured; -1 for never.
        tokens: float64[n], what the last decision's probes cost.
    """

    def __init__(
        self, options: EnvironmentOptions, count: int, shape: tuple[int, int], decisions: int
    ) -> None:
        self.periods = wanted_probes(options)
        self.names = list(self.periods)
        self._early = options.probe_at_start
        self._rows = options.probe_rows
        self._count = count
        drawn = [name for name in self.names if PROBES[name].passes]
        self._noise = {name: np.zeros((count, decisions + 1, *shape)) for name in drawn}
        self.values: dict[str, FloatArray] = {
            name: np.full((count, *probe_shape(name, shape)), np.nan) for name in self.names
        }
        self.age = np.full((count, len(self.names)), NEVER)
        self.tokens = np.zeros(count)

    def draw(self, index: int, episode: int, shape: tuple[int, int]) -> None:
        """The noise of an episode of environment ``index``, whose task has ``shape``."""
        rows, groups = shape
        for name, noise in self._noise.items():
            noise[index] = 0.0
            drawn = probe_noise(name, episode, shape, noise.shape[1])
            noise[index, :, :rows, :groups] = drawn

    def start(self, which: NDArray[np.intp], seen: Seen) -> None:
        """Forget what environments ``which`` had, and probe them if that is asked for."""
        fresh = np.isin(np.arange(self._count), which)
        self.age = np.where(fresh[:, None], NEVER, self.age)
        self.tokens = np.where(fresh, 0.0, self.tokens)
        for name, values in self.values.items():
            mask = fresh.reshape(-1, *[1] * (values.ndim - 1))
            self.values[name] = np.where(mask, np.nan, values)
        first = np.zeros(self._count, np.int64)
        for column, name in enumerate(self.names):
            if PROBES[name].constant:
                self._enter(column, fresh, constant_probe(name, seen.task))
            elif self._early and PROBES[name].passes:
                self._enter(column, fresh, probe(name, seen, self._noise_at(name, first)))

    def take(
        self,
        seen: Seen,
        decision: NDArray[np.int64],
        trained: FloatArray,
        start: FloatArray,
        gains: FloatArray | None = None,
    ) -> None:
        """Measure what is due after each environment's decision.

        Args:
            seen: all learners.
            decision: int64[n].
            trained: float64[n, K, G], NLL of the interval's training; NaN where nothing was.
            start: float64[n, K, G], held-out NLL at the start.
            gains: float64[n, K], what step rule bilevel found, if that is the rule.
        """
        self.age = np.where(self.age == NEVER, NEVER, self.age + 1)
        self.tokens = np.zeros(self._count)
        cells = seen.task.present.sum((-2, -1))
        for column, (name, period) in enumerate(self.periods.items()):
            due: BoolArray = np.asarray(decision % period == 0)
            if not due.any():
                continue
            if PROBES[name].constant:
                found = constant_probe(name, seen.task)
            elif PROBES[name].passes:
                found = probe(name, seen, self._noise_at(name, decision))
            else:
                known = gains if name == BILEVEL_GAIN else training_loss_ratio(trained, start)
                assert known is not None  # the options were checked
                found = known
            self._enter(column, due, found)
            self.tokens = self.tokens + due * probe_tokens(name, 1, self._rows) * cells

    def _noise_at(self, name: str, decision: NDArray[np.int64]) -> FloatArray:
        return self._noise[name][np.arange(self._count), decision]

    def _enter(self, column: int, which: BoolArray, found: FloatArray) -> None:
        name = self.names[column]
        mask = which.reshape(-1, *[1] * (found.ndim - 1))
        self.values[name] = np.where(mask, found, self.values[name])
        self.age = self.age.copy()
        self.age[which, column] = 0

    def fresh(self) -> dict[str, tuple[FloatArray, BoolArray]]:
        """By name the values, and bool[n] where they were measured after the last decision."""
        return {
            name: (self.values[name], np.asarray(self.age[:, column] == 0))
            for column, name in enumerate(self.names)
        }

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from; arrays are copies."""
        return {
            "values": {name: values.copy() for name, values in self.values.items()},
            "noise": {name: values.copy() for name, values in self._noise.items()},
            "age": self.age.copy(),
            "tokens": self.tokens.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.values = {name: np.array(state["values"][name]) for name in self.names}
        self._noise = {name: np.array(state["noise"][name]) for name in self._noise}
        self.age, self.tokens = np.array(state["age"]), np.array(state["tokens"])
