"""What a step of a bilevel estimator is given, what it gives back, and how a gap is found.

The gap of source j is alpha (l_j(w) - l_j(u)): the rise of its mean loss when the model u is pulled
towards validation, here from loss sums over all ranks.
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.errors import DivergenceError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import StepResult
from mixgym.envs.learners.pairing import Pairable
from mixgym.envs.ranks import summed

PLAIN = 3.0  # passes in a step of plain fine-tuning: a backward pass is two


@dataclass(frozen=True)
class StepData:
    """One step to take.

    Attributes:
        model: u.
        packs: the global batch.
        weights: float64[K], of the sources in the loss, or None where sampling does it.
        alpha: penalty of this step.
        step: number of the step, from 0.
    """

    model: Pairable
    packs: tuple[Pack, ...]
    weights: FloatArray | None
    alpha: float
    step: int


@dataclass(frozen=True)
class Measured:
    """What a step did.

    Attributes:
        result: of u.
        present: bool[K], sources with tokens in the global batch.
        gap: float64[K], alpha (l(w) - l(u)), 0 for sources that were not looked at; None if it was
            not measured.
        seen: bool[K], sources that were looked at; None: those of the batch.
    """

    result: StepResult
    present: BoolArray
    gap: FloatArray | None = None
    seen: BoolArray | None = None


def is_due(step: int, period: int) -> bool:
    """Whether the weights are updated at the end of this step."""
    return step % period == period - 1


def train_only(task: StepData) -> Measured:
    """A step without a look at the sources."""
    sums, loss = task.model.accumulate_weighted(task.packs, task.weights)
    return Measured(StepResult(summed(sums), loss, task.model.apply()), presence(task))


def presence(task: StepData) -> BoolArray:
    """bool[K], sources with tokens in the global batch."""
    present: BoolArray = summed(task.model.source_counts(task.packs)) > 0
    return present


def rows_to_look_at(task: StepData, options: BilevelOptions) -> tuple[Pack, ...]:
    """The packs on which the gap is measured."""
    if options.look != "even":
        return task.packs
    return task.model.even_packs(task.step // options.period) or task.packs


def per_source(
    task: StepData, look: tuple[Pack, ...], rise: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Token means of loss sums [K, G] over all ranks: float64[K], 0 where absent; bool[K].

    Raises:
        DivergenceError: if one is not finite.
    """
    counts = summed(task.model.source_counts(look))
    seen = counts > 0
    total = summed(rise.sum(-1))
    with np.errstate(invalid="ignore"):  # it is looked at next
        gap = np.where(seen, total / np.where(seen, counts, 1.0), 0.0)
    bad = np.flatnonzero(~np.isfinite(gap))
    if bad.size:
        raise DivergenceError(
            f"the value gap of source {task.model.source_names[bad[0]]!r} is {gap[bad[0]]} at step "
            f"{task.step + 1}: the second model diverges; lower training.learning_rate, or raise "
            "bilevel.alpha"
        )
    return gap, seen
