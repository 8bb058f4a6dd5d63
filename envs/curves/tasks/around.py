"""Tasks around fitted worlds: a few of a world's sources under other circumstances.

Half a fit, half imagination: which sources, how large, what counts, how long, at what learning
rate, measured on how many tokens, are drawn over what users have; the constants of the dynamics
move by the spread of the fit. A share of the tasks comes from the wide prior instead, with costs,
learning rates, forgetting and errors drawn over wide ranges, for what no recorded run was like.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.task import (
    CONSTANT,
    COSINE,
    LEAST_SOURCES,
    LINEAR,
    MAX_STRATA,
    CurveTask,
)
from mixgym.envs.curves.tasks.fitted import (
    LOGARITHMS,
    VALUES,
    FittedWorld,
    library,
    read_world,
)
from mixgym.envs.curves.tasks.prior import sample_task

PRIOR_SHARE = 0.25
"""Share of tasks that come from the wide prior."""
NOISE = "noise"
"""What the names of sources begin with that are there to be found useless."""
_ALIKE = 0.6  # share of the tasks in which all useful sources count alike
_LEAST_TOKENS, _MOST_TOKENS = 30.0, 5_000.0  # of a source's held-out set
_READ_PER_STEP = 1024.0  # tokens that a step of the wide prior's tasks reads


@dataclass(frozen=True)
class WorldTasks:
    """Draws tasks by seed.

    Attributes:
        files: of fitted worlds; none: those of the package.
    """

    files: tuple[str, ...] = ()

    @cached_property
    def worlds(self) -> tuple[FittedWorld, ...]:
        """What tasks are drawn around."""
        return tuple(read_world(file) for file in self.files) or library()

    def draw(self, seed: int) -> CurveTask:
        """The task of a seed."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, 78]))
        if rng.random() < PRIOR_SHARE or not self.worlds:
            return _from_prior(rng, seed)
        return _around(rng, self.worlds[rng.integers(len(self.worlds))])


def _around(rng: np.random.Generator, world: FittedWorld) -> CurveTask:
    task = _moved(rng, world)
    count = task.size.shape[0]
    chosen = int(rng.integers(min(LEAST_SOURCES, count), count + 1))
    index = rng.permutation(count)[:chosen]
    row_error = world.row_error[index]
    task = task.sources(index)
    shrunk = 10.0 ** rng.uniform(-1.5, 0.3, (chosen, 1))
    size = task.size * shrunk
    budget = world.budget * 10.0 ** rng.uniform(-0.4, 0.4)
    dearer = np.exp(rng.normal(0.0, 0.3, (chosen, 1)))
    cost = np.maximum(task.cost * dearer, 1.0)
    useful = np.array([not world.sources[i].startswith(NOISE) for i in index])
    targets = _targets(rng, useful)
    task = replace(task, size=size, cost=cost, budget=np.array(budget), targets=targets)
    return _circumstances(rng, task, row_error)


def _moved(rng: np.random.Generator, world: FittedWorld) -> CurveTask:
    """The world with its constants moved by the spread of the fit."""
    moved: dict[str, FloatArray] = {}
    for name, spread in world.spread.items():
        value = world.constants[name]
        by = rng.normal(size=value.shape) * np.minimum(spread, 0.5)
        if name in LOGARITHMS:
            moved[name] = value * np.exp(by)
        elif name in VALUES:
            moved[name] = value + by
    if "transfer" in moved:
        np.fill_diagonal(moved["transfer"], 1.0)
    return replace(world.task(), **_possible(moved, world))


def _possible(moved: Mapping[str, FloatArray], world: FittedWorld) -> dict[str, FloatArray]:
    """Moved constants, a floor no lower than half of what it was."""
    kept = dict(moved)
    if "floor" in kept:
        kept["floor"] = np.maximum(kept["floor"], 0.5 * world.constants["floor"])
    return kept


def _targets(rng: np.random.Generator, useful: BoolArray) -> FloatArray:
    """float64[K], all alike or drawn one by one; 0 for the useless ones, but not for all."""
    count = len(useful)
    drawn = rng.choice([0.0, 0.5, 1.0, 2.0], count) * useful
    alike = rng.random() < _ALIKE or not drawn.any()
    even: FloatArray = useful.astype(np.float64) if useful.any() else np.ones(count)
    return even if alike else drawn


def _circumstances(rng: np.random.Generator, task: CurveTask, row_error: FloatArray) -> CurveTask:
    """The task with a learning rate, a schedule and held-out sets drawn."""
    tokens = np.exp(rng.uniform(np.log(_LEAST_TOKENS), np.log(_MOST_TOKENS), (len(task.size), 1)))
    tokens = np.maximum(tokens / task.size.shape[1], 1.0)
    return replace(
        task,
        rate=np.array(10.0 ** rng.uniform(-0.5, 0.5)),
        warmup=np.array(rng.choice([0.0, 0.05, 0.1])),
        schedule=np.array(rng.choice([CONSTANT, LINEAR, COSINE, COSINE])),
        noise=np.minimum(row_error / np.sqrt(tokens), 0.5) * task.present,
        stays=np.array(rng.uniform(0.8, 0.98)),
    )


def _from_prior(rng: np.random.Generator, seed: int) -> CurveTask:
    """A task of the wide prior, with what it lacks drawn over wide ranges."""
    task = sample_task(seed)
    count, groups = task.size.shape
    column = (count, 1)
    cost = np.exp(np.clip(rng.normal(1.0, 1.0, column), 0.0, 4.0)) * np.ones((count, groups))
    dear = float(cost.mean())
    budget, span = task.budget * dear, task.budget
    interfering = rng.normal(0.0, rng.choice([0.0, 0.1]), task.transfer.shape)
    np.fill_diagonal(interfering, 0.0)
    task = replace(
        task,
        cost=cost,
        budget=budget,
        transfer=task.transfer + interfering,
        base=rng.uniform(0.0, 2.0) * rng.uniform(0.5, 1.0, column),
        base_scale=span * 10.0 ** rng.uniform(-2.5, -1.0, column),
        base_exponent=rng.uniform(0.2, 1.0, column),
        lasting=np.array(rng.uniform(0.2, 1.0)),
        forgetting=10.0 ** rng.uniform(0.0, 1.5) / span,
        warmth=rng.uniform(0.0, 0.1, column),
        cooling=10.0 ** rng.uniform(0.5, 2.0) / span,
        patience=rng.uniform(3.0, 20.0, column),
        free_passes=rng.uniform(4.0, 20.0) * np.ones(column),
        batch=_READ_PER_STEP / np.array(dear),
        batch_power=np.array(rng.uniform(0.2, 1.0)),
        rate_harm=np.array(rng.uniform(0.0, 0.5)),
    )
    row_error = np.exp(rng.normal(-0.3, 0.4, (count, groups)))
    assert groups <= MAX_STRATA
    return _circumstances(rng, task, row_error)
