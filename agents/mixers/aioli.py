"""Aioli: rounds that first learn from perturbed mixtures what each source is worth, then act."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import flag, number, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.simplex import even, stepped
from mixgym.agents.mixers.trust import moving_error, steadied, worth
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

DECISIONS, POSITION, ROUND = range(3)
"""Entries of the clock."""
_TRIALS = 6
"""Fewest trials of a round that a trend can be told from."""
_POWERS = np.linspace(0.0, 3.0, 31)
"""Powers of time that a fall may follow."""


class Aioli(Mixer):
    """Exponentiated gradient on a linear mixing law that is measured again in every round.

    Aioli (Chen et al. 2024, Algorithm 1 and 2): a round begins with ``sweeps`` sweeps in which each
    source in turn has the weight ``one_hot`` and the others share the rest; the fall of the
    held-out loss under each of these mixtures, solved for the mixtures, is how far one unit of
    every source brings the loss down (a column of A); p is multiplied by exp(rate * column sums)
    and played until the next round.

    Ours differs: only the target-weighted sum over held-out sources is kept, not the matrix A,
    which is all that the weights need; it is shifted to be non-negative if it is not and divided by
    its sum, as the released code does with the entries of A; a mixture is tried for one decision,
    in the order of losses at the start, down and up in turn (rules do not draw); p is played for
    ``hold`` times as many decisions as were tried; no round is begun that could not be played for
    as long as it takes to learn, and where even the first one has no room p stays uniform. Losses
    fall faster the earlier a mixture is tried, which as published is credited to the source that
    happens to be tried first: with ``detrend`` falls are multiplied by the power of time that makes
    them most alike (:func:`detrended`), few sources are swept until there are six trials, and the
    first round waits for ``warmup`` decisions, since no power describes the very start.

    With ``noise_aware`` a held-out set has its say in the regression as far as its falls under the
    round's mixtures differ by more than they err, and else its mean fall; what a unit is worth
    sinks with the passes (see :mod:`.trust`). Trials read equally many tokens, so that cost is in
    the falls already.

    Known complaints: a third to a half of the run is spent on mixtures of its own; with noisy
    held-out losses the solved columns are noisier than the losses by 1 / (one_hot - rest); a run of
    few decisions and many sources has room for one round.

    ``rate``, ``one_hot``, ``hold`` and ``warmup`` were tuned on the validation tasks of the fast
    world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        rate: of the exponentiated gradient, per round; the column sums sum to 1.
        one_hot: weight of the source that is tried, above a half.
        sweeps: per round, at least.
        hold: decisions of play over decisions of a round's sweeps.
        keep: what is kept of the last round's column sums (a moving average).
        detrend: whether falls are corrected for the time at which they were measured.
        warmup: uniform decisions before the first round.
        noise_aware: count errors and passes; false: falls as measured.

    Raises:
        ConfigError: for options outside their range.
    """

    target_aware = True

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        rate: float = 6.0,
        one_hot: float = 0.625,
        sweeps: int = 1,
        hold: float = 0.5,
        keep: float = 0.0,
        detrend: bool = True,
        warmup: int = 3,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env,
            names,
            rate=rate,
            one_hot=one_hot,
            sweeps=sweeps,
            hold=hold,
            keep=keep,
            detrend=detrend,
            warmup=warmup,
            noise_aware=noise_aware,
        )
        self.rate = positive("rate", rate)
        self.one_hot = number(
            "one_hot", one_hot, lambda x: 0.5 < x <= 1.0, "must be above 0.5 and at most 1"
        )
        self.sweeps = whole("sweeps", sweeps)
        self.hold = positive("hold", hold)
        self.keep = share("keep", keep, one=False)
        self.detrend = flag("detrend", detrend)
        self.warmup = whole("warmup", warmup, 0)
        self.noise_aware = flag("noise_aware", noise_aware)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Weights (all 0: none yet); column sums; a round's losses; the clock (above).

        The losses are those of the held-out sources before the first trial, and after each.
        """
        return (sources,), (sources,), (self.sweeps * sources + 2 * _TRIALS + 1, sources), (3,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        now, sums = (array[: len(mask)] for array in memory[:2])
        losses, clock = memory[2][:, : len(mask)], memory[3]
        order = _order(signals)
        if clock[DECISIONS]:
            if 0 <= clock[POSITION] <= self._length(len(order)):
                losses[int(clock[POSITION])] = signals.sources["nll"]
            self._move_on(signals, (now, sums, losses), clock)
        else:
            now[:] = even(mask)
            clock[POSITION] = -self.warmup
        if clock[POSITION] == 0:
            losses[0] = signals.sources["nll"]
        tried = self._tried(int(clock[POSITION]), int(clock[ROUND]), order)
        clock[DECISIONS] += 1
        clock[POSITION] += 1
        return (now.copy() if tried is None else self._perturbed(mask, tried)), None

    def _length(self, count: int) -> int:
        """Trials in a round with ``count`` sources."""
        return count * (max(self.sweeps, -(-_TRIALS // count)) if self.detrend else self.sweeps)

    def _tried(self, position: int, number: int, order: NDArray[np.intp]) -> int | None:
        """The source that is tried at a position of a round; None while p is played."""
        length = self._length(len(order))
        if not 0 <= position < length:
            return None
        sweep, place = divmod(position, len(order))
        backwards = (number * (length // len(order)) + sweep) % 2 == 1
        return int(order[::-1][place] if backwards else order[place])

    def _move_on(
        self,
        signals: Signals,
        arrays: tuple[FloatArray, FloatArray, FloatArray],
        clock: FloatArray,
    ) -> None:
        """From trying to playing, and from playing to the next round."""
        length = self._length(int(signals.trainable.sum()))
        end = length + max(round(self.hold * length), 1)
        left = decisions_left(signals.used, clock[DECISIONS])
        if clock[POSITION] == length:
            self._update(signals, arrays, clock)
        elif clock[ROUND] == 0 and clock[POSITION] < length:
            if left + clock[DECISIONS] < 2 * length:
                clock[POSITION] = end  # not even the first round has room
        elif clock[POSITION] >= end and left >= 2 * length:
            clock[POSITION] = 0.0
            clock[ROUND] += 1

    def _update(
        self,
        signals: Signals,
        arrays: tuple[FloatArray, FloatArray, FloatArray],
        clock: FloatArray,
    ) -> None:
        """Solve a round's trials, and move p."""
        now, sums, losses = arrays
        mask, order = signals.trainable, _order(signals)
        found = self._falls(signals, losses[: self._length(len(order)) + 1])
        if self.detrend:
            found = detrended(found, clock[DECISIONS] - len(found))
        by_source = np.zeros(len(mask))
        for position, fall in enumerate(found):
            tried = self._tried(position, int(clock[ROUND]), order)
            by_source[tried] += fall * len(order) / len(found)
        new = column_sums(by_source, mask, self.one_hot)
        if self.noise_aware:
            new *= worth(signals)
            new /= max(float(new.sum()), 1e-300)
        sums[:] = new if clock[ROUND] == 0 else self.keep * sums + (1.0 - self.keep) * new
        now[:] = stepped(now, self.rate * sums, mask)

    def _falls(self, signals: Signals, losses: FloatArray) -> FloatArray:
        """float64[trials], falls of the target-weighted loss under each mixture.

        Args:
            signals: for targets and errors.
            losses: float64[trials + 1, K].
        """
        weights = _target_weights(signals)
        total = max(float(weights.sum()), 1e-300)
        if not self.noise_aware:
            mean = (weights * losses).sum(-1) / total
            return mean[:-1] - mean[1:]
        falls = (losses[:-1] - losses[1:]).T  # by held-out source
        every = np.ones(falls.shape, np.bool_)
        return weights @ steadied(falls, moving_error(signals.sources)[:, None], every) / total

    def _perturbed(self, mask: BoolArray, tried: int) -> FloatArray:
        """The mixture in which one source is tried."""
        count = int(mask.sum())
        weights = np.where(mask, _rest_of(self.one_hot, count), 0.0)
        weights[tried] = self.one_hot if count > 1 else 1.0
        return weights


def detrended(falls: FloatArray, decisions: float) -> FloatArray:
    """Falls times the power of time that makes them most alike, over their mean.

    A loss that follows a power law of the tokens falls ever more slowly; what is left after that
    trend is taken out is due to the mixtures. As they are where nothing falls on the whole.

    Args:
        falls: float64[trials], one after the other.
        decisions: made before the first of them.

    >>> detrended(3.0 / (np.arange(4) + 2.5) ** 1.5, 2).round(9).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    middle = decisions + np.arange(len(falls)) + 0.5
    straight = falls * (middle / middle[0]) ** _POWERS[:, None]
    mean = straight.mean(-1)
    alike = np.where(mean > 0, straight.std(-1) / np.maximum(mean, 1e-300), np.inf)
    best = int(alike.argmin())
    return straight[best] / mean[best] if np.isfinite(alike[best]) else falls


def column_sums(falls: FloatArray, mask: BoolArray, one_hot: float) -> FloatArray:
    """What one unit of each source is worth: non-negative, summing to 1 (0 if nothing fell).

    Mixture j gives source j the weight f and the others b each, so falls = ((f - b) I + b) worth,
    whose sums are equal because a mixture sums to 1.

    Args:
        falls: float64[K], of the held-out loss under the mixture that tries each source.
        mask: bool[K], the sources that were tried.
        one_hot: f.
    """
    count = int(mask.sum())
    rest = _rest_of(one_hot, count)
    kept = np.where(mask, falls, 0.0)
    worth = kept if count < 2 else (kept - rest * kept.sum()) / (one_hot - rest)
    worth = np.where(mask, worth - min(float(worth[mask].min(initial=0.0)), 0.0), 0.0)
    return worth / max(float(worth.sum()), 1e-300)


def _rest_of(one_hot: float, count: int) -> float:
    """Weight of every source that is not tried."""
    return (1.0 - one_hot) / max(count - 1, 1)


def decisions_left(used: float, decisions: float) -> float:
    """How many decisions are to come, from the budget that ``decisions`` of them have used."""
    return round((1.0 - used) * decisions / used) if used > 0 else np.inf


def _order(signals: Signals) -> NDArray[np.intp]:
    """Trainable sources by their held-out NLL at the start, the highest first."""
    order = np.argsort(-signals.sources["nll_start"], kind="stable")
    return order[signals.trainable[order]]


def _target_weights(signals: Signals) -> FloatArray:
    """float64[K], what held-out sources count in the loss; alike where nothing is a target."""
    rows = signals.sources
    known = rows["nll"] > 0
    weights = np.where(known, rows["target"], 0.0)
    return weights if weights.any() else known.astype(np.float64)
