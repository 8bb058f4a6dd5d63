"""What a sample's place in the first epoch does to its loss after the last: pure functions.

Hard samples have high losses in every run, which would drown the effect of the place, and one run
ends lower than another. Each loss is therefore compared with the same sample's loss in the other
runs, where the place was another one, and with its run's own level:
``D[r, i] = L[r, i] - mean over s != r of L[s, i]``, less its mean over i. If
``L[r, i] = a[i] + c[r] + f(pos[r, i]) + noise``, the mean of D at a place is
``f(place) - mean f``, without bias: the difference to the mean over all runs, its own included,
would shrink every effect by ``(R - 1) / R``.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.random_streams import stream

RESAMPLES = 2000
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % percentile interval from a bootstrap over runs."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PositionEffect:
    """How the final loss depends on the place (0: met first, 1: met last).

    Attributes:
        runs, samples: R and n.
        places: float[B], centres of the bins.
        effect: B estimates: mean D in each bin, nats per token.
        slope: of D over the place; below 0 if what is met first is learnt worse.
        gap: mean D of the first tenth less that of the last tenth.
        pearson, spearman: correlations of place and D.
    """

    runs: int
    samples: int
    places: list[float]
    effect: list[Estimate]
    slope: Estimate
    gap: Estimate
    pearson: float
    spearman: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def beside_other_runs(losses: FloatArray) -> FloatArray:
    """D: each loss less the mean of the same sample's losses in other runs, at the run's level.

    Args:
        losses: float64[R, n], R at least 2.
    """
    runs = len(losses)
    if runs < 2:
        raise ValueError(f"losses of {runs} run(s): at least two orders are needed")
    own: FloatArray = (losses - losses.mean(0)) * (runs / (runs - 1))
    return own - own.mean(1, keepdims=True)


def position_effect(
    losses: FloatArray, places: FloatArray, *, bins: int = 20, seed: int = 0
) -> PositionEffect:
    """Estimate the effect of the place on the loss.

    Args:
        losses: float64[R, n], final loss of each sample in each run.
        places: float64[R, n] in [0, 1).
        bins: B, of equal width.
        seed: of the bootstrap over runs. Intervals from few runs are too narrow.
    """
    own = beside_other_runs(losses)
    width = min(bins, losses.shape[1])
    index = np.minimum((places * width).astype(np.int64), width - 1)
    means = np.stack([_bin_means(d, i, width) for d, i in zip(own, index, strict=True)])
    draws = stream(seed, "orders", "bootstrap").integers(
        len(own), size=(RESAMPLES, len(own))
    )  # the same runs for every statistic

    def estimate(per_run: FloatArray) -> Estimate:
        return _bootstrapped(per_run, draws)

    return PositionEffect(
        runs=len(own),
        samples=losses.shape[1],
        places=((np.arange(width) + 0.5) / width).tolist(),
        effect=[estimate(column) for column in means.T],
        slope=estimate(_per_run(slope, places, own)),
        gap=estimate(_per_run(gap, places, own)),
        pearson=correlation(places.ravel(), own.ravel()),
        spearman=correlation(ranks(places.ravel()), ranks(own.ravel())),
    )


def _per_run(
    statistic: Callable[[FloatArray, FloatArray], float], places: FloatArray, own: FloatArray
) -> FloatArray:
    return np.array([statistic(x, y) for x, y in zip(places, own, strict=True)])


def _bootstrapped(per_run: FloatArray, draws: IntArray) -> Estimate:
    low, high = np.quantile(per_run[draws].mean(1), LEVELS)
    return Estimate(float(per_run.mean()), float(low), float(high))


def _bin_means(values: FloatArray, index: IntArray, bins: int) -> FloatArray:
    return np.bincount(index, values, bins) / np.maximum(np.bincount(index, minlength=bins), 1)


def slope(x: FloatArray, y: FloatArray) -> float:
    """Least squares of y over x; 0 where x does not vary."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    return float(centred @ y) / spread if spread else 0.0


def gap(places: FloatArray, values: FloatArray) -> float:
    """Mean value of the first tenth less that of the last tenth (at least one sample each)."""
    order = np.argsort(places, kind="stable")
    tenth = max(1, len(order) // 10)
    return float(values[order[:tenth]].mean() - values[order[-tenth:]].mean())


def correlation(x: FloatArray, y: FloatArray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    a, b = x - x.mean(), y - y.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length else 0.0


def ranks(values: FloatArray) -> FloatArray:
    """float64[n], ranks from 0, equal values sharing their mean rank.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: FloatArray = (ends - counts + ends - 1) / 2.0
    return shared[inverse]


def binned_loss(losses: FloatArray, places: FloatArray, bins: int) -> FloatArray:
    """float64[B], mean loss of the samples of one run by their place; NaN in empty bins.

    Args:
        losses: float64[n].
        places: float64[n] in [0, 1).
        bins: B.
    """
    index = np.minimum((places * bins).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, losses, bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
