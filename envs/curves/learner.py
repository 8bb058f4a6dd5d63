"""The closed-form learner behind the single environment, and its data plane.

A :class:`~mixgym.envs.learners.base.Learner` on the same tasks and dynamics as the batched core
(:mod:`mixgym.envs.curves.core`): the same task, seed and actions give the same episode. There are
no rows: the plane hands out tokens by the mixture, to fractions of a token.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.dynamics import CurveState, advance, mastery, nll, passes
from mixgym.envs.curves.probes import (
    Seen,
    baseline_tokens,
    probe,
    probe_noise,
    probe_tokens,
    reference_losses,
    target_falls,
)
from mixgym.envs.curves.task import CurveTask, tokens_per_step
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.learners.base import (
    Evaluation,
    ProbeResult,
    StepRule,
    TrainReport,
)
from mixgym.envs.probes import find_probe, need_baseline
from mixgym.envs.random_streams import EpisodeNoise
from mixgym.envs.spaces.mixture import Mixture

_HELD_OUT_TOKENS = 1000  # pretended tokens behind every cell's held-out loss


class CurveLearner:
    """A learner whose losses are those of a :class:`CurveTask`.

    Args:
        task: a single one, not a batch.
        seed: of the measurement noise of this episode.
        probe_rows: rows per stratum that probes are charged for.
    """

    def __init__(self, task: CurveTask, seed: int = 0, probe_rows: int = 8) -> None:
        self.task = task
        self._seed = seed
        self._probe_rows = probe_rows
        self._state = CurveState.start(task)
        self._measure(0)

    def reset(self) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self._state = CurveState.start(self.task)
        self._measure(0)

    def _measure(self, intervals: int) -> None:
        """Go to the noise of the measurement after so many intervals."""
        self._intervals = intervals
        self._random = EpisodeNoise().start(self._seed)
        for _ in range(intervals + 1):
            self._noise = self._random.standard_normal(self.task.size.shape)

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """See :class:`~mixgym.envs.learners.base.Learner`; loss is the mean of before and after."""
        step_rule.align(self._worth, progress)
        before = nll(self.task, self._state)
        self._state = advance(self.task, self._state, plan.supervised.astype(np.float64))
        loss = 0.5 * (before + nll(self.task, self._state)) * plan.supervised
        self._intervals += 1
        self._noise = self._random.standard_normal(self.task.size.shape)
        mean = float(loss.sum() / max(float(plan.supervised.sum()), 1.0))
        return TrainReport(loss, plan.supervised, plan.tokens, plan.rows, (mean,))

    def _worth(self) -> FloatArray:
        """float64[K], fall of the targets' mean NLL by tokens of each source."""
        return target_falls(Seen(self.task, self._state, mastery(self.task, self._state)))

    def evaluate(self, split: str) -> Evaluation:
        """See :class:`~mixgym.envs.learners.base.Learner`.

        Only the reward split is measured with noise: the others are the truth.
        """
        values, noise = nll(self.task, self._state), 0.0
        if split == "reward":
            noise = float(self.task.noise)
            values = values * (1.0 + self._noise * noise)
        return self._evaluation(values, noise)

    def _evaluation(self, values: FloatArray, noise: float) -> Evaluation:
        """Of these losses float64[K, G], with standard errors relative to them.

        Every row is one token.
        """
        count = np.where(self.task.present, _HELD_OUT_TOKENS, 0)
        losses = values * count
        total = np.maximum(count.sum(-1), 1)
        return Evaluation(
            losses,
            count,
            tokens=int(count.sum()),
            rows=count,
            error=np.where(count > 0, noise * values, np.nan),
            source_error=np.where(count.any(-1), noise * losses.sum(-1) / total, np.nan),
        )

    def begin_probes(self, names: Sequence[str]) -> int:
        """See :class:`~mixgym.envs.learners.base.Learner`; the start is known without measuring."""
        cells = int(self.task.present.sum())
        return baseline_tokens(need_baseline(names), cells, self._probe_rows)

    def probe(self, name: str) -> ProbeResult:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        noise = probe_noise(name, self._seed, self.task.size.shape, self._intervals + 1)[-1]
        reference = reference_losses(self.task)[1] if find_probe(name).needs_reference else None
        seen = Seen(self.task, self._state, mastery(self.task, self._state), reference)
        cells = int(self.task.present.sum())
        tokens = probe_tokens(name, cells, self._probe_rows)
        return ProbeResult(probe(name, seen, noise), tokens)

    def reference(self) -> Evaluation:
        """The reward split by the reference: the whole budget under the proportional mixture."""
        return self._evaluation(reference_losses(self.task)[0], 0.0)

    def snapshot(self) -> dict[str, Any]:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        state = self._state
        return {
            "given": state.given.tolist(),
            "learnt": state.learnt.tolist(),
            "intervals": self._intervals,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`; task and seed stay."""
        self._state = CurveState(np.array(state["given"]), np.array(state["learnt"]))
        self._measure(state["intervals"])

    def fork(self) -> "CurveLearner":
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        other = copy.copy(self)
        other._measure(self._intervals)
        return other

    def save(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curves.json").write_text(json.dumps(self.snapshot()))

    def load(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self.restore(json.loads((folder / "curves.json").read_text()))


class TokenPlane:
    """A data plane without rows: hands out tokens by the mixture, counting passes.

    Args:
        task: gives the sizes and the budget.
        steps: that the budget is spread over.
    """

    def __init__(self, task: CurveTask, steps: int) -> None:
        self._task = task
        self._per_step = int(tokens_per_step(task, steps))
        self._state = CurveState.start(task)

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        total = budget.steps * self._per_step
        if budget.supervised is not None:
            total = min(total, budget.supervised)
        tokens = total * mixture.cells
        self._state = CurveState(self._state.given + tokens, self._state.learnt)
        steps = -(-total // self._per_step)
        return IntervalPlan(mixture, ((),) * steps, tokens, tokens, tokens)

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`; tokens never run out."""
        return self._task.present

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return passes(self._task, self._state)

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return {"given": self._state.given.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        self._state = CurveState(np.array(state["given"], np.float64), self._state.learnt)


@dataclass(frozen=True)
class TokenPlanes:
    """Makes the data plane of an episode, whatever its seed; a class, so that it can be pickled.

    Attributes:
        task: of the episode.
        steps: that its budget is spread over.
    """

    task: CurveTask
    steps: int

    def __call__(self, seed: int) -> TokenPlane:
        """A fresh plane."""
        return TokenPlane(self.task, self.steps)
