"""Fixed rows, in a given order: every row once an epoch, and a record of who came when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Budget, IntervalPlan, Pack
from mixgym.envs.packing.packers import best_fit_decreasing
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture

Kind = Literal["samples", "positions"]
Batches = list[IntArray]


@dataclass(frozen=True)
class Rows:
    """The samples of a study, in one list that no order changes.

    Attributes:
        names: ``source:row`` of each of the n samples.
        where: int64[n, 3], (source, stratum, row of the source's split).
        lengths: int64[n], tokens.
        supervised: int64[n], supervised tokens.
    """

    names: tuple[str, ...]
    where: IntArray
    lengths: IntArray
    supervised: IntArray

    def __len__(self) -> int:
        return len(self.names)


def choose_rows(sources: Sequence[Source], count: int | None, seed: int) -> Rows:
    """Draw training rows, as evenly over the sources as these have them.

    Args:
        sources: whose train splits are drawn from.
        count: rows in all; None takes every row.
        seed: of the draw.

    Raises:
        ConfigError: if fewer than two rows are left to order.
    """
    sizes = [len(source.splits["train"]) for source in sources]
    wanted = sizes if count is None else even_shares(sizes, count)
    if sum(wanted) < 2:
        raise ConfigError(f"orders.rows: {sum(wanted)} row(s) cannot be ordered; take more")
    chosen = [
        np.sort(stream(seed, "orders", "rows", source.name).permutation(size)[:some])
        for source, size, some in zip(sources, sizes, wanted, strict=True)
    ]
    return _listed(sources, "train", chosen)


def all_rows(sources: Sequence[Source], split: str) -> Rows:
    """Every row of a split."""
    return _listed(sources, split, [np.arange(len(source.splits[split])) for source in sources])


def _listed(sources: Sequence[Source], split: str, chosen: Sequence[IntArray]) -> Rows:
    names: list[str] = []
    where, lengths, supervised = [], [], []
    for k, (source, rows) in enumerate(zip(sources, chosen, strict=True)):
        names += [f"{source.name}:{row}" for row in rows.tolist()]
        where.append(np.stack([np.full(len(rows), k), source.strata[split][rows], rows], axis=1))
        lengths.append(source.splits[split].lengths[rows])
        supervised.append(source.splits[split].supervised[rows])
    joined = [np.concatenate(part) for part in (where, lengths, supervised)]
    return Rows(tuple(names), *joined)


def even_shares(sizes: Sequence[int], count: int) -> list[int]:
    """Split ``count`` evenly over cells of limited size; what one lacks, the others give.

    >>> even_shares([350, 6000, 700], 1500)
    [350, 575, 575]
    """
    shares = [0] * len(sizes)
    left = count
    order = sorted(range(len(sizes)), key=lambda k: sizes[k])
    for place, k in enumerate(order):
        shares[k] = min(sizes[k], left // (len(sizes) - place))
        left -= shares[k]
    return shares


def epoch_batches(kind: Kind, rows: int, batch: int, seed: int, run: int, epoch: int) -> Batches:
    """The batches of one epoch, each an array of sample indices.

    Args:
        kind: ``samples`` shuffles all samples; ``positions`` keeps the batches, which are drawn
            once for all runs and epochs, and shuffles when each comes.
        rows: n, how many samples there are.
        batch: samples in a batch, at most.
        seed: of the study.
        run: which of the runs.
        epoch: which pass, from 0; each has an order of its own.
    """
    order = stream(seed, "order", str(run), f"epoch={epoch}")
    if kind == "samples":
        return _cut(order.permutation(rows), batch)
    fixed = _cut(stream(seed, "order", "batches").permutation(rows), batch)
    return [fixed[i] for i in order.permutation(len(fixed))]


def _cut(order: IntArray, batch: int) -> Batches:
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def positions(batches: Batches) -> FloatArray:
    """float64[n], the place of each sample in an epoch: 0 for the first, below 1 for the last."""
    order = np.concatenate(batches)
    places = np.empty(len(order))
    places[order] = np.arange(len(order)) / len(order)
    return places


class OrderedPlane:
    """Emits given batches one after the other; a :class:`mixgym.envs.interval_plan.DataPlane`.

    A batch is one optimiser step. The mixture that is asked for changes nothing.

    Args:
        rows: the samples.
        batches: of the whole run, in order.
        shape: (K, G).
        capacity: tokens in a pack.
    """

    def __init__(self, rows: Rows, batches: Batches, shape: tuple[int, int], capacity: int) -> None:
        self.rows = rows
        self.shape = shape
        self._batches = batches
        self._capacity = capacity
        self._next = 0
        self._sizes = self._by_cell(np.arange(len(rows)), np.ones(len(rows), np.int64))

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        batches = self._affordable(budget)
        self._next += len(batches)
        drawn = np.concatenate([*batches, np.zeros(0, np.int64)])
        return IntervalPlan(
            mixture,
            tuple(self._packed(batch) for batch in batches),
            rows=self._by_cell(drawn, np.ones_like(drawn)),
            tokens=self._by_cell(drawn, self.rows.lengths[drawn]),
            supervised=self._by_cell(drawn, self.rows.supervised[drawn]),
            exhausted=len(batches) < budget.steps or self._next == len(self._batches),
        )

    def _affordable(self, budget: Budget) -> Batches:
        batches = self._batches[self._next : self._next + budget.steps]
        for most, amount in (
            (budget.supervised, self.rows.supervised),
            (budget.tokens, self.rows.lengths),
        ):
            if most is not None:
                cost = np.cumsum([int(amount[batch].sum()) for batch in batches])
                batches = batches[: int(np.searchsorted(cost, most, side="right"))]
        return batches

    def _packed(self, batch: IntArray) -> tuple[Pack, ...]:
        lengths = self.rows.lengths[batch]
        return tuple(
            Pack(self.rows.where[batch[group]], lengths[group], self._capacity)
            for group in best_fit_decreasing(lengths, self._capacity)
        )

    def _by_cell(self, drawn: IntArray, amount: IntArray) -> IntArray:
        total = np.zeros(self.shape, np.int64)
        np.add.at(total, (self.rows.where[drawn, 0], self.rows.where[drawn, 1]), amount)
        return total

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return self._counted(self._batches[self._next :]) > 0

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return self._counted(self._batches[: self._next]) / np.maximum(self._sizes, 1)

    def _counted(self, batches: Batches) -> IntArray:
        drawn = np.concatenate([*batches, np.zeros(0, np.int64)])
        return self._by_cell(drawn, np.ones_like(drawn))

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return {"next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        self._next = int(state["next"])
