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
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.task import (
    BY_SOURCE,
    CONSTANT,
    COSINE,
    LEAST_SOURCES,
    LINEAR,
    MAX_SOURCES,
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
JOINED_SHARE = 0.5
"""Share of the others whose sources come from two worlds."""
NOISE = "noise"
"""What the names of sources begin with that are there to be found useless."""
_ALIKE = 0.6  # share of the tasks in which all useful sources count alike
_LEAST_TOKENS, _MOST_TOKENS = 30.0, 5_000.0  # of a source's held-out set
_LEAST_SIZE = 500.0  # supervised tokens of a source that was cut down
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
        order = rng.permutation(len(self.worlds))
        one, *others = (self.worlds[i] for i in order)
        alike = [w for w in others if w.row_error.shape[1] == one.row_error.shape[1]]
        pair = (one, alike[0]) if alike and rng.random() < JOINED_SHARE else (one,)
        return _around(rng, *pair)


@dataclass(frozen=True)
class _Drawn:
    """Sources of a world, or of several, before their circumstances are drawn.

    Attributes:
        task: the constants.
        row_error: float64[K, G], see :class:`~mixgym.envs.curves.tasks.fitted.FittedWorld`.
        useful: bool[K], whether a source can be a target.
    """

    task: CurveTask
    row_error: FloatArray
    useful: BoolArray

    def some(self, index: NDArray[np.intp]) -> "_Drawn":
        """Those of its sources, in this order."""
        return _Drawn(self.task.sources(index), self.row_error[index], self.useful[index])


def _around(rng: np.random.Generator, world: FittedWorld, *others: FittedWorld) -> CurveTask:
    found = _sources_of(rng, world)
    for other in others:
        found = _joined(rng, found, _sources_of(rng, other))
    count = len(found.useful)
    most = min(count, MAX_SOURCES)
    chosen = int(rng.integers(min(LEAST_SOURCES, most), most + 1))
    found = found.some(rng.permutation(count)[:chosen])
    task = found.task
    dearer = np.exp(rng.normal(0.0, 0.3, (chosen, 1)))
    task = replace(
        task,
        size=_cut(task.size, 10.0 ** rng.uniform(-1.5, 0.3, (chosen, 1))),
        cost=np.maximum(task.cost * dearer, 1.0),
        budget=np.array(world.budget * 10.0 ** rng.uniform(-0.4, 0.4)),
        targets=_targets(rng, found.useful),
    )
    return _circumstances(rng, task, found.row_error)


def _cut(size: FloatArray, factor: FloatArray) -> FloatArray:
    """float64[K, G], sizes times a factor each; what is small already is not made smaller."""
    least = np.minimum(size.sum(-1, keepdims=True), _LEAST_SIZE)
    return size * np.maximum(factor, least / size.sum(-1, keepdims=True))


def _sources_of(rng: np.random.Generator, world: FittedWorld) -> _Drawn:
    useful = np.array([not name.startswith(NOISE) for name in world.sources])
    return _Drawn(_moved(rng, world), world.row_error, useful)


def _joined(rng: np.random.Generator, one: _Drawn, other: _Drawn) -> _Drawn:
    """Sources of two worlds in one; what they teach each other is a guess, all else is the first's.

    The second world's scales are converted to the first one's intrinsic time, at steps half way
    between those of both fits.
    """
    mine, theirs = one.task, _in_units_of(one.task, other.task)
    both = {
        name: np.concatenate([getattr(mine, name), getattr(theirs, name)]) for name in BY_SOURCE
    }
    kinds = [_mean_transfer(task.transfer) for task in (mine, theirs)]
    strange = max(min(kinds), 0.0) * rng.uniform(0.0, 1.0)
    sizes = len(mine.targets), len(theirs.targets)
    transfer = rng.normal(strange, 0.05, (sum(sizes),) * 2)
    transfer[: sizes[0], : sizes[0]] = mine.transfer
    transfer[sizes[0] :, sizes[0] :] = theirs.transfer
    return _Drawn(
        replace(mine, **both, transfer=transfer),
        np.concatenate([one.row_error, other.row_error]),
        np.concatenate([one.useful, other.useful]),
    )


def _in_units_of(mine: CurveTask, theirs: CurveTask) -> CurveTask:
    """Their scales in my intrinsic time."""
    batch = np.sqrt(mine.batch * theirs.batch)
    passed = [
        (batch / task.batch) ** (task.batch_power - 1.0) * np.exp(-task.rate_harm)
        for task in (mine, theirs)
    ]
    factor = passed[0] / passed[1]
    return replace(theirs, scale=theirs.scale * factor, base_scale=theirs.base_scale * factor)


def _mean_transfer(transfer: FloatArray) -> float:
    """Of sources to other ones."""
    others = ~np.eye(len(transfer), dtype=bool)
    return float(transfer[others].mean()) if others.any() else 0.0


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
        rarity=rng.choice([0.0, 1.0]) * rng.uniform(0.0, 0.3, column),
        kinship=rng.uniform(0.0, 0.5, column),
        fading=10.0 ** rng.uniform(0.0, 1.5) / span,
        begun=span * 10.0 ** rng.uniform(-2.5, -0.5),
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
