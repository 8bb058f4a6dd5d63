"""A task of the fast world: the constants of learning curves, of one run or of a batch of them.

What they mean is said in :mod:`mixgym.envs.curves.dynamics`; where tasks come from, in
:mod:`mixgym.envs.curves.tasks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError

LEAST_SOURCES, MAX_SOURCES, MAX_STRATA = 3, 12, 4

CONSTANT, LINEAR, COSINE = 0.0, 1.0, 2.0
"""Shapes of the learning rate after warm-up: ``CurveTask.schedule``."""


@dataclass(frozen=True)
class CurveTask:
    """The constants of one task, or of a batch of them (any leading axes).

    Absent sources and strata (padding) have size 0 and an NLL of 0. "Intrinsic time" is supervised
    tokens, each counted by its learning rate over that of the task's fit.

    Attributes:
        targets: float64[..., K], weight in rewards and evaluation.
        size: float64[..., K, G], unique supervised tokens.
        cost: float64[..., K, G], tokens read per supervised token, at least 1.
        floor, amplitude: float64[..., K, G], nats: the own part of NLL starts at their sum and
            falls to the floor.
        scale: float64[..., K, G], intrinsic time after which the fall has begun in earnest.
        exponent: float64[..., K, G], of the power law.
        base, base_scale, base_exponent: float64[..., K, 1], the part that any training teaches.
        transfer: float64[..., K, K]; what a token of source j is worth to source i.
        spread: float64[..., G, G], the same between strata.
        threshold: float64[..., K, 1], mastery of a stratum at which the next one opens.
        lasting: float64[...], share of what was learnt that is never forgotten.
        forgetting: float64[...], decay of the rest per unit of intrinsic time.
        known: float64[..., K, 1], mass that is there before training, and may be forgotten.
        rarity, kinship: float64[..., K, 1], nats per e-fold by which a source is rare in what
            the model is shown, and the share that other sources' text counts for, 0 to 1.
        fading: float64[...], per unit of intrinsic time, how fast what was shown stops counting.
        begun: float64[...], intrinsic time that what the model was before training counts for.
        warmth: float64[..., K, 1], nats that training at the fit's learning rate costs.
        cooling: float64[...], per unit of intrinsic time: how fast that follows the rate.
        patience: float64[..., K, 1], passes over which the worth of a repeated token decays.
        overfit: float64[..., K, 1], nats lost per e-fold of passes beyond the free ones.
        free_passes: float64[..., K, 1], before repetition begins to over-fit.
        budget: float64[...], tokens read in an episode.
        batch, batch_power: float64[...], supervised tokens of a step of the fit, and the power by
            which a larger step takes longer in intrinsic time.
        rate_harm: float64[...], the logarithm of what is lost again at the fit's learning rate.
        rate, warmup, schedule: float64[...], highest learning rate over that of the fit, share of
            the budget with a rising rate, shape afterwards.
        noise: float64[..., K, G], relative standard error of a held-out loss.
        stays: float64[...], share of that error's variance which is the same in every measurement
            of a run, the rows being the same.
    """

    targets: FloatArray
    size: FloatArray
    cost: FloatArray
    floor: FloatArray
    amplitude: FloatArray
    scale: FloatArray
    exponent: FloatArray
    base: FloatArray
    base_scale: FloatArray
    base_exponent: FloatArray
    transfer: FloatArray
    spread: FloatArray
    threshold: FloatArray
    lasting: FloatArray
    forgetting: FloatArray
    known: FloatArray
    rarity: FloatArray
    kinship: FloatArray
    fading: FloatArray
    begun: FloatArray
    warmth: FloatArray
    cooling: FloatArray
    patience: FloatArray
    overfit: FloatArray
    free_passes: FloatArray
    budget: FloatArray
    batch: FloatArray
    batch_power: FloatArray
    rate_harm: FloatArray
    rate: FloatArray
    warmup: FloatArray
    schedule: FloatArray
    noise: FloatArray
    stays: FloatArray

    @cached_property
    def inverse_size(self) -> FloatArray:
        """float64[..., K, G], 1 / size; 0 in absent cells."""
        return np.divide(1.0, self.size, out=np.zeros_like(self.size), where=self.size > 0)

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """bool[..., K, G], cells that exist."""
        return np.asarray(self.size > 0)

    @cached_property
    def cell_cost(self) -> FloatArray:
        """float64[..., K, G], tokens read per supervised token; NaN in absent cells."""
        return np.where(self.present, self.cost, np.nan)

    @cached_property
    def source_cost(self) -> FloatArray:
        """float64[..., K], the same of whole sources; NaN for absent ones."""
        size = self.size.sum(-1)
        read = (self.size * self.cost).sum(-1)
        return np.divide(read, size, out=np.full(size.shape, np.nan), where=size > 0)

    @cached_property
    def forgets(self) -> bool:
        """Whether anything is forgotten, or was known before, in any of the tasks."""
        return bool(np.any(self.lasting < 1.0))

    @cached_property
    def cell_mean(self) -> FloatArray:
        """float64[..., K, G], weights of a mean over the strata that exist."""
        present = self.present
        return np.asarray(present / np.maximum(present.sum(-1, keepdims=True), 1))

    @cached_property
    def gated(self) -> bool:
        """Whether a stratum opens only after another one."""
        return bool(np.any(self.threshold > 0.0))

    @cached_property
    def gates(self) -> FloatArray:
        """float64[..., K, G], 1 for strata that another one opens, else 0."""
        gates: FloatArray = np.ones_like(self.size) * (self.threshold > 0.0)
        gates[..., 0] = 0.0
        return gates

    @cached_property
    def opens_at(self) -> FloatArray:
        """float64[..., K, G], the threshold of every stratum's gate."""
        return np.asarray(self.gates * self.threshold)

    @cached_property
    def interferes(self) -> bool:
        """Whether a source takes something from another one."""
        return bool(np.any(self.transfer < 0.0))

    @cached_property
    def common(self) -> bool:
        """Whether there are terms that all strata of a source share."""
        return bool(np.any(self.base != 0.0) or np.any(self.warmth != 0.0) or self.exposes)

    @cached_property
    def exposes(self) -> bool:
        """Whether a source loses by being left out."""
        return bool(np.any(self.rarity > 0.0))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources (of a single task)."""
        return tuple(f"source{k}" for k in range(self.targets.shape[-1]))

    def by_cell(self) -> "CurveTask":
        """The same with a value per cell where dynamics want one: quicker than a column."""
        wide = np.ones_like(self.size)
        return replace(self, **{name: wide * getattr(self, name) for name in _WIDE})

    def pick(self, index: NDArray[np.intp]) -> "CurveTask":
        """The tasks at ``index`` of the leading axis."""
        return CurveTask(**{name: getattr(self, name)[index] for name in _FIELDS})

    def sources(self, index: Sequence[int] | NDArray[np.intp]) -> "CurveTask":
        """A single task with these of its sources, in this order."""
        index = np.asarray(index)
        kept = {name: getattr(self, name)[index] for name in BY_SOURCE}
        others = {name: getattr(self, name) for name in _FIELDS if name not in BY_SOURCE}
        return CurveTask(**{**others, **kept, "transfer": self.transfer[np.ix_(index, index)]})


_FIELDS = tuple(field.name for field in fields(CurveTask))
_CELLS = {
    "size": 0.0,
    "cost": 1.0,
    "floor": 0.0,
    "amplitude": 0.0,
    "scale": 1.0,
    "exponent": 1.0,
    "noise": 0.0,
}
_COLUMNS = {
    "base": 0.0,
    "base_scale": 1.0,
    "base_exponent": 1.0,
    "threshold": 0.0,
    "known": 0.0,
    "rarity": 0.0,
    "kinship": 0.0,
    "warmth": 0.0,
    "patience": 1.0,
    "overfit": 0.0,
    "free_passes": 1.0,
}
_WIDE = ("patience", "overfit", "free_passes")  # columns that dynamics take with cells
BY_SOURCE = ("targets", *_CELLS, *_COLUMNS)
"""Fields with a row per source."""


def simple(sources: int, strata: int) -> dict[str, FloatArray]:
    """Constants under which nothing but own and transferred tokens counts, for a single task.

    No cost of prompts, no forgetting, a constant learning rate, no common part, no error that
    stays: what is left to give is targets, sizes, floor, amplitude, scale, exponent, transfer,
    spread, threshold, patience, overfit, budget and noise.
    """
    column, one, none = np.ones((sources, 1)), np.array(1.0), np.array(0.0)
    return {
        "cost": np.ones((sources, strata)),
        "base": 0.0 * column,
        "base_scale": column,
        "base_exponent": column,
        "lasting": one,
        "forgetting": none,
        "known": 0.0 * column,
        "rarity": 0.0 * column,
        "kinship": 0.0 * column,
        "fading": none,
        "begun": one,
        "warmth": 0.0 * column,
        "cooling": none,
        "free_passes": 4.0 * column,
        "batch": one,
        "batch_power": one,
        "rate_harm": none,
        "rate": one,
        "warmup": none,
        "schedule": np.array(CONSTANT),
        "stays": none,
    }


def tokens_per_step(task: CurveTask, steps: int) -> FloatArray:
    """float64[...], whole tokens read in each of the ``steps`` of the budget."""
    return np.maximum(np.rint(task.budget / steps), 1.0)


def supervised_tokens(task: CurveTask, weights: FloatArray, read: FloatArray) -> FloatArray:
    """float64[..., K, G], supervised tokens among so many tokens that are read.

    Args:
        task: gives the costs.
        weights: float64[..., K, G], shares of supervised tokens, summing to 1.
        read: float64[...].
    """
    return weights * supervised_total(task, weights, read)[..., None, None]


def supervised_total(task: CurveTask, weights: FloatArray, read: FloatArray) -> FloatArray:
    """float64[...], the sum of :func:`supervised_tokens`."""
    return np.asarray(read / (weights * task.cost).sum((-2, -1)))


def rate_until(task: CurveTask, done: FloatArray) -> FloatArray:
    """float64[...], integral of the relative learning rate up to a share ``done`` of the budget.

    Linear warm-up, then constant, linear to 0, or half a cosine to 0.
    """
    warm = np.minimum(done, task.warmup)
    rising = 0.5 * warm * warm / np.maximum(task.warmup, 1e-12)
    rest = np.maximum(1.0 - task.warmup, 1e-12)
    late = np.clip((done - task.warmup) / rest, 0.0, 1.0)
    linear = late - 0.5 * late * late
    cosine = 0.5 * late + np.sin(np.pi * late) / (2.0 * np.pi)
    falling = np.where(
        task.schedule == CONSTANT, late, np.where(task.schedule == LINEAR, linear, cosine)
    )
    return np.asarray(task.rate * (rising + rest * falling))


def rates_until(task: CurveTask, steps: int) -> FloatArray:
    """float64[steps + 1], sum of a single task's relative learning rates before every step."""
    return rate_until(task, np.arange(steps + 1) / steps) * steps


