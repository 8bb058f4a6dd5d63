"""Control tasks of the fast world, of which the right answer is known beforehand.

Schedulers that see something where there is nothing, feed on noise, or count a copy twice show it
here. Seeds do not overlap with those of the frozen sets.
"""

from dataclasses import replace

import numpy as np

from mixgym.envs.curves.task import BY_SOURCE, CurveTask
from mixgym.envs.curves.tasks.prior import sample_task

FIRST_SEED = 3_000_000
SOURCES = 6
NOISE = 0
"""The place of the noise source in :func:`noise_tasks`."""
TWINS = (0, 1)
"""The places of a source and its copy in :func:`duplicate_tasks`."""
FEW_TOKENS_ERROR = 0.12
"""Relative standard error of a source's loss on some fifty held-out tokens."""
FEW_TOKENS_STAYS = 0.9
"""Share of that error's variance which stays in a run: the rows are the same."""


def identical_tasks(count: int, sources: int = SOURCES) -> list[CurveTask]:
    """Tasks whose sources are all alike, in a single stratum each: nothing can be gained.

    No row is ever met twice, curves are convex, and all teach each other equally: so uniform is the
    best mixture. (Where rows are repeated, over-fitting a single source costs less than all.)
    """
    return [_identical(FIRST_SEED + i, sources) for i in range(count)]


def noise_tasks(count: int, sources: int = SOURCES) -> list[CurveTask]:
    """Ordinary tasks in which every source counts alike but :data:`NOISE`, which has target 0.

    It cannot be learnt, has the highest loss, and teaches the others nothing.
    """
    tasks = [sample_task(FIRST_SEED + i, sources=sources, noise_sources=1) for i in range(count)]
    return [_noise_first(task) for task in tasks]


def duplicate_tasks(count: int, sources: int = SOURCES) -> list[CurveTask]:
    """Ordinary tasks in which the second of :data:`TWINS` is the first under another name.

    They have the same rows to learn and to be measured on, so that what one is taught, the other
    knows.
    """
    drawn = [sample_task(FIRST_SEED + i, sources=sources, noise_sources=0) for i in range(count)]
    return [_doubled(replace(task, targets=np.ones(sources))) for task in drawn]


def with_few_tokens(task: CurveTask) -> CurveTask:
    """The task, but every source is measured on some fifty tokens, spread over its strata."""
    groups = task.present.sum(-1, keepdims=True)
    noise = np.where(task.present, FEW_TOKENS_ERROR * np.sqrt(groups), 0.0)
    return replace(task, noise=noise, stays=np.array(FEW_TOKENS_STAYS))


def _identical(seed: int, sources: int) -> CurveTask:
    one = sample_task(seed, sources=1, strata=1, noise_sources=0)
    taught = float(np.random.default_rng(seed).uniform(0.0, 0.5))
    transfer = np.full((sources, sources), taught)
    np.fill_diagonal(transfer, 1.0)
    rows = {name: np.repeat(getattr(one, name), sources, 0) for name in BY_SOURCE}
    rows |= {"size": np.full((sources, 1), float(one.budget)), "targets": np.ones(sources)}
    return replace(one, **rows, transfer=transfer)


def _noise_first(task: CurveTask) -> CurveTask:
    """The task with its noise source at the first place."""
    noise = int(task.amplitude.max(-1).argmin())
    order = np.array([noise, *np.delete(np.arange(len(task.targets)), noise)])
    targets = np.where(np.arange(len(order)) == NOISE, 0.0, 1.0)
    return replace(task.sources(order), targets=targets)


def _doubled(task: CurveTask) -> CurveTask:
    """The task with its second source replaced by a copy of the first."""
    order = np.arange(len(task.targets))
    order[TWINS[1]] = TWINS[0]
    return task.sources(order)
