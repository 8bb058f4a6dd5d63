"""The record of a decision in the fast world: made only when somebody reads it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.batch.tilt import Watched
from mixgym.envs.curves.dynamics import Pace
from mixgym.envs.curves.learner import HELD_OUT_TOKENS
from mixgym.envs.curves.task import rate_until
from mixgym.envs.curves.task_tables import Clock, Constants
from mixgym.envs.interval_plan import IntervalPlan
from mixgym.envs.learners.base import TrainReport
from mixgym.envs.measuring.records import Decision, decision_record
from mixgym.envs.rewards import Reward
from mixgym.envs.spaces.mixture import Mixture
from mixgym.envs.spaces.observations import flat_observation
from mixgym.envs.spaces.view import View
from mixgym.envs.world import Progress


@dataclass(frozen=True)
class Trained:
    """How the interval of a step was trained.

    Attributes:
        actions: [n, ...], what the agent did.
        tokens: float64[n, K, G], supervised.
        nll: float64[n, K, G], of training.
        pace: steps and learning rates.
    """

    actions: NDArray[Any]
    tokens: FloatArray
    nll: FloatArray
    pace: Pace


@dataclass(frozen=True)
class Ledger:
    """What the records of a step say besides what it did.

    Attributes:
        here: the constants of the tasks.
        clock: spreads the budget over decisions.
        probed: tokens that probes took by a decision, of a task with so many cells.
        probes: by name the values, and bool[n] where they were measured after this decision.
        tilt: what step rule bilevel has learnt, if that is the rule.
    """

    here: Constants
    clock: Clock
    probed: Callable[[int, int], int]
    probes: Mapping[str, tuple[FloatArray, BoolArray]]
    tilt: Watched | None


@dataclass(frozen=True)
class StepArrays:
    """What one step of all environments did; arrays are never changed afterwards.

    Attributes:
        seen, view: what was shown before the decision, and after it.
        reward: of the decision.
        trained: how its interval was trained.
        supervised: float64[n], supervised tokens so far, rounded in every interval.
        decision: int64[n].
        given: float64[n, K, G], supervised tokens so far.
        ledger: whatever else records say.
    """

    seen: View
    view: View
    reward: Reward
    trained: Trained
    supervised: FloatArray
    decision: NDArray[np.int64]
    given: FloatArray
    ledger: Ledger

    @property
    def weight(self) -> FloatArray:
        """float64[n, K], weights of sources that were trained on."""
        return self.view.weight

    @property
    def strata(self) -> FloatArray:
        """float64[n, K, G], weights of strata."""
        return self.view.cell_weight

    @property
    def local(self) -> FloatArray:
        """float64[n, K], the sources' own rewards."""
        return self.reward.local

    @property
    def present(self) -> BoolArray:
        """bool[n, K, G], cells that exist."""
        return self.ledger.here.present

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """(K, G) of every environment's task."""
        here = self.present
        return list(zip(here.any(-1).sum(-1).tolist(), here.any(-2).sum(-1).tolist(), strict=True))

    @cached_property
    def observations(self) -> NDArray[np.float32]:
        """float32[n, size], the flat observations that agents had."""
        return flat_observation(self.seen, self._padded)[0]

    @cached_property
    def clipped(self) -> FloatArray:
        """float64[n], shares of the next observations' entries that are clipped."""
        return flat_observation(self.view, self._padded)[1]

    @property
    def _padded(self) -> tuple[int, int]:
        return self.present.shape[1], self.present.shape[2]


class LazyRecord(Mapping[str, Any]):
    """The record of one environment's decision, made when it is read.

    It has the keys and values of :mod:`mixgym.envs.measuring.records`. What a training reads in
    every step (number, mixture and reward) is made without the rest.
    """

    __slots__ = ("_arrays", "_index", "_made")

    def __init__(self, arrays: StepArrays, index: int) -> None:
        self._arrays = arrays
        self._index = index
        self._made: dict[str, Any] | None = None

    def __getitem__(self, key: str) -> Any:
        """One part of the record."""
        if self._made is None and key in _QUICK:
            return _QUICK[key](self._arrays, self._index)
        return self._whole[key]

    @property
    def _whole(self) -> dict[str, Any]:
        if self._made is None:
            self._made = decision_record(decision_of(self._arrays, self._index))
        return self._made

    def __iter__(self) -> Iterator[str]:
        """Names of the parts."""
        return iter(self._whole)

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._whole)


