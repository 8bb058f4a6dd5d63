"""Real tasks, drawn by seed: which sources, how many rows, what is wrong with them, what budget.

A task takes three to seven sources of a pool and cuts each down to between a thirtieth and all of
its rows. At times one has its answers shuffled among its prompts, one repeats a few rows over and
over, one has long prompts. Targets, held-out sizes, budget and learning rate are drawn as well. A
task depends on its seed and on the names and sizes of the pool's sources, and on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.random_streams import stream
from mixgym.trainer.tasks.pool import Pool, PoolSource

REAL_SETS = {
    "real-train": range(0, 4096),
    "real-validation": range(1_000_000, 1_000_256),
    "real-test": range(2_000_000, 2_000_256),
}
"""Seeds of the frozen sets; they do not overlap."""

LEAST_SOURCES, MOST_SOURCES = 3, 7
LEAST_ROWS, MOST_ROWS = 30, 3000
"""Training rows of a source; no budget reads more than the most."""

SMALLEST = 1 / 30
"""Of a source's rows that a task takes at least."""

STEPS, DECISIONS = (200, 600), 32
RATES = (7e-4, 4e-3)
HELD_OUT_TOKENS = (100, 2000)
TARGETS = (0.0, 0.5, 1.0, 2.0)
PADDING = (200, 1500)
"""Characters of another source that are put before each prompt of a source with long ones."""

PASSES, LEAST_DISTINCT = (4, 20), 8
_EVEN_TARGETS, _CHANGED = 0.7, 0.3

Change = Literal["none", "shuffled", "repeated", "long"]
CHANGES: tuple[Change, ...] = ("shuffled", "repeated", "long")


@dataclass(frozen=True)
class TaskSource:
    """A source as a task has it.

    Attributes:
        name: in the pool, and in the task.
        rows: training rows, at most: those that are held out after a change are missing.
        distinct: different rows among them.
        target: weight in rewards and evaluation.
        change: shuffled answers, a few rows repeated, long prompts, or none.
        donor: source whose texts make the prompts long.
        padding: how many characters of it.
    """

    name: str
    rows: int
    distinct: int
    target: float = 1.0
    change: Change = "none"
    donor: str | None = None
    padding: int = 0


@dataclass(frozen=True)
class RealTask:
    """A task.

    Attributes:
        name: of its set and number.
        seed: that it was drawn by, and that its rows are drawn by.
        sources: three to seven.
        steps, interval: the budget, and the steps between two decisions.
        learning_rate: its peak.
        held_out_tokens: per source in the reward split, at most.
    """

    name: str
    seed: int
    sources: tuple[TaskSource, ...]
    steps: int
    interval: int
    learning_rate: float
    held_out_tokens: int


def real_tasks(name: str, pool: Pool, limit: int | None = None) -> list[RealTask]:
    """The first tasks of a frozen set.

    Args:
        name: of :data:`REAL_SETS`.
        pool: what they are drawn from.
        limit: how many; None: all.

    Raises:
        ConfigError: for an unknown set, no tasks, or a pool that is too small.
    """
    if name not in REAL_SETS:
        raise ConfigError(f"--tasks {name}: unknown; {did_you_mean(name, REAL_SETS)}")
    seeds = REAL_SETS[name]
    if limit is not None and not 1 <= limit <= len(seeds):
        raise ConfigError(f"--limit {limit}: {name} has 1 to {len(seeds)} tasks to give")
    return [draw_task(pool, seed) for seed in seeds[:limit]]


def draw_task(pool: Pool, seed: int) -> RealTask:
    """The task of a seed.

    Raises:
        ConfigError: if the pool has too few sources.
    """
    _check(pool)
    rng = stream(seed, "real task")
    chosen = _choose(pool, rng)
    targets = _targets(chosen, rng)
    sources = [_sized(source, target, rng) for source, target in zip(chosen, targets, strict=True)]
    sources = _changed(sources, chosen, pool, rng)
    steps = round(_log_uniform(rng, STEPS))
    return RealTask(
        name=_name(seed),
        seed=seed,
        sources=tuple(sources),
        steps=steps,
        interval=max(1, round(steps / DECISIONS)),
        learning_rate=float(f"{_log_uniform(rng, RATES):.3g}"),
        held_out_tokens=round(_log_uniform(rng, HELD_OUT_TOKENS)),
    )


