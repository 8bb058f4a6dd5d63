"""How a closed-form learner moves: pure functions over any leading axes.

The held-out NLL of source i, stratum g is a sum of six terms::

    floor + base (1 + S / base_scale) ** -base_exponent          what any training teaches
          + amplitude (1 + N / scale) ** -exponent               what these sources teach
          + rarity log(whole / met)                              what being left out costs
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
that has not opened a token counts a tenth. Rarity: :mod:`mixgym.envs.curves.exposure`.
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.exposure import exposed, rarity_nll
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
        fresh: float64[..., K, G], what the passes over a cell were worth, in fresh passes.
        learnt: float64[..., K, G], what they were worth to their own cell, in intrinsic time.
        recent: float64[..., K, G], the same less what was forgotten since, with what was known
            before.
        shown: float64[..., K], intrinsic time spent on sources, less what faded since.
        time: float64[...], intrinsic time.
        heat: float64[...], the learning rate over that of the task's fit, with a lag.
    """

    given: FloatArray
    fresh: FloatArray
    learnt: FloatArray
    recent: FloatArray
    shown: FloatArray
    time: FloatArray
    heat: FloatArray

    @classmethod
    def start(cls, task: CurveTask) -> "CurveState":
        """Before training."""
        nothing = np.zeros_like(task.budget)
        cells = np.zeros_like(task.size)
        known = task.known * task.present
        return cls(cells, cells, cells, known, np.zeros_like(task.targets), nothing, nothing)


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
    return state.recent + task.lasting[..., None, None] * (state.learnt - state.recent)


def effective_tokens(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], own and transferred tokens: N."""
    return task.transfer @ mass(task, state) @ task.spread


def _fall(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], 1 + N / scale."""
    ratio = effective_tokens(task, state)
    ratio /= task.scale
    ratio += 1.0
    return np.maximum(ratio, _LEAST, out=ratio) if task.interferes else ratio


def mastery(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], at most 1: how much of the amplitude is gone; below 0 by interference."""
    left = np.log(_fall(task, state))  # with exp, faster than expm1 and log1p
    left *= task.exponent
    np.exp(np.negative(left, out=left), out=left)
    known = np.subtract(1.0, left, out=left)
    return np.maximum(known, _WORST, out=known) if task.interferes else known


def passes(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, G], passes over the unique tokens; 0 in absent cells."""
    return state.given * task.inverse_size


def _common(task: CurveTask, state: CurveState) -> FloatArray:
    """float64[..., K, 1], what any training teaches, what a high rate and being rare cost."""
    ratio = 1.0 + state.time[..., None, None] / task.base_scale
    taught = task.base * np.exp(-task.base_exponent * np.log(ratio))
    common: FloatArray = taught + task.warmth * state.heat[..., None, None]
    if task.exposes:
        common += rarity_nll(task, state.shown, state.time)
    return common


def nll(task: CurveTask, state: CurveState, known: FloatArray | None = None) -> FloatArray:
    """float64[..., K, G], held-out nats per token, without measurement noise.

    Args:
        task: the constants.
        state: what has been trained.
        known: the state's :func:`mastery`, if somebody has it already.
    """
    excess = passes(task, state)
    excess /= task.free_passes
    np.log(np.maximum(excess, 1.0, out=excess), out=excess)
    excess *= task.overfit
    excess += train_nll(task, state, known)
    return excess


def train_nll(task: CurveTask, state: CurveState, known: FloatArray | None = None) -> FloatArray:
    """float64[..., K, G], NLL of training rows: without the cost of over-fitting."""
    known = mastery(task, state) if known is None else known
    own = 1.0 - known
    own *= task.amplitude
    own += task.floor
    if task.common:
        own += _common(task, state)
        own *= task.present
    return own


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
    total: FloatArray | None = None,
) -> CurveState:
    """The state after an interval.

    Args:
        task: the constants.
        state: before it.
        tokens: float64[..., K, G], supervised tokens trained on.
        pace: steps and learning rate of the interval.
        known: the state's :func:`mastery`, if somebody has it already.
        total: float64[...], the sum of ``tokens``, likewise.
    """
    given = state.given + tokens
    total = last_sum(last_sum(tokens)) if total is None else total
    passed = _intrinsic(task, total, pace)
    fresh = _worth(task, given * task.inverse_size)
    won = fresh - state.fresh
    won *= task.size
    won *= (passed / np.maximum(total, 1e-300))[..., None, None]
    if task.gated:
        won *= _gate(task, mastery(task, state) if known is None else known)
    recent = _faded(task, state.recent, won, passed) if task.forgets else state.recent
    lag = np.exp(-task.cooling * passed)
    heat = pace.rate + (state.heat - pace.rate) * lag
    learnt, time = state.learnt + won, state.time + passed
    shown = exposed(task, state.shown, tokens, passed)
    return CurveState(given, fresh, learnt, recent, shown, time, heat)


def _faded(task: CurveTask, recent: FloatArray, won: FloatArray, passed: FloatArray) -> FloatArray:
    """float64[..., K, G], what is left of what was known and ``won`` while time ``passed``."""
    faded = task.forgetting * passed
    kept = -np.expm1(-faded) / np.maximum(faded, 1e-12)  # of what came in on the way
    left = recent * np.exp(-faded)[..., None, None]
    left += won * np.where(faded > 1e-12, kept, 1.0)[..., None, None]
    return left


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
    fresh: FloatArray = np.exp(-repeated / task.patience)
    return _gate(task, known) * fresh if task.gated else fresh


def _gate(task: CurveTask, known: FloatArray) -> FloatArray:
    """float64[..., K, G], what a token is worth by how far its stratum has opened."""
    # the mastery of the stratum before; whatever the first one finds there, it is open
    earlier = np.zeros(known.shape)
    earlier.reshape(-1)[1:] = known.reshape(-1)[:-1]
    earlier -= task.opens_at
    earlier *= 0.5 / _GATE_WIDTH
    # tanh instead of a logistic: it cannot overflow
    lost = np.tanh(earlier, out=earlier)
    np.subtract(1.0, lost, out=lost)
    lost *= task.gates
    lost *= 0.5 * (1.0 - GATE_LEAK)
    return np.subtract(1.0, lost, out=lost)


def _worth(task: CurveTask, seen: FloatArray) -> FloatArray:
    """What ``seen`` passes over a cell are worth, in passes over fresh rows.

    An integral, so that many passes in one interval are worth no more than in several.
    """
    repeated = seen - 1.0
    np.maximum(repeated, 0.0, out=repeated)
    repeated /= task.patience
    left = np.exp(np.negative(repeated, out=repeated), out=repeated)
    worth = np.subtract(1.0, left, out=left)
    worth *= task.patience
    worth += np.minimum(seen, 1.0)
    return worth