def _mixture(a: StepArrays, i: int) -> dict[str, float]:
    return _named(a.weight[i], a.shapes[i][0])


def _reward(a: StepArrays, i: int) -> dict[str, Any]:
    terms = {name: float(np.asarray(x)[i]) for name, x in a.reward.components.items()}
    local = {k: v for k, v in _named(a.local[i], a.shapes[i][0]).items() if np.isfinite(v)}
    return {"global": float(np.asarray(a.reward.value)[i]), "local": local, "components": terms}


_QUICK: dict[str, Callable[[StepArrays, int], Any]] = {
    "decision": lambda a, i: int(a.decision[i]),
    "mixture": _mixture,
    "reward": _reward,
}


def _named(values: FloatArray, rows: int) -> dict[str, float]:
    return {f"source{k}": value for k, value in enumerate(values[:rows].tolist())}


def decision_of(a: StepArrays, i: int) -> Decision:
    """The decision of environment ``i``, as a single environment books it."""
    rows, groups = shape = a.shapes[i]
    mixture = Mixture(a.weight[i, :rows], a.strata[i, :rows, :groups])
    fresh = {name: v[i] for name, (v, where) in a.ledger.probes.items() if where[i]}
    terms = {name: np.asarray(x)[i] for name, x in a.reward.components.items()}
    names = tuple(f"source{k}" for k in range(rows))
    return Decision(
        names=names,
        action=a.trained.actions[i],
        observation=a.observations[i],
        mixture=mixture,
        plan=_plan(a, i, mixture),
        report=_report(a, i, shape),
        reward=Reward(np.asarray(a.reward.value)[i], a.local[i, :rows], terms),
        view=_row(a, i, shape),
        progress=_progress(a, i),
        probes={name: cut(values, shape) for name, values in fresh.items()},
        health={} if a.ledger.tilt is None else a.ledger.tilt.health(i, names),
        clipped=float(a.clipped[i]),
    )


def cut(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Without padding: float64[], [K] or [K, G]."""
    return values[tuple(slice(size) for size in shape[: values.ndim])]


def _plan(a: StepArrays, i: int, mixture: Mixture) -> IntervalPlan:
    tokens = cut(a.trained.tokens[i], mixture.strata.shape)
    cost = cut(a.ledger.here.task.cost[i], mixture.strata.shape)
    steps = int(np.asarray(a.trained.pace.steps)[i])
    return IntervalPlan(mixture, ((),) * steps, tokens, tokens * cost, tokens)


def _report(a: StepArrays, i: int, shape: tuple[int, int]) -> TrainReport:
    tokens, clock = cut(a.trained.tokens[i], shape), a.ledger.clock
    pace = a.trained.pace
    until = int(clock.used[a.decision[i]])
    ends = np.array([max(until - 1, 0), until]) / clock.total
    last = np.diff(rate_until(a.ledger.here.task.pick(np.array([i])), ends)) * clock.total
    return TrainReport(
        cut(a.trained.nll[i], shape) * tokens,
        tokens,
        tokens,
        tokens,
        learning_rate=float(last[0]),
        rates=float(np.asarray(pace.rate)[i] * np.asarray(pace.steps)[i]),
    )


def _progress(a: StepArrays, i: int) -> Progress:
    """Counts so far: what every decision uses is known."""
    decision, book = int(a.decision[i]), a.ledger
    cells, steps = int(a.present[i].sum()), int(book.clock.used[decision])
    return Progress(
        decisions=decision,
        steps=steps,
        supervised=int(a.supervised[i]),
        tokens=round(float(book.here.per_step[i]) * steps),
        measured=(decision + 1) * HELD_OUT_TOKENS * cells,
        probed=book.probed(decision, cells),
    )


def _row(a: StepArrays, i: int, shape: tuple[int, int]) -> View:
    """The view of one environment; what a record says of it is NaN in cells that do not exist."""
    here = cut(a.present[i], shape)
    named = {field.name: getattr(a.view, field.name) for field in fields(View)}
    own: dict[str, Any] = {
        name: cut(value[i], shape) for name, value in named.items() if isinstance(value, np.ndarray)
    }
    for name in ("cell_nll", "cell_error"):
        own[name] = np.where(here, own[name], np.nan)
    return View(**own)
