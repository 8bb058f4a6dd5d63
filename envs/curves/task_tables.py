"""What follows from many tasks at once: priors, scales of actions, references; by environment."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.envs.curves.dynamics import CurveState, train_nll
from mixgym.envs.curves.probes import reference_losses
from mixgym.envs.curves.task import CurveTask, rate_until, tokens_per_step
from mixgym.envs.curves.tasks.sets import Tasks, stacked
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.actions import Levels
from mixgym.envs.spaces.mixture import floored, last_sum, logit_scale, normalise
from mixgym.envs.spaces.priors import prior_weights
from mixgym.envs.spaces.view import View


class Clock:
    """How the budget is spread over decisions; an episode that has ended stands still.

    Args:
        decisions: in an episode.
        interval: steps between two decisions.
        steps: in an episode; the last interval may be shorter.

    Attributes:
        decisions, total: of an episode: decisions, and steps.
        used: int64[decisions + 1], steps that so many decisions take.
        steps: float64[decisions + 1], of the interval after so many decisions.
        done: float64[decisions + 1], share of the budget that they use.
    """

    def __init__(self, decisions: int, interval: int, steps: int) -> None:
        self.decisions = decisions
        self.used: IntArray = np.minimum(np.arange(decisions + 1) * interval, steps)
        self.total = int(self.used[-1])
        self.steps: FloatArray = np.diff(self.used, append=self.total).astype(np.float64)
        self.done: FloatArray = self.used / self.total

    def at(self, decision: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n], places in these tables."""
        return np.minimum(decision, self.decisions)


@dataclass(frozen=True)
class Constants:
    """What n environments have in constants: one task each.

    Attributes:
        task: stacked along the first axis.
        prior: weights of sources, and of strata in each.
        base: the same with the floor mixed in.
        scale: logit scales of the levels, float64[n, 1] and [n, 1, 1].
        per_step: float64[n], tokens that an optimiser step reads.
        rate: float64[n, decisions + 1], mean relative learning rate of the interval after so many
            decisions; 0 after the last one.
        reference: (held-out, training) NLL of the reference, float64[n, K, G] each, or None.
    """

    task: CurveTask
    prior: Levels
    base: Levels
    scale: Levels
    per_step: FloatArray
    rate: FloatArray
    reference: tuple[FloatArray, FloatArray] | None

    @cached_property
    def present(self) -> BoolArray:
        """bool[n, K, G], cells that exist."""
        return self.task.present

    @cached_property
    def sources(self) -> BoolArray:
        """bool[n, K], sources that exist."""
        return np.asarray(self.present.any(-1))

    @cached_property
    def target_weights(self) -> FloatArray:
        """float64[n, K], targets that sum to 1."""
        return np.asarray(self.task.targets / self.task.targets.sum(-1, keepdims=True))

    def by_source(self, cells: FloatArray) -> FloatArray:
        """float64[n, K], mean over the strata that exist."""
        return last_sum(cells * self.task.cell_mean)

    def judged(self, view: View, before: FloatArray, now: FloatArray) -> View:
        """The view with losses of sources as they are, without the errors of held-out sets.

        Args:
            view: of n environments.
            before: float64[n, K, G], NLL before the last decision.
            now: float64[n, K, G], after it.
        """
        begun = train_nll(self.task, CurveState.start(self.task))
        start, then, after = (self.by_source(cells) for cells in (begun, before, now))
        return replace(view, nll_start=start, nll_before=then, nll=after)


class TaskTable:
    """The constants of all tasks that a batch draws from.

    Args:
        tasks: seeds, or tasks themselves.
        options: prior, floor, reach.
        shape: (K_max, G_max).
        clock: spreads the budget over decisions.
        reference: whether the reference's losses are needed.

    Raises:
        ConfigError: for too little padding, or a prior by name.
    """

    def __init__(
        self,
        tasks: Tasks,
        options: EnvironmentOptions,
        shape: tuple[int, int],
        clock: Clock,
        reference: bool,
    ) -> None:
        self._made_of = tasks, options, shape, clock, reference
        task = stacked(tasks, *shape).by_cell()
        prior, present = priors(task, options), task.present
        top, inner = scales(task, options.reach)
        self.shapes = np.stack([present.any(-1).sum(-1), present.any(-2).sum(-1)], -1).tolist()
        self.noise, self.stays = task.noise, task.stays
        self._all = Constants(
            task=task,
            prior=prior,
            base=(
                floored(prior[0], np.asarray(present.any(-1)), options.floor),
                floored(prior[1], present, options.floor),
            ),
            scale=(top[:, None], inner[:, None, None]),
            per_step=tokens_per_step(task, clock.total),
            rate=_mean_rates(task, clock),
            reference=reference_losses(task) if reference else None,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is made of: the frozen sets are a range of seeds."""
        return TaskTable, self._made_of

    def pick(self, index: NDArray[np.intp]) -> Constants:
        """Those of the tasks ``index`` int[n]."""
        found = self._all
        known = found.reference
        return Constants(
            task=found.task.pick(index),
            prior=(found.prior[0][index], found.prior[1][index]),
            base=(found.base[0][index], found.base[1][index]),
            scale=(found.scale[0][index], found.scale[1][index]),
            per_step=found.per_step[index],
            rate=found.rate[index],
            reference=None if known is None else (known[0][index], known[1][index]),
        )


def _mean_rates(task: CurveTask, clock: Clock) -> FloatArray:
    """float64[tasks, decisions + 1], see :class:`Constants`."""
    until = rate_until(task, clock.used[:, None] / clock.total)
    passed = np.diff(until, axis=0, append=until[-1:])
    return np.ascontiguousarray((passed * clock.total / np.maximum(clock.steps, 1.0)[:, None]).T)


def priors(tasks: CurveTask, options: EnvironmentOptions) -> Levels:
    """Of every task the prior over sources, float64[tasks, K], and strata, [tasks, K, G].

    Raises:
        ConfigError: for a prior by name: tasks have other sources each.
    """
    if not isinstance(options.prior, str):
        raise ConfigError("environment.prior: a batch of tasks takes a word, not weights by name")
    present = tasks.present
    size = last_sum(tasks.size)
    base = prior_weights(options.prior, size, tasks.source_cost, tasks.targets)
    return normalise(base, np.asarray(size > 0)), normalise(tasks.size, present)


def scales(tasks: CurveTask, reach: float) -> Levels:
    """float64[tasks] each: the logit scale of the two levels."""
    present = tasks.present
    top = [logit_scale(int(n), reach) for n in present.any(-1).sum(-1)]
    inner = [logit_scale(int(n), reach) for n in present.any(-2).sum(-1)]
    return np.array(top), np.array(inner)
