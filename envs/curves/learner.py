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
from mixgym.envs.curves.held_out import HeldOutNoise, mean_error, relative_errors, standard_errors
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
from mixgym.envs.curves.task import CurveTask, rates_until, supervised_tokens, tokens_per_step
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.learners.base import (
    Evaluation,
    ProbeResult,
    StepRule,
    TrainReport,
)
from mixgym.envs.probes import find_probe, need_baseline
from mixgym.envs.spaces.mixture import Mixture

HELD_OUT_TOKENS = 1000  # pretended tokens behind every cell's held-out loss


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
        self._rates = rates_until(task, steps)
        self._begin()

    def reset(self) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self._begin()

    def _begin(self) -> None:
        self._state = CurveState.start(self.task)
        self._intervals = self._trained = 0
        self._find_truth()
        self._errors = np.zeros((0, *self.task.size.shape))

    def _find_truth(self) -> None:
        """Mastery and NLL without noise."""
        self._known = mastery(self.task, self._state)
        self._nll = nll(self.task, self._state, self._known)

    def _error(self) -> FloatArray:
        """float64[K, G], relative errors of the measurement of this moment."""
        if self._intervals >= len(self._errors):  # later ones do not change earlier ones
            count = 2 * self._intervals + 32
            noise, stays = self.task.noise, self.task.stays
            normal = self._noise.draw(self._seed, count, (noise.shape[0], noise.shape[1]))
            self._errors = relative_errors(*normal, noise, stays)
        return np.asarray(self._errors[self._intervals])

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """See :class:`~mixgym.envs.learners.base.Learner`.

        The loss is the mean of before and after; learning rates are relative to the task's fit.
        """
        step_rule.align(self._worth, progress)
        before, steps = self._nll, len(plan.steps)
        until = min(self._trained + steps, self._steps)
        rates = float(self._rates[until] - self._rates[min(self._trained, self._steps)])
        pace = Pace(float(steps), rates / max(steps, 1))
        tokens = plan.supervised.astype(np.float64)
        self._state = advance(self.task, self._state, tokens, pace, self._known)
        self._find_truth()
        loss = 0.5 * (before + self._nll) * plan.supervised
        self._intervals += 1
        self._trained += steps
        return TrainReport(
            loss,
            plan.supervised,
            plan.tokens,
            plan.rows,
            (float(loss.sum() / max(float(plan.supervised.sum()), 1.0)),),
            learning_rate=float(self._rates[until] - self._rates[max(until - 1, 0)]),
            rates=rates,
        )

    def _worth(self) -> FloatArray:
        """float64[K], fall of the targets' mean NLL by tokens of each source."""
        return target_falls(Seen(self.task, self._state, self._known))

    def evaluate(self, split: str) -> Evaluation:
        """See :class:`~mixgym.envs.learners.base.Learner`.

        Only the reward split is measured with noise: the others are the truth.
        """
        values, noise = self._nll, np.zeros_like(self.task.size)
        if split == "reward":
            noise = self.task.noise
            values = values * (1.0 + self._error())
        return self._evaluation(values, noise)

    def _evaluation(self, values: FloatArray, noise: FloatArray) -> Evaluation:
        """Of these losses float64[K, G], with standard errors relative to them.

        Every row is one token.
        """
        count = np.where(self.task.present, HELD_OUT_TOKENS, 0)
        losses, errors = values * count, standard_errors(noise, values)
        return Evaluation(
            losses,
            count,
            tokens=int(count.sum()),
            rows=count,
            error=np.where(count > 0, errors, np.nan),
            source_error=np.where(count.any(-1), mean_error(errors, self.task.cell_mean), np.nan),
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
        seen = Seen(self.task, self._state, self._known, reference)
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
        self._find_truth()

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
