"""The data plane: sampler and packer behind one call, with nothing lost between intervals."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.envs.interval_plan import Budget, IntervalPlan, Pack
from mixgym.envs.options import Unit
from mixgym.envs.packing.normalisers import Weighing
from mixgym.envs.packing.planner import PackingPlan, Step, make_plan, steps_needed
from mixgym.envs.packing.setup import PackingSetup
from mixgym.envs.sources.sampler import MixtureSampler, Proposal
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture

_TRIES = 48  # stopping points looked at before a plan may end between balance points

# why no more rows are added: the list of rows is at its end, the steps are full, or the budget of
# tokens is used
_Stop = Literal["dry", "full", "spent"]


class PackedPlane:
    """Plans an interval: the rows that are due, packed, balanced and dealt to optimiser steps.

    The whole interval is one packing pool. An interval ends at the last point where every cell is
    within one row of its share and the rows still fit; later rows are first in line next time.

    Args:
        sources: the mixture's sources.
        unit: what ratios count.
        capacity: tokens in the longest pack.
        packs: such packs in a step, so that a step has ``packs * capacity`` tokens at most.
        seed: of the order of rows and of packs.
        setup: groups of lengths, packer, balance; packs of one length at random if None.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        unit: Unit,
        capacity: int,
        packs: int,
        seed: int,
        setup: PackingSetup | None = None,
    ) -> None:
        self.sampler = MixtureSampler(sources, unit, seed)
        self.shape = self.sampler.shape
        self._setup = setup or PackingSetup.one_length(capacity, packs)
        self._step_tokens = self._setup.config.cluster.step_tokens
        self._intervals = 0
        self._steps = 0

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.interval_plan.DataPlane`.

        Raises:
            MixgymError: if no source with a weight has rows left.
        """
        drawn = _Drawn()
        stop: _Stop = "dry"
        while self.sampler.available().any():
            self.sampler.set_mixture(mixture)
            proposal = self.sampler.propose(budget.steps * self._step_tokens - drawn.tokens + 1)
            count, stop = self._fitting(drawn, proposal, budget)
            self.sampler.take(proposal, count)
            drawn.add(proposal, count)
            # a list that ends early and fits whole means that a capped cell ran dry: go on with
            # the mixture of the others
            if stop != "dry" or not mixture.sources[self.sampler.available().any(-1)].any():
                break
        return self._layout(mixture, drawn, exhausted=stop != "full")

    def _fitting(self, drawn: "_Drawn", proposal: Proposal, budget: Budget) -> tuple[int, _Stop]:
        """How many rows fit, up to a balance point if there is one, and why no more are added."""
        space = budget.steps * self._step_tokens - drawn.tokens
        most = int(np.searchsorted(np.cumsum(proposal.tokens), space, side="right"))
        affordable = _affordable(drawn, proposal, budget)
        lengths = np.concatenate([drawn.lengths, proposal.tokens])
        have = len(drawn.lengths)

        def fits(count: int) -> bool:
            return self._steps_needed(lengths[: have + count]) <= budget.steps

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

    def _steps_needed(self, lengths: IntArray) -> int:
        return steps_needed(lengths, self._setup.config, self.sampler.seed, self._intervals)

    def _layout(self, mixture: Mixture, drawn: "_Drawn", exhausted: bool) -> IntervalPlan:
        """Pack the rows, balance the packs and deal them to steps."""
        where = drawn.rows(self.shape[1])
        totals = np.zeros((3, *self.shape), np.int64)
        for total, amount in zip(
            totals, (np.ones_like(drawn.lengths), drawn.lengths, drawn.labels), strict=True
        ):
            np.add.at(total, (where[:, 0], where[:, 1]), amount)
        config = replace(self._setup.config, warm_up=max(0, self._setup.warm_up - self._steps))
        plan = make_plan(drawn.lengths, config, self.sampler.seed, self._intervals)
        weigh = Weighing(self._setup.normaliser, drawn.labels)
        steps = tuple(self._packs(plan, step, where, weigh) for step in plan.steps)
        self._intervals += 1
        self._steps += len(steps)
        return IntervalPlan(
            mixture,
            steps,
            rows=totals[0],
            tokens=totals[1],
            supervised=totals[2],
            balanced=self.sampler.balanced(),
            exhausted=exhausted,
            packing=self._setup.report(plan),
            step_seconds=self._setup.step_seconds(plan),
        )

    def _packs(
        self, plan: PackingPlan, step: Step, where: IntArray, weigh: Weighing
    ) -> tuple[Pack, ...]:
        """The packs of a step, micro-step by micro-step; rank r of R replicas trains every R-th."""
        group = plan.config.groups[step.group]
        inside = [plan.packing[int(pack)] for pack in step.packs]
        weights, normaliser = weigh.step(inside, step.slots.shape[1])
        return tuple(
            Pack(
                where[documents],
                plan.lengths[documents],
                group.length,
                document_weights=weight,
                normaliser=normaliser,
                sequence_parallel=group.degree,
                checkpointed_layers=group.checkpointed,
            )
            for documents, weight in zip(inside, weights, strict=True)
        )

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return self.sampler.available()

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return self.sampler.epochs()

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return {
            "sampler": self.sampler.snapshot(),
            "intervals": self._intervals,
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        self.sampler.restore(state["sampler"])
        self._intervals = int(state["intervals"])
        self._steps = int(state["steps"])


def _affordable(drawn: "_Drawn", proposal: Proposal, budget: Budget) -> int:
    """How many of the proposed rows the budgets of tokens pay for."""
    count = len(proposal)
    for most, used, amount in (
        (budget.supervised, drawn.supervised, proposal.supervised),
        (budget.tokens, drawn.tokens, proposal.tokens),
    ):
        if most is not None:
            count = min(count, int(np.searchsorted(np.cumsum(amount), most - used, "right")))
    return count


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
