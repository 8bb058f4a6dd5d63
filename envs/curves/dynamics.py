"""How a closed-form learner moves: pure functions over any leading axes.

The held-out NLL of source i, stratum g is a sum of five terms::

    floor + base (1 + S / base_scale) ** -base_exponent          what any training teaches
          + amplitude (1 + N / scale) ** -exponent               what these sources teach
          + warmth heat                                          what a high learning rate costs
          + overfit log max(passes / free_passes, 1)             what repetition costs

``S`` is the intrinsic time: supervised tokens, each counted by its learning rate (functional
scaling laws, Li et al. 2025, arXiv 2509.19189), less what too high a rate undoes, ``rate
exp(-rate_harm rate)``; of a step with more tokens each counts less, by ``batch_power``. ``N``
gathers what the sources are worth to this one: ``transfer``, which may be negative (interference),
times the mass of every source. Of the mass a share ``lasting`` stays; the rest decays while other
sources are trained, at ``forgetting`` per unit of intrinsic time, so that under a fixed mixture it
tends to the mixture's shares: what is in the mixture and how long one trains then act side by side,
as in the additive mixing law (Shukor et al. 2025, arXiv 2507.09404). Without forgetting it is a law
of amounts. ``heat`` follows the learning rate with a lag, so that losses fall when the rate is
annealed (as in the multi-power law, Luo et al. 2025, arXiv 2503.12811). A repeated token is worth
exponentially less with the passes (Muennighoff et al. 2023, arXiv 2305.16264), and in a stratum
that has not opened a token counts a tenth.
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.spaces.mixture import last_sum

_GATE_WIDTH = 0.05  # of the opening of a stratum, in units of mastery
GATE_LEAK = 0.1  # what a token is worth in a closed stratum
_LEAST = 0.05  # of 1 + N / scale, where sources interfere
_WORST = -0.25  # of mastery: interference raises the own part of a loss by a quarter at most


@dataclass(frozen=True)
class CurveState:
    """What has been trained so far.

    Attributes:
        given: float64[..., K, G], supervised tokens trained on.
        learnt: float64[..., K, G], what they were worth to their own cell, in intrinsic time.
        recent: float64[..., K, G], the same less what was forgotten since, with what was known
            before.
        time: float64[...], intrinsic time.
        heat: float64[...], the learning rate over that of the task's fit, with a lag.
    """

    given: FloatArray
    learnt: FloatArray
    recent: FloatArray
    time: FloatArray
    heat: FloatArray

    @classmethod
    def start(cls, task: CurveTask) -> "CurveState":
        """Before training."""
        nothing = np.zeros_like(task.budget)
        cells = np.zeros_like(task.size)
        return cls(cells, cells, task.known * task.present, nothing, nothing)


@dataclass(frozen=True)
class Pace:
    """How an interval is trained.

    Attributes:
        steps: float64[...], optimiser steps.
        rate: float64[...], mean learning rate over that of the task's fit.
    """

    steps: FloatArray | float = 1.0
    rate: FloatArray | float = 1.0


UNHURRIED = Pace()


def mass(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], what is known of every cell, in intrinsic time."""
    if not task.forgets:
        return state.learnt
    kept = task.lasting[..., None, None]
    return kept * state.learnt + (1.0 - kept) * state.recent


def effective_tokens(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], own and transferred tokens: N."""
    return task.transfer @ mass(task, state) @ task.spread


def _fall(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], 1 + N / scale."""
    ratio = 1.0 + effective_tokens(task, state) / task.scale
    return np.maximum(ratio, _LEAST) if task.interferes else ratio


def mastery(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], at most 1: how much of the amplitude is gone; below 0 by interference."""
    # faster than expm1 and log1p
    known = 1.0 - np.exp(-task.exponent * np.log(_fall(task, state)))
    return np.maximum(known, _WORST) if task.interferes else known


def passes(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], passes over the unique tokens; 0 in absent cells."""
    return state.given * task.inverse_size


