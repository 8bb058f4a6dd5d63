"""The data plane: sampler and packer behind one call, with nothing lost between intervals."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mixgym.envs.mixture import BoolArray, FloatArray, Mixture
from mixgym.envs.options import Unit
from mixgym.envs.packing.packers import best_fit_decreasing
from mixgym.envs.plan import Budget, IntervalPlan, Pack
from mixgym.envs.sources.sampler import MixtureSampler, Proposal
from mixgym.envs.sources.source import IntArray, Source
from mixgym.envs.sources.streams import stream

_TRIES = 48  # stopping points looked at before a plan may end between balance points

# why no more rows are added: the list of rows is at its end, the steps are full, or the budget of
# supervised tokens is used
_Stop = Literal["dry", "full", "spent"]


class PackedPlane:
    """Plans an interval: the rows that are due, best-fit packed, dealt to optimiser steps.

    The whole interval is one packing pool. An interval ends at the last point where every cell is
    within one row of its share and the rows still fit; later rows are first in line next time.

    Args:
        sources: the mixture's sources.
        unit: what ratios count.
        capacity: tokens in a pack.
        packs: packs in a step, so that a step has ``packs * capacity`` tokens at most.
        seed: of the order of rows and of packs.
    """

    def __init__(
        self, sources: Sequence[Source], *, unit: Unit, capacity: int, packs: int, seed: int
    ) -> None:
        self.sampler = MixtureSampler(sources, unit, seed)
        self.shape = self.sampler.shape
        self._capacity = capacity
        self._packs = packs
        self._intervals = 0

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.plan.DataPlane`.

        Raises:
            MixgymError: if no source with a weight has rows left.
        """
        drawn = _Drawn()
        room = budget.steps * self._packs
        stop: _Stop = "dry"
        while self.sampler.available().any():
            self.sampler.set_mixture(mixture)
            proposal = self.sampler.propose(room * self._capacity - drawn.tokens + 1)
            count, stop = self._fitting(drawn, proposal, room, budget.supervised)
            self.sampler.take(proposal, count)
            drawn.add(proposal, count)
            # a list that ends early and fits whole means that a capped cell ran dry: go on with
            # the mixture of the others
            if stop != "dry" or not mixture.sources[self.sampler.available().any(-1)].any():
                break
        return self._layout(mixture, drawn, budget.steps, exhausted=stop != "full")

    def _fitting(
        self, drawn: "_Drawn", proposal: Proposal, room: int, supervised: int | None
    ) -> tuple[int, _Stop]:
        """How many rows fit, up to a balance point if there is one, and why no more are added."""
        space = room * self._capacity - drawn.tokens
        most = int(np.searchsorted(np.cumsum(proposal.tokens), space, side="right"))
        affordable = len(proposal)
        if supervised is not None:
            left = supervised - drawn.supervised
            affordable = int(np.searchsorted(np.cumsum(proposal.supervised), left, "right"))
        lengths = np.concatenate([drawn.lengths, proposal.tokens])
        have = len(drawn.lengths)

        def fits(count: int) -> bool:
            return len(best_fit_decreasing(lengths[: have + count], self._capacity)) <= room

        most = min(most, affordable)
        if most == len(proposal) and fits(most):
            return most, "dry"
        stop: _Stop = "spent" if most == affordable < len(proposal) and fits(most) else "full"
        ends = np.flatnonzero(proposal.balanced[:most])[::-1] + 1
        for count in ends[:_TRIES].tolist():
            if fits(count):
                return count, stop
        low, high = 0, most  # bisect: nearly always, fewer rows need no more packs
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low, stop

    def _layout(
        self, mixture: Mixture, drawn: "_Drawn", steps: int, exhausted: bool
    ) -> IntervalPlan:
        """Pack the rows, shuffle the packs and deal them to steps."""
        where = drawn.rows(self.shape[1])
        totals = np.zeros((3, *self.shape), np.int64)
        for total, amount in zip(
            totals, (np.ones_like(drawn.lengths), drawn.lengths, drawn.labels), strict=True
        ):
            np.add.at(total, (where[:, 0], where[:, 1]), amount)
        groups = best_fit_decreasing(drawn.lengths, self._capacity)
        generator = stream(self.sampler.seed, "packs", str(self._intervals))
        packs = [
            Pack(where[groups[i]], drawn.lengths[groups[i]], self._capacity)
            for i in generator.permutation(len(groups))
        ]
        self._intervals += 1
        count = min(steps, -(-len(packs) // self._packs))
        return IntervalPlan(
            mixture,
            tuple(tuple(packs[step::count]) for step in range(count)),
            rows=totals[0],
            tokens=totals[1],
            supervised=totals[2],
            balanced=self.sampler.balanced(),
            exhausted=exhausted,
        )

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        return self.sampler.available()

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        return self.sampler.epochs()

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        return {"sampler": self.sampler.snapshot(), "intervals": self._intervals}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        self.sampler.restore(state["sampler"])
        self._intervals = int(state["intervals"])


class _Drawn:
    """The rows that the interval has so far."""

    def __init__(self) -> None:
        self.lengths: IntArray = np.zeros(0, np.int64)
        self.labels: IntArray = np.zeros(0, np.int64)
        self._cells: IntArray = np.zeros(0, np.int64)
        self._rows: IntArray = np.zeros(0, np.int64)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def supervised(self) -> int:
        return int(self.labels.sum())

    def add(self, proposal: Proposal, count: int) -> None:
        self.lengths = np.concatenate([self.lengths, proposal.tokens[:count]])
        self.labels = np.concatenate([self.labels, proposal.supervised[:count]])
        self._cells = np.concatenate([self._cells, proposal.cell[:count]])
        self._rows = np.concatenate([self._rows, proposal.row[:count]])

    def rows(self, groups: int) -> IntArray:
        """int64[n, 3] of (source, stratum, row)."""
        return np.stack([self._cells // groups, self._cells % groups, self._rows], axis=1)
