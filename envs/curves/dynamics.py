"""How a closed-form learner moves: pure functions over any leading axes.

NLL of source i, stratum g = floor + amplitude * (1 + effective / scale) ** -exponent, plus what
over-fitting costs. Effective tokens gather what is transferred from other sources and strata.
Tokens count less in a stratum that has not opened, and when their rows were seen before (the worth
of a repeated token decays exponentially with the passes, as in data-constrained scaling laws).
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.curves.task import CurveTask, FloatArray

GATE_WIDTH = 0.05  # of the opening of a stratum, in units of mastery
GATE_LEAK = 0.1  # what a token is worth in a closed stratum
FREE_PASSES = 4.0  # before repetition begins to over-fit


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
    return -np.expm1(-task.exponent * np.log1p(ratio))


def passes(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], passes over the unique tokens; 0 in absent cells."""
    return state.given * task.inverse_size


def nll(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], held-out nats per token, without measurement noise."""
    excess = np.maximum(passes(task, state) / FREE_PASSES, 1.0)
    return (
        task.floor + task.amplitude * (1.0 - mastery(task, state)) + task.overfit * np.log(excess)
    )


def gradient_norm(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], -dNLL/dn: fall of a cell's NLL per effective token of its own."""
    ratio = effective_tokens(task, state) / task.scale
    slope = task.amplitude * task.exponent / task.scale
    return slope * np.exp(-(task.exponent + 1.0) * np.log1p(ratio))


def advance(task: CurveTask, state: CurveState, tokens: FloatArray) -> CurveState:
    """The state after ``tokens`` [..., K, G] more supervised tokens."""
    known = mastery(task, state)[..., :-1]
    # tanh instead of a logistic: it cannot overflow
    opening = 0.5 + 0.5 * np.tanh((known - task.threshold) / (2.0 * GATE_WIDTH))
    gate = np.where(task.threshold > 0, GATE_LEAK + (1.0 - GATE_LEAK) * opening, 1.0)
    gate = np.concatenate([np.ones_like(task.size[..., :1]), gate], axis=-1)
    seen = np.maximum(passes(task, state) - 1.0, 0.0)
    worth = tokens * gate * np.exp(-seen / task.patience)
    return CurveState(state.given + tokens, state.learnt + worth)
