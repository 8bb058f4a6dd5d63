"""All rows of a run packed together, for schedules that do not change.

Where the mixture is fixed, an interval need not be the packing pool: the rows of the whole run are
drawn and planned at once, and handed out interval by interval. Packs are fuller, balance is better,
and the curriculum spans the run; the realised shares of one interval wander, those of the run do
not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Budget, IntervalPlan, Pack
from mixgym.envs.packing.plane import PackedPlane
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture

_SAME = 1e-9  # weights that differ less are the same schedule


class WholeRunPlane:
    """A data plane that plans once and hands out steps.

    Args:
        plane: draws and packs.
        budget: of the whole run.
        sources: whose rows the packs refer to.
    """

    def __init__(self, plane: PackedPlane, budget: Budget, sources: Sequence[Source]) -> None:
        self.sampler = plane.sampler
        self._plane = plane
        self._budget = budget
        self._supervised = [source.splits["train"].supervised for source in sources]
        self._begin = plane.snapshot()
        self._available = plane.available()
        self._epochs = plane.epochs()
        self._plan: IntervalPlan | None = None
        self._handed = 0

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.interval_plan.DataPlane`.

        Raises:
            ConfigError: if the mixture is not that of the first interval.
        """
        whole = self._whole(mixture)
        steps = whole.steps[self._handed : self._handed + budget.steps]
        seconds = whole.step_seconds[self._handed : self._handed + budget.steps]
        self._handed += len(steps)
        rows, tokens, supervised = self._totals(steps)
        return IntervalPlan(
            mixture,
            steps,
            rows=rows,
            tokens=tokens,
            supervised=supervised,
            balanced=whole.balanced,
            exhausted=whole.exhausted and self._handed == len(whole.steps),
            packing={**whole.packing, "seconds": sum(seconds)} if seconds else whole.packing,
            step_seconds=seconds,
        )

    def _whole(self, mixture: Mixture) -> IntervalPlan:
        """The plan of the run, made at the first call."""
        if self._plan is None:
            self._plan = self._plane.plan(mixture, self._budget)
        known = self._plan.mixture
        apart = max(
            float(np.abs(mixture.sources - known.sources).max()),
            float((np.abs(mixture.strata - known.strata).max(-1) * (mixture.sources > 0)).max()),
        )
        if apart > _SAME:
            raise ConfigError(
                "data.packing.pool=run packs the rows of the whole run at once, and the mixture "
                f"has changed by {apart:.3f}: use pool=interval, or an agent that keeps the mixture"
            )
        return self._plan

    def _totals(self, steps: Sequence[Sequence[Pack]]) -> IntArray:
        """int64[3, K, G]: rows, tokens and supervised tokens of the steps."""
        totals = np.zeros((3, *self._plane.shape), np.int64)
        for pack in (pack for step in steps for pack in step):
            source, stratum, row = pack.rows.T
            labels = [self._supervised[k][i] for k, i in zip(source, row, strict=True)]
            for total, amount in zip(totals, (1, pack.lengths, np.array(labels)), strict=True):
                np.add.at(total, (source, stratum), np.asarray(amount))
        return totals

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`: as at the start while steps last."""
        if self._plan is None or self._handed < len(self._plan.steps):
            return self._available
        return self._plane.available()

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`: by the share of steps handed out."""
        if self._plan is None:
            return self._epochs
        share = self._handed / max(len(self._plan.steps), 1)
        return self._epochs + share * (self._plane.epochs() - self._epochs)

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        mixture = None
        if self._plan is not None:
            known = self._plan.mixture
            mixture = [known.sources.tolist(), known.strata.tolist()]
        return {"begin": self._begin, "handed": self._handed, "mixture": mixture}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.interval_plan.DataPlane`: planned again, to the same plan."""
        self._begin = state["begin"]
        self._plane.restore(self._begin)
        self._available, self._epochs = self._plane.available(), self._plane.epochs()
        self._plan = None
        if state["mixture"] is not None:
            self._whole(Mixture(*(np.array(part) for part in state["mixture"])))
        self._handed = int(state["handed"])
