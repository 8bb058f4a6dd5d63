"""Tasks of the fast world: the constants of learning curves, drawn from seeds.

A task has 3 to 12 sources whose sizes span three orders of magnitude, random targets, transfer
between sources, strata that open only after easier ones, and now and then a source of pure noise.
The sets for training, validation and test are frozen ranges of seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError

LEAST_SOURCES, MAX_SOURCES, MAX_STRATA = 3, 12, 4
_SINGLE_SOURCES = 4
TASK_SETS = {
    "train": range(0, 4096),
    "validation": range(1_000_000, 1_000_064),
    "test": range(2_000_000, 2_000_064),
}
"""Seeds of the frozen task sets; they do not overlap."""


@dataclass(frozen=True)
class CurveTask:
    """The constants of one task, or of a batch of them (any leading axes).

    Absent sources and strata (padding) have size 0 and an NLL of 0.

    Attributes:
        targets: float64[..., K], weight in rewards and evaluation.
        size: float64[..., K, G], unique supervised tokens.
        floor, amplitude: float64[..., K, G], nats: NLL starts at their sum and falls to the floor.
        scale: float64[..., K, G], tokens after which the fall has begun in earnest.
        exponent: float64[..., K, G], of the power law.
        transfer: float64[..., K, K]; what a token of source j is worth to source i.
        spread: float64[..., G, G], the same between strata.
        threshold: float64[..., K, 1], mastery of a stratum at which the next one opens.
        patience: float64[..., K, 1], passes over which the worth of a repeated token decays.
        overfit: float64[..., K, 1], nats lost per e-fold of passes beyond the fourth.
        budget: float64[...], supervised tokens in an episode.
        noise: float64[...], relative standard deviation of a measurement.
    """

    targets: FloatArray
    size: FloatArray
    floor: FloatArray
    amplitude: FloatArray
    scale: FloatArray
    exponent: FloatArray
    transfer: FloatArray
    spread: FloatArray
    threshold: FloatArray
    patience: FloatArray
    overfit: FloatArray
    budget: FloatArray
    noise: FloatArray

    @cached_property
    def inverse_size(self) -> FloatArray:
        """float64[..., K, G], 1 / size; 0 in absent cells."""
        return np.divide(1.0, self.size, out=np.zeros_like(self.size), where=self.size > 0)

    @property
    def present(self) -> NDArray[np.bool_]:
        """bool[..., K, G], cells that exist."""
        return self.size > 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources (of a single task)."""
        return tuple(f"source{k}" for k in range(self.targets.shape[-1]))

    def pick(self, index: NDArray[np.intp]) -> "CurveTask":
        """The tasks at ``index`` of the leading axis."""
        return CurveTask(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_task(
    seed: int,
    *,
    sources: int | None = None,
    strata: int | None = None,
    noise_sources: int | None = None,
) -> CurveTask:
    """Draw a task.

    Args:
        seed: of everything in it.
        sources: K, or None to draw it from 3 to 12.
        strata: G, or None to draw it from 2 to 4.
        noise_sources: how many of the sources are pure noise, or None for 0 or 1.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 77]))
    drawn_sources = int(rng.integers(LEAST_SOURCES, MAX_SOURCES + 1))
    drawn_strata = int(rng.integers(2, MAX_STRATA + 1))
    drawn_noise = int(rng.random() < 0.5)
    count = drawn_sources if sources is None else sources
    groups = drawn_strata if strata is None else strata
    junk = np.arange(count) < (drawn_noise if noise_sources is None else noise_sources)
    rng.shuffle(junk)
    shape, column = (count, groups), (count, 1)
    harder = np.linspace(0.0, 1.0, groups)
    budget = 10.0 ** rng.uniform(5.0, 6.0)
    size = budget * 10.0 ** rng.uniform(-2.5, 0.5, column) / groups * np.ones(shape)
    floor = rng.uniform(0.3, 1.5, column) + rng.uniform(0.0, 0.6, column) * harder
    amplitude = rng.uniform(1.0, 4.0, column) * (1.0 + 0.3 * harder)
    scale = budget * 10.0 ** (
        rng.uniform(-3.0, -1.5, column) + rng.uniform(0, 0.8, column) * harder
    )
    exponent = rng.uniform(0.3, 0.9, column) * np.ones(shape)
    targets = np.where(rng.random(count) < 0.7, 1.0, rng.choice([0.0, 0.5, 2.0], count))
    targets = np.where(junk, 0.0, targets)
    if not targets.any():
        targets = np.where(junk, 0.0, 1.0)
    amplitude = np.where(junk[:, None], 0.02, amplitude)
    floor = np.where(junk[:, None], floor + 3.0, floor)
    return CurveTask(
        targets=targets,
        size=size,
        floor=floor,
        amplitude=amplitude,
        scale=scale,
        exponent=exponent,
        transfer=_transfer(rng, junk),
        spread=rng.uniform(0.2, 0.7) ** np.abs(np.arange(groups)[:, None] - np.arange(groups)),
        threshold=rng.uniform(0.1, 0.5, column) * (rng.random(column) < 0.7),
        patience=rng.uniform(3.0, 15.0, column),
        overfit=rng.uniform(0.0, 0.3, column),
        budget=np.array(budget),
        noise=np.array(10.0 ** rng.uniform(-3.0, -2.0)),
    )


def task_set(name: str | None, seed: int, strata: int) -> "Sequence[int | CurveTask]":
    """The tasks that an environment draws from: a frozen set by name, or a single one by seed.

    The single one has :data:`_SINGLE_SOURCES` sources: spaces are the same for every seed.
    """
    return (
        [sample_task(seed, sources=_SINGLE_SOURCES, strata=strata)]
        if name is None
        else TASK_SETS[name]
    )


def least_sources(tasks: Sequence[int | CurveTask]) -> int:
    """How many sources every task has, at least; drawn ones may have :data:`LEAST_SOURCES`."""
    own = [task.size.shape[-2] for task in tasks if not isinstance(task, int)]
    return min(own) if len(own) == len(tasks) else min([LEAST_SOURCES, *own])


def tokens_per_step(task: CurveTask, steps: int) -> FloatArray:
    """float64[...], whole supervised tokens in each of the ``steps`` of the budget."""
    return np.maximum(np.rint(task.budget / steps), 1.0)


def _transfer(rng: np.random.Generator, junk: NDArray[np.bool_]) -> FloatArray:
    """What sources are worth to each other: by nearness in a small space; noise is worth 0."""
    places = rng.normal(size=(len(junk), 3))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    near = np.clip(places @ places.T, 0.0, 1.0) ** 2 * rng.uniform(0.0, 0.5)
    near *= rng.uniform(0.5, 1.0, near.shape)
    near[:, junk] = 0.0
    near[junk, :] = 0.0
    np.fill_diagonal(near, 1.0)
    return near


def pad_task(task: CurveTask, sources: int, strata: int) -> CurveTask:
    """The task with absent sources and strata up to (``sources``, ``strata``).

    Raises:
        ConfigError: if it has more than that.
    """
    count, groups = task.size.shape
    if count > sources or groups > strata:
        raise ConfigError(
            f"environment.max_sources, max_strata = {(sources, strata)}: a task has {count} "
            f"sources and {groups} strata"
        )
    wide = ((0, sources - count), (0, strata - groups))
    tall = ((0, sources - count), (0, 0))

    def cells(values: FloatArray, filler: float) -> FloatArray:
        return np.pad(values, wide, constant_values=filler)

    return CurveTask(
        targets=np.pad(task.targets, wide[:1]),
        size=cells(task.size, 0.0),
        floor=cells(task.floor, 0.0),
        amplitude=cells(task.amplitude, 0.0),
        scale=cells(task.scale, 1.0),
        exponent=cells(task.exponent, 1.0),
        transfer=np.pad(task.transfer, (wide[0], wide[0])),
        spread=np.pad(task.spread, (wide[1], wide[1])),
        threshold=np.pad(task.threshold, tall),
        patience=np.pad(task.patience, tall, constant_values=1.0),
        overfit=np.pad(task.overfit, tall),
        budget=task.budget,
        noise=task.noise,
    )


def stack_tasks(tasks: list[CurveTask], sources: int, strata: int) -> CurveTask:
    """Padded tasks along a new leading axis."""
    padded = [pad_task(task, sources, strata) for task in tasks]
    return CurveTask(
        **{f.name: np.stack([getattr(t, f.name) for t in padded]) for f in fields(CurveTask)}
    )


def stacked(tasks: Sequence[int | CurveTask], sources: int, strata: int) -> CurveTask:
    """Tasks, or those of seeds, stacked; the frozen sets are drawn once per process."""
    if isinstance(tasks, range):
        return _stacked_range(tasks, sources, strata)
    return _stacked(tasks, sources, strata)


def _stacked(tasks: Sequence[int | CurveTask], sources: int, strata: int) -> CurveTask:
    drawn = [sample_task(task) if isinstance(task, int) else task for task in tasks]
    return stack_tasks(drawn, sources, strata)


_stacked_range = lru_cache(maxsize=8)(_stacked)
