"""Fits a world to recorded runs: least squares over the fast world's own dynamics."""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.dynamics import CurveState, Pace, advance, nll
from mixgym.envs.curves.task import CurveTask
from mixgym.trainer.worlds.parameters import Parameters
from mixgym.trainer.worlds.trajectories import Trajectories

_STEP = 1e-5  # of numerical derivatives
_ERROR = 0.03  # nats by which the form itself may be off


@dataclass(frozen=True)
class Fit:
    """A fitted vector.

    Attributes:
        parameters: its layout.
        vector: float64[P].
        spread: float64[P], standard deviations, from the curvature at the optimum.
        evaluations: of the dynamics with their derivatives.
    """

    parameters: Parameters
    vector: FloatArray
    spread: FloatArray
    evaluations: int

    @property
    def task(self) -> CurveTask:
        """The task that it stands for."""
        return self.parameters.task(self.vector)


def predict(task: CurveTask, runs: Trajectories) -> FloatArray:
    """float64[..., R, T, K, G], losses after every decision of runs, by a task [...]."""
    lead = task.budget.shape
    wide = _spread_over_runs(task)
    state = CurveState.start(wide)
    count = runs.supervised.shape[0]
    shape = (*lead, count, *runs.supervised.shape[2:])
    state = CurveState(
        *(np.broadcast_to(v, shape) for v in (state.given, state.learnt, state.recent)),
        *(np.broadcast_to(v, shape[:-2]) for v in (state.time, state.heat)),
    )
    found = []
    for t in range(runs.supervised.shape[1]):
        pace = Pace(runs.steps[:, t], runs.rate[:, t])
        state = advance(wide, state, np.broadcast_to(runs.supervised[:, t], shape), pace)
        found.append(nll(wide, state))
    return np.stack(found, axis=-3)


def _spread_over_runs(task: CurveTask) -> CurveTask:
    """The task with an axis for runs before those of sources and strata."""

    def widened(name: str) -> FloatArray:
        value: FloatArray = getattr(task, name)
        axes = value.ndim - task.budget.ndim
        return np.expand_dims(value, -1 - axes)

    return CurveTask(**{name: widened(name) for name in task.__dataclass_fields__})


def fit(runs: Trajectories, parameters: Parameters, *, iterations: int = 60) -> Fit:
    """Least squares with a soft l1 loss, drawn to the priors.

    Args:
        runs: recorded.
        parameters: what is fitted.
        iterations: at most.
    """
    from scipy.optimize import least_squares

    mean, deviation = parameters.mean, parameters.deviation
    known = np.isfinite(runs.nll)
    weight = 1.0 / np.sqrt(_ERROR**2 + np.nan_to_num(runs.error) ** 2)

    def residuals(vectors: FloatArray) -> FloatArray:
        values = parameters.task(mean + deviation * vectors)
        off = (predict(values, runs) - np.nan_to_num(runs.nll)) * weight
        data = off[..., known]
        return np.concatenate([_soft(data), vectors], axis=-1)

    def jacobian(vector: FloatArray) -> FloatArray:
        both = [residuals(part) for part in np.array_split(parameters.perturbed(vector, _STEP), 4)]
        values = np.concatenate(both)
        return ((values[1:] - values[0]) / _STEP).T

    start = np.zeros(parameters.size)
    found = least_squares(
        residuals, start, jac=jacobian, method="trf", max_nfev=iterations, x_scale=1.0
    )
    inverse = np.linalg.inv(found.jac.T @ found.jac)
    spread = deviation * np.sqrt(np.maximum(np.diag(inverse), 0.0))
    return Fit(parameters, mean + deviation * found.x, spread, int(found.nfev))


def _soft(off: FloatArray) -> FloatArray:
    """Residuals whose squares are twice the soft l1 loss: outliers count by their size."""
    return np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off * off) - 1.0))
