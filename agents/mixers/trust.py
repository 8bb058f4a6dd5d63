"""How far a measured gain is believed, what it costs, and what repetition leaves of it.

The published mixers take a fall of a held-out loss as it is. In a real run it is a difference of
two noisy numbers, it was bought with tokens that cost different amounts, and it may come from rows
that were passed many times. What mixers with ``noise_aware`` do about that stands here:

*Error.* A loss has the standard error s (estimated from the rows' losses). The same rows are
measured every time, so that most of the error stays and cancels in a difference: with a correlation
rho of two measurements the difference errs by s sqrt(2 (1 - rho)).

*Belief.* A gain g that errs by s counts g g^2 / (g^2 + s^2): James and Stein's shrinkage of a
single mean (Efron and Morris 1973), with the squared gain itself for the unknown variance of gains.
Where falls are paid one after the other, the part that is not believed yet is carried over: what
keeps falling is paid in full sooner or later, and what only wavers pays nothing in the long run.

*Cost.* A gain per supervised token counts over the tokens that have to be read for it.

*Repetition.* The next token of a source that was passed e times is worth exp(-(e - 1) / R*) of a
fresh one, R* = 15 (data-constrained scaling laws, Muennighoff et al. 2023, equation 5 and table 1).
"""

import numpy as np

from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

SAME_ROWS = 0.9
"""Correlation of the errors of two measurements of the same rows.

A row that is harder than the mean of its source stays so while the loss falls. In a run of the 0.1M
preset on six sources, rows' deviations from their source's loss correlated by 0.99 from one
decision to the next (medians by source 0.989 to 0.999), by about 0.5 in the first interval, when
everything moves, and by about 0.6 from the first decision to the last. Falls that are carried over
span some decisions, so a value below the median is taken; a smaller one believes less.
"""
LASTING = 15.0
"""R*: repetitions after which a token is worth 1/e of a fresh one."""


def moving_error(table: dict[str, FloatArray]) -> FloatArray:
    """Standard error of the difference of two losses of the same rows, nats.

    Where the error of a loss is unknown it is taken for as large as the loss; where none is known,
    for nothing: then nothing tells the sources apart.

    Args:
        table: ``signals.sources`` or ``signals.cells``.
    """
    error = table["error"]
    known = error > 0
    whole = np.where(known, error, table["nll"]) if known.any() else np.zeros_like(error)
    return np.sqrt(2.0 * (1.0 - SAME_ROWS)) * whole


def believed(gains: FloatArray, errors: FloatArray) -> FloatArray:
    """What counts of gains with these standard errors, of any one shape.

    >>> believed(np.array([3.0, 1.0, -1.0, 2.0]), np.array([1.0, 3.0, 1.0, 0.0])).round(9).tolist()
    [2.7, 0.1, -0.5, 2.0]
    """
    ratio = np.minimum(errors / np.maximum(np.abs(gains), 1e-150), 1e150)
    return gains / (1.0 + ratio**2)


def falls_since(signals: Signals, before: FloatArray, aware: bool) -> tuple[FloatArray, FloatArray]:
    """Nats that the held-out losses fell: as counted, and as measured, float64[K] each.

    Args:
        signals: what is measured now.
        before: float64[K], where the last call left off (0: nothing was measured yet); it moves on
            in place.
        aware: count what is believed only, and carry the rest over.
    """
    now = signals.sources["nll"]
    known = (before > 0) & (now > 0)
    fall = np.where(known, before - now, 0.0)
    counted = believed(fall, moving_error(signals.sources)) if aware else fall
    before[:] = np.where(known & aware, before - counted, now)
    return counted, fall


def relative_cost(signals: Signals) -> FloatArray:
    """float64[K], tokens read per supervised token over the sources' geometric mean; 1 if unknown.

    >>> from types import SimpleNamespace
    >>> rows = {"cost": np.array([2.0, 8.0, 0.0])}
    >>> mask = np.ones(3, np.bool_)
    >>> relative_cost(SimpleNamespace(sources=rows, trainable=mask)).round(9).tolist()
    [0.5, 2.0, 1.0]
    """
    cost = signals.sources["cost"]
    known = signals.trainable & (cost > 0)
    if not known.any():
        return np.ones_like(cost)
    logs = np.log(np.where(known, cost, 1.0))
    return np.exp(np.where(known, logs - logs[known].mean(), 0.0))


def worth(signals: Signals) -> FloatArray:
    """float64[K] in (0, 1], what the next token is worth beside a fresh one.

    >>> from types import SimpleNamespace
    >>> worth(SimpleNamespace(sources={"epochs": np.array([0.5, 16.0])})).round(3).tolist()
    [1.0, 0.368]
    """
    return np.exp(-np.maximum(signals.sources["epochs"] - 1.0, 0.0) / LASTING)


def charged(signals: Signals, gains: FloatArray) -> FloatArray:
    """float64[K], gains per supervised token as gains per token read, from now on.

    Repetition takes from what helps; it does not excuse what harms.
    """
    return np.where(gains > 0, gains * worth(signals), gains) / relative_cost(signals)


def value(signals: Signals) -> FloatArray:
    """float64[K], what the next token read is worth, a fresh one at the usual cost being 1."""
    return worth(signals) / relative_cost(signals)


def effective_tokens(tokens: FloatArray, size: FloatArray) -> FloatArray:
    """Fresh tokens that ``tokens`` over ``size`` unique ones are worth: the integral of worth.

    >>> effective_tokens(np.array([50.0, 1600.0]), np.array([100.0, 100.0])).round(1).tolist()
    [50.0, 1048.2]
    """
    fresh = np.minimum(tokens, size)
    repeats = (tokens - fresh) / np.maximum(size, 1e-12)
    return fresh + size * LASTING * -np.expm1(-repeats / LASTING)


def steadied(values: FloatArray, errors: FloatArray, known: BoolArray) -> FloatArray:
    """Values [..., K] drawn towards their mean over ``known``, by as much as they err."""
    count = np.maximum(known.sum(-1, keepdims=True), 1)
    mean = np.where(known, values, 0.0).sum(-1, keepdims=True) / count
    return mean + believed(values - mean, errors)
