"""How a closed-form learner moves: pure functions over any leading axes.

NLL of source i, stratum g = floor + amplitude * (1 + effective / scale) ** -exponent, plus what
over-fitting costs. Effective tokens gather what is transferred from other sources and strata.
Tokens count less in a stratum that has not opened, and when their rows were seen before (the worth
of a repeated token decays exponentially with the passes, as in data-constrained scaling laws).
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.task import CurveTask

_GATE_WIDTH = 0.05  # of the opening of a stratum, in units of mastery
GATE_LEAK = 0.1  # what a token is worth in a closed stratum
_FREE_PASSES = 4.0  # before repetition begins to over-fit


@dataclass(frozen=True)
class CurveState:
    """What has been trained so far.

    Attributes:
        given: float64[..., K, G], supervised tokens trained on.
        learnt: float64[..., K, G], what they were worth to their own cell.
    """

    given: FloatArray
    learnt: FloatArray

    @classmethod
    def start(cls, task: CurveTask) -> "CurveState":
        """Before training."""
        return cls(np.zeros_like(task.size), np.zeros_like(task.size))


def effective_tokens(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], own and transferred tokens."""
    return task.transfer @ state.learnt @ task.spread


def mastery(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G] in [0, 1]: how much of the amplitude is gone."""
    ratio = effective_tokens(task, state) / task.scale
    return 1.0 - np.exp(-task.exponent * np.log(1.0 + ratio))  # faster than expm1 and log1p


def passes(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], passes over the unique tokens; 0 in absent cells."""
    return state.given * task.inverse_size


def nll(task: CurveTask, state: CurveState, known: FloatArray | None = None) -> FloatArray:
    """float64[..., K, G], held-out nats per token, without measurement noise.

    Args:
        task: the constants.
        state: what has been trained.
        known: the state's :func:`mastery`, if somebody has it already.
    """
    known = mastery(task, state) if known is None else known
    excess = np.maximum(passes(task, state) / _FREE_PASSES, 1.0)
    return task.floor + task.amplitude * (1.0 - known) + task.overfit * np.log(excess)


def gradient_norm(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], -dNLL/dn: fall of a cell's NLL per effective token of its own."""
    ratio = effective_tokens(task, state) / task.scale
    slope = task.amplitude * task.exponent / task.scale
    return slope * np.exp(-(task.exponent + 1.0) * np.log1p(ratio))


def advance(
    task: CurveTask, state: CurveState, tokens: FloatArray, known: FloatArray | None = None
) -> CurveState:
    """The state after ``tokens`` [..., K, G] more supervised tokens; ``known``: see :func:`nll`."""
    gate = _gate(task, mastery(task, state) if known is None else known)
    after = CurveState(state.given + tokens, state.learnt)
    fresh = task.size * (_worth(task, passes(task, after)) - _worth(task, passes(task, state)))
    return CurveState(after.given, state.learnt + gate * fresh)


def worth(task: CurveTask, state: CurveState, known: FloatArray) -> FloatArray:
    """float64[..., K, G], what the next token of a cell is worth, a fresh one in the open being 1.

    Args:
        task: the constants.
        state: what has been trained.
        known: the state's :func:`mastery`.
    """
    repeated = np.maximum(passes(task, state) - 1.0, 0.0)
    return _gate(task, known) * np.exp(-repeated / task.patience)


def _gate(task: CurveTask, known: FloatArray) -> FloatArray:
    """float64[..., K, G], what a token is worth by how far its stratum has opened."""
    # tanh instead of a logistic: it cannot overflow
    opening = 0.5 + 0.5 * np.tanh((known[..., :-1] - task.threshold) / (2.0 * _GATE_WIDTH))
    gate = np.where(task.threshold > 0, GATE_LEAK + (1.0 - GATE_LEAK) * opening, 1.0)
    return np.concatenate([np.ones_like(task.size[..., :1]), gate], axis=-1)


def _worth(task: CurveTask, seen: FloatArray) -> FloatArray:
    """What ``seen`` passes over a cell are worth, in passes over fresh rows.

    An integral, so that many passes in one interval are worth no more than in several.
    """
    repeated = np.maximum(seen - 1.0, 0.0)
    return np.minimum(seen, 1.0) + task.patience * (1.0 - np.exp(-repeated / task.patience))
