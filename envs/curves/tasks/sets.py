"""The frozen sets of tasks, by name, and tasks stacked for a batch.

``train``, ``validation`` and ``test`` are drawn from the wide prior alone; ``world-train`` and so
on around the fitted worlds of the package and from the wide prior with costs, forgetting, learning
rates and errors of held-out losses. Seeds of different sets do not overlap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

from mixgym.envs.curves.task import LEAST_SOURCES, CurveTask, stack_tasks
from mixgym.envs.curves.tasks.around import WorldTasks
from mixgym.envs.curves.tasks.prior import sample_task

_SINGLE_SOURCES = 4
_SEEDS = {
    "train": range(0, 4096),
    "validation": range(1_000_000, 1_000_064),
    "test": range(2_000_000, 2_000_064),
}
WORLD = "world-"

Tasks = Sequence[int | CurveTask]
"""Tasks, or seeds of the wide prior."""


@dataclass(frozen=True)
class DrawnTasks(Sequence[int | CurveTask]):
    """Tasks around fitted worlds, by seed; compared and pickled as what they are drawn from.

    Attributes:
        source: what draws.
        seeds: of the tasks.
    """

    source: WorldTasks
    seeds: range

    def __len__(self) -> int:
        return len(self.seeds)

    @overload
    def __getitem__(self, index: int) -> CurveTask: ...
    @overload
    def __getitem__(self, index: slice) -> "DrawnTasks": ...
    def __getitem__(self, index: int | slice) -> "CurveTask | DrawnTasks":
        if isinstance(index, slice):
            return DrawnTasks(self.source, self.seeds[index])
        return self.source.draw(self.seeds[index])

    def __iter__(self) -> Iterator[CurveTask]:
        return (self.source.draw(seed) for seed in self.seeds)


TASK_SETS: dict[str, Tasks] = {
    **_SEEDS,
    **{WORLD + name: DrawnTasks(WorldTasks(), seeds) for name, seeds in _SEEDS.items()},
}
"""The frozen sets."""


def named_tasks(name: str, worlds: Sequence[str] = ()) -> Tasks:
    """The tasks of a frozen set.

    Args:
        name: ``train``, ``validation``, ``test``, or one of these after ``world-``.
        worlds: files of fitted worlds that the tasks of ``world-...`` are drawn around, instead of
            those of the package.
    """
    if not worlds:
        return TASK_SETS[name]
    return DrawnTasks(WorldTasks(tuple(worlds)), _SEEDS[name.removeprefix(WORLD)])


def task_set(name: str | None, seed: int, strata: int) -> Tasks:
    """The tasks that an environment draws from: a frozen set by name, or a single one by seed.

    The single one has :data:`_SINGLE_SOURCES` sources: spaces are the same for every seed.
    """
    if name is not None:
        return named_tasks(name)
    return [sample_task(seed, sources=_SINGLE_SOURCES, strata=strata)]


def drawn(task: int | CurveTask) -> CurveTask:
    """The task, drawn from the wide prior if it is a seed."""
    return sample_task(task) if isinstance(task, int) else task


def least_sources(tasks: Tasks) -> int:
    """How many sources every task has, at least; drawn ones may have :data:`LEAST_SOURCES`."""
    if isinstance(tasks, range | DrawnTasks):
        return LEAST_SOURCES
    own = [task.size.shape[-2] for task in tasks if not isinstance(task, int)]
    return min(own) if len(own) == len(tasks) else min([LEAST_SOURCES, *own])


def stacked(tasks: Tasks, sources: int, strata: int) -> CurveTask:
    """Tasks, or those of seeds, stacked; the frozen sets are drawn once per process."""
    if isinstance(tasks, range | DrawnTasks):
        return _stacked_once(tasks, sources, strata)
    return _stacked(tasks, sources, strata)


def _stacked(tasks: Tasks, sources: int, strata: int) -> CurveTask:
    return stack_tasks([drawn(task) for task in tasks], sources, strata)


_stacked_once = lru_cache(maxsize=8)(_stacked)