def _check(pool: Pool) -> None:
    useful = sum(not source.is_noise for source in pool.sources.values())
    if len(pool.sources) < LEAST_SOURCES or useful < 2:
        raise ConfigError(
            f"--pool {pool.folder}: has {len(pool.sources)} sources, {useful} of them no noise; a "
            f"task takes at least {LEAST_SOURCES}, of which two are targets: add some"
        )


def _name(seed: int) -> str:
    for name, seeds in REAL_SETS.items():
        if seed in seeds:
            return f"{name}-{seed - seeds.start:04d}"
    return f"real-{seed}"


def _choose(pool: Pool, rng: np.random.Generator) -> list[PoolSource]:
    """Three to seven sources, two of which at least can be targets."""
    names = list(pool.sources)
    count = int(rng.integers(LEAST_SOURCES, min(MOST_SOURCES, len(names)) + 1))
    while True:
        drawn = [pool.sources[names[i]] for i in rng.permutation(len(names))[:count]]
        if sum(not source.is_noise for source in drawn) >= 2:
            return sorted(drawn, key=lambda source: source.name)


def _targets(chosen: Sequence[PoolSource], rng: np.random.Generator) -> list[float]:
    """All 1, or drawn with two positive ones at least; noise has 0."""
    useful = np.array([not source.is_noise for source in chosen])
    if rng.random() < _EVEN_TARGETS:
        return useful.astype(float).tolist()
    while True:
        drawn = rng.choice(TARGETS, len(chosen)) * useful
        if (drawn > 0).sum() >= 2:
            return [float(target) for target in drawn]


def _sized(source: PoolSource, target: float, rng: np.random.Generator) -> TaskSource:
    size = len(source.splits["train"])
    least = min(size, max(LEAST_ROWS, SMALLEST * size))
    rows = min(MOST_ROWS, round(_log_uniform(rng, (least, size))))
    return TaskSource(source.name, rows, rows, target)


def _changed(
    sources: Sequence[TaskSource],
    chosen: Sequence[PoolSource],
    pool: Pool,
    rng: np.random.Generator,
) -> list[TaskSource]:
    """The sources, at most one with each change, and each with at most one."""
    found = list(sources)
    waiting = [i for i, s in enumerate(chosen) if s.answers and not s.is_noise]
    waiting = [waiting[i] for i in rng.permutation(len(waiting))]
    for change in CHANGES:
        # all are drawn, whether they come to pass or not, so that one does not move the next
        wanted, draw = rng.random() < _CHANGED, rng.random(2)
        place = _place(change, waiting, found) if wanted else None
        if place is not None:
            waiting.remove(place)
            found[place] = _change(found[place], change, draw, pool)
    return found


def _place(change: Change, waiting: Sequence[int], found: Sequence[TaskSource]) -> int | None:
    """The source that is changed; shuffling may not leave fewer than two targets."""
    for place in waiting:
        others = sum(s.target > 0 for i, s in enumerate(found) if i != place)
        if change != "shuffled" or others >= 2:
            return place
    return None


def _change(source: TaskSource, change: Change, draw: np.ndarray, pool: Pool) -> TaskSource:
    name, rows, target = source.name, source.rows, source.target
    if change == "shuffled":
        return TaskSource(name, rows, rows, 0.0, change)
    if change == "repeated":
        distinct = max(LEAST_DISTINCT, round(rows / _between(draw[0], PASSES)))
        return TaskSource(name, rows, min(distinct, rows), target, change)
    donors = [other for other in pool.sources if other != name]
    donor = donors[int(draw[0] * len(donors))]
    return TaskSource(name, rows, rows, target, change, donor, round(_between(draw[1], PADDING)))


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return _between(rng.random(), bounds)


def _between(share: float, bounds: tuple[float, float]) -> float:
    """``share`` of the way from the lower bound to the upper one, in logarithms."""
    low, high = np.log(bounds)
    return float(np.exp(low + share * (high - low)))