def _common(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, 1], what any training teaches, and the cost of a high learning rate."""
    ratio = 1.0 + state.time[..., None, None] / task.base_scale
    taught = task.base * np.exp(-task.base_exponent * np.log(ratio))
    common: FloatArray = taught + task.warmth * state.heat[..., None, None]
    return common


def nll(task: CurveTask, state: CurveState, known: FloatArray | None = None) -> FloatArray:
    """float64[..., K, G], held-out nats per token, without measurement noise.

    Args:
        task: the constants.
        state: what has been trained.
        known: the state's :func:`mastery`, if somebody has it already.
    """
    excess = np.maximum(passes(task, state) / task.free_passes, 1.0)
    return train_nll(task, state, known) + task.overfit * np.log(excess)


def train_nll(task: CurveTask, state: CurveState, known: FloatArray | None = None) -> FloatArray:
    """float64[..., K, G], NLL of training rows: without the cost of over-fitting."""
    known = mastery(task, state) if known is None else known
    own = task.floor + task.amplitude * (1.0 - known)
    if not task.common:
        return own
    return np.where(task.present, own + _common(task, state), 0.0)


def gradient_norm(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], -dNLL/dN: fall of a cell's NLL per effective token of its own."""
    slope = task.amplitude * task.exponent / task.scale
    return slope * np.exp(-(task.exponent + 1.0) * np.log(_fall(task, state)))


def common_slope(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, 1], -d/dS of what any training teaches."""
    ratio = 1.0 + state.time[..., None, None] / task.base_scale
    slope = task.base * task.base_exponent / task.base_scale
    return slope * np.exp(-(task.base_exponent + 1.0) * np.log(ratio))


def advance(
    task: CurveTask,
    state: CurveState,
    tokens: FloatArray,
    pace: Pace = UNHURRIED,
    known: FloatArray | None = None,
) -> CurveState:
    """The state after an interval.

    Args:
        task: the constants.
        state: before it.
        tokens: float64[..., K, G], supervised tokens trained on.
        pace: steps and learning rate of the interval.
        known: the state's :func:`mastery`, if somebody has it already.
    """
    gate = _gate(task, mastery(task, state) if known is None else known)
    given = state.given + tokens
    total = last_sum(last_sum(tokens))
    passed = _intrinsic(task, total, pace)
    after, before = given * task.inverse_size, passes(task, state)
    fresh = gate * task.size * (_worth(task, after) - _worth(task, before))
    won = fresh * (passed / np.maximum(total, 1e-300))[..., None, None]
    if not task.forgets:
        recent = state.recent
    else:
        faded = task.forgetting * passed
        kept = -np.expm1(-faded) / np.maximum(faded, 1e-12)  # of what came in on the way
        recent = (
            state.recent * np.exp(-faded)[..., None, None]
            + won * np.where(faded > 1e-12, kept, 1.0)[..., None, None]
        )
    lag = np.exp(-task.cooling * passed)
    heat = pace.rate + (state.heat - pace.rate) * lag
    return CurveState(given, state.learnt + won, recent, state.time + passed, heat)


def _intrinsic(task: CurveTask, total: FloatArray, pace: Pace) -> FloatArray:
    """float64[...], the intrinsic time of an interval of ``total`` supervised tokens."""
    per_step = total / np.maximum(pace.steps, 1e-300) / task.batch
    rate = pace.rate * np.exp(-task.rate_harm * pace.rate)
    # batch_power 1: all tokens count alike
    return total * rate * np.maximum(per_step, 1e-12) ** (task.batch_power - 1.0)


def worth(task: CurveTask, state: CurveState, known: FloatArray) -> FloatArray:
    """float64[..., K, G], fall of N by the next token of a cell, a fresh and open first one's 1.

    Args:
        task: the constants.
        state: what has been trained.
        known: the state's :func:`mastery`.
    """
    repeated = np.maximum(passes(task, state) - 1.0, 0.0)
    return _gate(task, known) * np.exp(-repeated / task.patience)


def _gate(task: CurveTask, known: FloatArray) -> FloatArray:
    """float64[..., K, G], what a token is worth by how far its stratum has opened."""
    if not task.gated:
        return task.open
    # tanh instead of a logistic: it cannot overflow
    opening = 0.5 + 0.5 * np.tanh((known[..., :-1] - task.threshold) / (2.0 * _GATE_WIDTH))
    gate = np.where(task.threshold > 0, GATE_LEAK + (1.0 - GATE_LEAK) * opening, 1.0)
    return np.concatenate([np.ones_like(known[..., :1]), gate], axis=-1)


def _worth(task: CurveTask, seen: FloatArray) -> FloatArray:
    """What ``seen`` passes over a cell are worth, in passes over fresh rows.

    An integral, so that many passes in one interval are worth no more than in several.
    """
    repeated = np.maximum(seen - 1.0, 0.0)
    return np.minimum(seen, 1.0) + task.patience * (1.0 - np.exp(-repeated / task.patience))
