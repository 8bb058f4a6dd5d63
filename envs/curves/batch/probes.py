"""The probes of a batch of closed-form environments: periods, last values, ages, costs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.probes import (
    Seen,
    baseline_tokens,
    check_measurable,
    constant_probe,
    probe,
    probe_noise,
    probe_tokens,
)
from mixgym.envs.measuring.probe_book import ProbeBook, training_loss_ratio, wanted_probes
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BILEVEL_GAIN, PROBES, need_baseline


class BatchProbes:
    """Takes the probes of a batch into its book: what is due, with the noise of each episode.

    Args:
        options: which probes, how often, over how many rows.
        count: environments.
        shape: (K_max, G_max).
        decisions: in an episode.

    Attributes:
        book: what was found last, and when.
        tokens: float64[n], what the last decision's probes cost.
    """

    def __init__(
        self, options: EnvironmentOptions, count: int, shape: tuple[int, int], decisions: int
    ) -> None:
        self.book = ProbeBook(wanted_probes(options), shape, (count,))
        self.names = list(self.book.periods)
        check_measurable(self.names)
        self._early = options.probe_at_start
        self._rows = options.probe_rows
        self._count = count
        drawn = [name for name in self.names if PROBES[name].passes]
        self._noise = {name: np.zeros((count, decisions + 1, *shape)) for name in drawn}
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
        self.tokens = np.where(fresh, 0.0, self.tokens)
        self.book.clear(fresh)
        first = np.zeros(self._count, np.int64)
        for name in self.names:
            if PROBES[name].constant:
                self.book.put(name, constant_probe(name, seen.task), fresh)
            elif self._early and PROBES[name].passes:
                self.book.put(name, probe(name, seen, self._noise_at(name, first)), fresh)

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
        due = self.book.due(decision)
        found = {name: self._value(name, seen, decision, trained, start, gains) for name in due}
        self.book.enter(found, due)
        cells = seen.task.present.sum((-2, -1))
        self.tokens = np.zeros(self._count)
        for name, where in due.items():
            self.tokens = self.tokens + where * probe_tokens(name, 1, self._rows) * cells

    def _value(
        self,
        name: str,
        seen: Seen,
        decision: NDArray[np.int64],
        trained: FloatArray,
        start: FloatArray,
        gains: FloatArray | None,
    ) -> FloatArray:
        """What a probe finds in all environments; the rest as of :meth:`take`."""
        if PROBES[name].constant:
            return constant_probe(name, seen.task)
        if PROBES[name].passes:
            return probe(name, seen, self._noise_at(name, decision))
        if name != BILEVEL_GAIN:
            return training_loss_ratio(trained, start)
        assert gains is not None  # the options were checked
        return gains

    def _noise_at(self, name: str, decision: NDArray[np.int64]) -> FloatArray:
        noise = self._noise[name]
        # an episode that has ended may be moved on, into nothing
        return noise[np.arange(self._count), np.minimum(decision, noise.shape[1] - 1)]

    def spent(self, decision: int, cells: int) -> int:
        """Tokens that an episode's probes take by a decision, in a task with so many cells."""
        began = baseline_tokens(need_baseline(self.names), cells, self._rows)
        taken = {
            name: decision // period + (self._early and PROBES[name].passes > 0)
            for name, period in self.book.periods.items()
        }
        return began + sum(n * probe_tokens(name, cells, self._rows) for name, n in taken.items())

    def fresh(self) -> dict[str, tuple[FloatArray, BoolArray]]:
        """By name the values, and bool[n] where they were measured after the last decision."""
        return {name: (self.book.values[name], where) for name, where in self.book.fresh.items()}

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from; arrays are copies."""
        noise = {name: values.copy() for name, values in self._noise.items()}
        return {**self.book.arrays(), "noise": noise, "tokens": self.tokens.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.book.set_state(state)
        self._noise = {name: np.array(state["noise"][name]) for name in self._noise}
        self.tokens = np.array(state["tokens"])
