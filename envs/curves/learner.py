"""The closed-form learner behind the single environment, and its data plane.

A :class:`~mixgym.envs.learners.base.Learner` on the same tasks and dynamics as the batched core
(:mod:`mixgym.envs.curves.core`): the same task, seed and actions give the same episode. There are
no rows: the plane hands out tokens by the mixture, to fractions of a token.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.dynamics import CurveState, Pace, advance, mastery, nll
from mixgym.envs.curves.held_out import HeldOutNoise, mean_error, standard_errors
from mixgym.envs.curves.probes import (
    Seen,
    baseline_tokens,
    check_measurable,
    probe,
    probe_noise,
    probe_tokens,
    reference_losses,
    target_falls,
)
from mixgym.envs.curves.task import CurveTask, rate_until, supervised_tokens, tokens_per_step
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.learners.base import (
    Evaluation,
    ProbeResult,
    StepRule,
    TrainReport,
)
from mixgym.envs.probes import find_probe, need_baseline
from mixgym.envs.spaces.mixture import Mixture

_HELD_OUT_TOKENS = 1000  # pretended tokens behind every cell's held-out loss


class CurveLearner:
    """A learner whose losses are those of a :class:`CurveTask`.

    Args:
        task: a single one, not a batch.
        seed: of the measurement noise of this episode.
        probe_rows: rows per stratum that probes are charged for.
        steps: that the budget, and with it the learning rate's schedule, is spread over.
    """

    def __init__(
        self, task: CurveTask, seed: int = 0, probe_rows: int = 8, steps: int = 300
    ) -> None:
        self.task = task
        self._seed = seed
        self._probe_rows = probe_rows
        self._steps = steps
        self._noise = HeldOutNoise()
        self._begin()

    def reset(self) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self._begin()

    def _begin(self) -> None:
        self._state = CurveState.start(self.task)
        self._intervals = self._trained = 0
        self._errors = np.zeros((0, *self.task.size.shape))

    def _error(self) -> FloatArray:
        """float64[K, G], relative errors of the measurement of this moment."""
        if self._intervals >= len(self._errors):  # later ones do not change earlier ones
            count = 2 * self._intervals + 32
            noise, stays = self.task.noise, self.task.stays
            self._errors = self._noise.draw(self._seed, count, noise, stays)
        return np.asarray(self._errors[self._intervals])

    def _pace(self, steps: int) -> Pace:
        """How the next steps are trained."""
        first, last = self._trained, min(self._trained + steps, self._steps)
        until = [rate_until(self.task, np.array(n / self._steps)) for n in (first, last)]
        passed = (until[1] - until[0]) * self._steps
        return Pace(np.array(float(steps)), passed / max(steps, 1))

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """See :class:`~mixgym.envs.learners.base.Learner`; loss is the mean of before and after."""
        step_rule.align(self._worth, progress)
        before = nll(self.task, self._state)
        pace, tokens = self._pace(len(plan.steps)), plan.supervised.astype(np.float64)
        self._state = advance(self.task, self._state, tokens, pace)
        loss = 0.5 * (before + nll(self.task, self._state)) * plan.supervised
        self._intervals += 1
        self._trained += len(plan.steps)
        mean = float(loss.sum() / max(float(plan.supervised.sum()), 1.0))
        return TrainReport(loss, plan.supervised, plan.tokens, plan.rows, (mean,))

    def _worth(self) -> FloatArray:
        """float64[K], fall of the targets' mean NLL by tokens of each source."""
        return target_falls(Seen(self.task, self._state, mastery(self.task, self._state)))

    def evaluate(self, split: str) -> Evaluation:
        """See :class:`~mixgym.envs.learners.base.Learner`.

        Only the reward split is measured with noise: the others are the truth.
        """
        values, noise = nll(self.task, self._state), np.zeros_like(self.task.size)
        if split == "reward":
            noise = self.task.noise
            values = values * (1.0 + self._error())
        return self._evaluation(values, noise)

    def _evaluation(self, values: FloatArray, noise: FloatArray) -> Evaluation:
        """Of these losses float64[K, G], with standard errors relative to them.

        Every row is one token.
        """
        count = np.where(self.task.present, _HELD_OUT_TOKENS, 0)
        losses = values * count
        return Evaluation(
            losses,
            count,
            tokens=int(count.sum()),
            rows=count,
            error=np.where(count > 0, standard_errors(noise, values), np.nan),
            source_error=np.where(
                count.any(-1),
                mean_error(standard_errors(noise, values), self.task.cell_mean),
                np.nan,
            ),
        )

    def begin_probes(self, names: Sequence[str]) -> int:
        """See :class:`~mixgym.envs.learners.base.Learner`; the start is known without measuring."""
        check_measurable(names)
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
        return self._evaluation(reference_losses(self.task)[0], np.zeros_like(self.task.size))

    def snapshot(self) -> dict[str, Any]:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        state = {name: values.tolist() for name, values in vars(self._state).items()}
        return {"state": state, "intervals": self._intervals, "steps": self._trained}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`; task and seed stay."""
        held = {name: np.array(values, np.float64) for name, values in state["state"].items()}
        self._state = CurveState(**held)
        self._intervals, self._trained = state["intervals"], state["steps"]

    def fork(self) -> "CurveLearner":
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        return copy.copy(self)  # arrays are replaced, never written to

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
        self._given = np.zeros_like(task.size)

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        most = budget.steps * self._per_step
        read = np.array(float(most if budget.tokens is None else min(most, budget.tokens)))
        supervised = supervised_tokens(self._task, mixture.cells, read)
        if budget.supervised is not None:
            supervised = supervised * min(1.0, budget.supervised / float(supervised.sum()))
        tokens = supervised * self._task.cost
        self._given = self._given + supervised
        steps = math.ceil(float(tokens.sum()) / self._per_step - 1e-9)
        return IntervalPlan(mixture, ((),) * steps, supervised, tokens, supervised)

    def available(self) -> BoolArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`; tokens never run out."""
        return self._task.present

    def epochs(self) -> FloatArray:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return self._given * self._task.inverse_size

    def snapshot(self) -> dict[str, Any]:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        return {"given": self._given.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`mixgym.envs.interval_plan.DataPlane`."""
        self._given = np.array(state["given"], np.float64)


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