def pad_task(task: CurveTask, sources: int, strata: int) -> CurveTask:
    """The task with absent sources and strata up to (``sources``, ``strata``).

    Raises:
        ConfigError: if it has more than that.
    """
    return stack_tasks([task], sources, strata).pick(np.array(0))


def stack_tasks(tasks: Sequence[CurveTask], sources: int, strata: int) -> CurveTask:
    """Tasks along a new leading axis, each padded up to (``sources``, ``strata``).

    Raises:
        ConfigError: if one has more than that.
    """
    for task in tasks:
        _check_room(task, sources, strata)
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(_CELLS, (sources, strata)),
        **dict.fromkeys(_COLUMNS, (sources, 1)),
        "targets": (sources,),
        "transfer": (sources, sources),
        "spread": (strata, strata),
    }
    fillers = {**_CELLS, **_COLUMNS}
    stacked = {}
    for name in _FIELDS:
        whole = np.full((len(tasks), *shapes.get(name, ())), fillers.get(name, 0.0))
        for row, task in zip(whole, tasks, strict=True) if whole.ndim > 1 else ():
            own = getattr(task, name)
            row[tuple(slice(size) for size in own.shape)] = own
        stacked[name] = whole if whole.ndim > 1 else np.array([getattr(t, name) for t in tasks])
    return CurveTask(**stacked)


def _check_room(task: CurveTask, sources: int, strata: int) -> None:
    count, groups = task.size.shape
    if count > sources or groups > strata:
        raise ConfigError(
            f"environment.max_sources, max_strata = {(sources, strata)}: a task has {count} "
            f"sources and {groups} strata"
        )
