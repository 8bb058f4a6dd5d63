"""Fits a world to recorded runs: least squares over the fast world's own dynamics."""

from dataclasses import dataclass, fields

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.dynamics import CurveState, Pace, advance, nll
from mixgym.envs.curves.task import CurveTask
from mixgym.trainer.worlds.parameters import Parameters
from mixgym.trainer.worlds.trajectories import Trajectories

_STEP = 1e-5  # of numerical derivatives
_ERROR = 0.03  # nats by which the form itself may be off
_PARTS = 4  # that the derivatives are taken in, for the memory


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
    lead, wide = task.budget.shape, _with_runs(task)
    count, decisions = runs.supervised.shape[:2]
    shape = (*lead, count, *runs.supervised.shape[2:])
    begun = CurveState.start(wide)
    wanted = {begun.given.ndim: shape, begun.shown.ndim: shape[:-1], begun.time.ndim: shape[:-2]}
    state = CurveState(
        **{name: np.broadcast_to(v, wanted[v.ndim]) for name, v in vars(begun).items()}
    )
    found = []
    for t in range(decisions):
        pace = Pace(runs.steps[:, t], runs.rate[:, t])
        state = advance(wide, state, np.broadcast_to(runs.supervised[:, t], shape), pace)
        found.append(nll(wide, state))
    return np.stack(found, axis=-3)


def _with_runs(task: CurveTask) -> CurveTask:
    """The task with an axis for runs before those of sources and strata."""

    def widened(name: str) -> FloatArray:
        value: FloatArray = getattr(task, name)
        return np.expand_dims(value, task.budget.ndim)

    return CurveTask(**{field.name: widened(field.name) for field in fields(CurveTask)})


def fit(runs: Trajectories, parameters: Parameters, *, iterations: int = 100) -> Fit:
    """Least squares with a soft l1 loss, drawn to the priors.

    Args:
        runs: recorded.
        parameters: what is fitted.
        iterations: evaluations of the derivatives, at most.
    """
    from scipy.optimize import least_squares

    mean, deviation = parameters.mean, parameters.deviation
    known = np.isfinite(runs.nll)
    weight = 1.0 / np.sqrt(_ERROR**2 + np.nan_to_num(runs.error) ** 2)

    def residuals(vectors: FloatArray) -> FloatArray:
        predicted = predict(parameters.task(mean + deviation * vectors), runs)
        off = ((predicted - np.nan_to_num(runs.nll)) * weight)[..., known]
        return np.concatenate([_soft(off), vectors], axis=-1)

    def jacobian(vector: FloatArray) -> FloatArray:
        moved = np.array_split(parameters.moved(vector, _STEP), _PARTS)
        values = np.concatenate([residuals(part) for part in moved])
        slopes: FloatArray = (values[1:] - values[0]) / _STEP
        return slopes.T

    start = np.zeros(parameters.size)
    found = least_squares(residuals, start, jac=jacobian, max_nfev=iterations)
    inverse = np.linalg.inv(found.jac.T @ found.jac)
    spread = deviation * np.sqrt(np.maximum(np.diag(inverse), 0.0))
    return Fit(parameters, mean + deviation * found.x, spread, int(found.nfev))


def _soft(off: FloatArray) -> FloatArray:
    """Residuals whose squares are twice the soft l1 loss: outliers count by their size."""
    return np.asarray(np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off * off) - 1.0)))
