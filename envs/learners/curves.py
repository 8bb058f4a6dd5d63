"""A closed-form learner: held-out loss as a function of the tokens that each cell was given.

It trains in microseconds, so that environments, agents and tests need no language model. It reads
only the plan's tokens [K, G]. The NLL of source i, stratum g is

    floor + amplitude * (1 + effective / scale) ** -exponent

where the effective tokens gather what other sources and strata transfer, and tokens of rows seen
again count less and less (the form of data-constrained scaling laws: r passes over u unique tokens
are worth u * (1 + R * (1 - exp(-(r - 1) / R)))).
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.learners.base import Evaluation, FloatArray, IntArray, StepRule, TrainReport
from mixgym.envs.mixture import BoolArray, Mixture
from mixgym.envs.plan import Budget, IntervalPlan

REPEAT_WORTH = 15.0  # R: passes over which the worth of a repeated token decays
HELD_OUT_TOKENS = 1000  # pretended tokens behind every cell's held-out loss


@dataclass(frozen=True)
class CurveTask:
    """The constants of one task.

    Attributes:
        names: of the sources.
        targets: float64[K].
        size: float64[K, G], unique supervised tokens.
        floor, amplitude, scale, exponent: float64[K, G], of the power laws.
        transfer: float64[K, K]; what a token of source j is worth to source i, 1 on the diagonal.
        spread: float64[G, G], the same between strata, 1 on the diagonal.
    """

    names: tuple[str, ...]
    targets: FloatArray
    size: FloatArray
    floor: FloatArray
    amplitude: FloatArray
    scale: FloatArray
    exponent: FloatArray
    transfer: FloatArray
    spread: FloatArray

    def nll(self, tokens: FloatArray) -> FloatArray:
        """float64[K, G], held-out NLL after ``tokens`` [K, G] supervised tokens were trained on."""
        passes = tokens / np.maximum(self.size, 1.0)
        repeated = 1.0 + REPEAT_WORTH * -np.expm1(-np.maximum(passes - 1.0, 0.0) / REPEAT_WORTH)
        worth = np.where(passes > 1.0, self.size * repeated, tokens)
        effective = self.transfer @ worth @ self.spread.T
        return self.floor + self.amplitude * (1.0 + effective / self.scale) ** -self.exponent


def sample_task(seed: int, sources: int = 4, strata: int = 3) -> CurveTask:
    """Draw a task: sizes over three orders of magnitude, harder strata learn more slowly."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, sources, strata]))
    shape = (sources, strata)
    size = 10.0 ** rng.uniform(3.5, 6.5, (sources, 1)) / strata * np.ones(shape)
    harder = np.linspace(0.0, 1.0, strata)
    floor = rng.uniform(0.2, 1.0, (sources, 1)) + 0.4 * harder
    amplitude = rng.uniform(1.5, 4.0, (sources, 1)) + 0.5 * harder
    scale = 10.0 ** (rng.uniform(2.5, 4.0, (sources, 1)) + 0.5 * harder)
    exponent = rng.uniform(0.25, 0.7, (sources, 1)) * np.ones(shape)
    transfer = rng.uniform(0.0, 0.15, (sources, sources))
    np.fill_diagonal(transfer, 1.0)
    rank = np.arange(strata)
    spread = 0.4 ** np.abs(rank[:, None] - rank[None, :])
    return CurveTask(
        tuple(f"source{k}" for k in range(sources)),
        np.ones(sources),
        size,
        floor,
        amplitude,
        scale,
        exponent,
        transfer,
        spread,
    )


class CurveLearner:
    """A :class:`~mixgym.envs.learners.base.Learner` whose loss is a :class:`CurveTask`."""

    def __init__(self, task: CurveTask) -> None:
        self.task = task
        self._tokens = np.zeros(task.size.shape)

    def reset(self) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self._tokens = np.zeros(self.task.size.shape)

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """See :class:`~mixgym.envs.learners.base.Learner`; loss is the mean of before and after."""
        before = self.task.nll(self._tokens)
        self._tokens = self._tokens + plan.supervised
        loss = 0.5 * (before + self.task.nll(self._tokens)) * plan.supervised
        mean = float(loss.sum() / max(plan.supervised.sum(), 1))
        return TrainReport(loss, plan.supervised, plan.tokens, plan.rows, (mean,))

    def evaluate(self, split: str) -> Evaluation:
        """See :class:`~mixgym.envs.learners.base.Learner`; every split measures the same."""
        count = np.full(self.task.size.shape, HELD_OUT_TOKENS, np.int64)
        return Evaluation(self.task.nll(self._tokens) * count, count, int(count.sum()))

    def snapshot(self) -> dict[str, Any]:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        return {"tokens": self._tokens.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self._tokens = np.array(state["tokens"], np.float64)

    def fork(self) -> "CurveLearner":
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        other = copy.copy(self)
        other._tokens = self._tokens.copy()
        return other

    def save(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curves.json").write_text(json.dumps(self.snapshot()))

    def load(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self.restore(json.loads((folder / "curves.json").read_text()))


class TokenPlane:
    """A data plane without rows: hands out tokens by the mixture, counting epochs.

    Args:
        task: gives the sizes.
        tokens_per_step: supervised tokens in a step.
    """

    def __init__(self, task: CurveTask, tokens_per_step: int) -> None:
        self._task = task
        self._per_step = tokens_per_step
        self._given: IntArray = np.zeros(task.size.shape, np.int64)

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        total = budget.steps * self._per_step
        if budget.supervised is not None:
            total = min(total, budget.supervised)
        tokens = _largest_remainder(mixture.cells, total)
        self._given = self._given + tokens
        steps = -(-total // self._per_step)
        return IntervalPlan(mixture, ((),) * steps, tokens, tokens, tokens)

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.plan.DataPlane`; tokens never run out."""
        return self._task.size > 0

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        return self._given / np.maximum(self._task.size, 1.0)

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        return {"given": self._given.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.plan.DataPlane`."""
        self._given = np.array(state["given"], np.int64)


def _largest_remainder(weights: FloatArray, total: int) -> IntArray:
    """Whole numbers that sum to ``total`` and differ from ``weights * total`` by less than 1."""
    exact = weights * total / weights.sum()
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), axis=None, kind="stable")[: total - int(whole.sum())]
    whole.ravel()[order] += 1
    return whole
