"""Aioli: rounds that first learn from perturbed mixtures what each source is worth, then act."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import number, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.simplex import even, stepped
from mixgym.agents.rule import Signals
from mixgym.envs.mixture import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

#: entries of the clock
DECISIONS, POSITION, ROUND, BEFORE = range(4)


class Aioli(Mixer):
    """Exponentiated gradient on a linear mixing law that is measured again in every round.

    Aioli (Chen et al. 2024, Algorithm 1 and 2): a round begins with ``sweeps`` sweeps in which each
    source in turn has the weight ``one_hot`` and the others share the rest; the fall of the
    held-out loss under each of these mixtures, solved for the mixtures, is how far one unit of
    every source brings the loss down (a column of A); p is multiplied by exp(rate * column sums)
    and played until the next round.

    Ours differs: only the target-weighted sum over held-out sources is kept, not the matrix A,
    which is all that the weights need; it is shifted to be non-negative if it is not and divided by
    its sum, as the released code does with the entries of A; a mixture is tried for one decision;
    mixtures are tried in order, forwards and backwards in turn (rules do not draw), since losses
    fall faster early in a sweep; p is played for ``hold`` times as many decisions as a sweep takes;
    no round is begun that could not be played for as long as it took to learn, and where even the
    first one has no room p stays uniform.

    Known complaints: a third to a half of the run is spent on mixtures of its own; with noisy
    held-out losses the solved columns are noisier than the losses by 1 / (one_hot - rest); a run of
    few decisions and many sources has room for one round. Not equivariant: the order of the sources
    is the order in which they are tried.

    ``rate``, ``one_hot`` and ``hold`` were tuned on the validation tasks of the fast world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        rate: of the exponentiated gradient, per round; the column sums sum to 1.
        one_hot: weight of the source that is tried, above a half.
        sweeps: per round.
        hold: decisions of play over decisions of a round's sweeps.
        keep: what is kept of the last round's column sums (a moving average).

    Raises:
        ConfigError: for options outside their range.
    """

    equivariant: ClassVar[bool] = False
    target_aware = True

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        rate: float = 4.0,
        one_hot: float = 0.625,
        sweeps: int = 1,
        hold: float = 1.0,
        keep: float = 0.0,
    ) -> None:
        super().__init__(
            env, names, rate=rate, one_hot=one_hot, sweeps=sweeps, hold=hold, keep=keep
        )
        self.rate = positive("rate", rate)
        self.one_hot = number(
            "one_hot", one_hot, lambda x: 0.5 < x <= 1.0, "must be above 0.5 and at most 1"
        )
        self.sweeps = whole("sweeps", sweeps)
        self.hold = positive("hold", hold)
        self.keep = share("keep", keep, one=False)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Weights (all 0: none yet); falls of a round; column sums; the clock (see above)."""
        return (sources,), (sources,), (sources,), (4,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        now, falls, worth = (array[: len(mask)] for array in memory[:3])
        clock = memory[3]
        order = np.flatnonzero(mask)
        loss = _target_mean(signals)
        if clock[DECISIONS]:
            self._learn(loss, clock, order, falls)
            self._move_on(signals, mask, (now, falls, worth), clock)
        else:
            now[:] = even(mask)
        tried = self._tried(clock[POSITION], clock[ROUND], order)
        clock[DECISIONS] += 1
        clock[POSITION] += 1
        clock[BEFORE] = loss
        return (now.copy() if tried is None else self._perturbed(mask, tried)), None

    def _tried(self, position: float, number: float, order: NDArray[np.intp]) -> int | None:
        """The source that is tried at a position of a round; None while p is played."""
        if not 0 <= position < self.sweeps * len(order):
            return None
        sweep, place = divmod(int(position), len(order))
        backwards = (int(number) * self.sweeps + sweep) % 2 == 1
        return int(order[::-1][place] if backwards else order[place])

    def _learn(
        self, loss: float, clock: FloatArray, order: NDArray[np.intp], falls: FloatArray
    ) -> None:
        """Credit the last decision's fall to the source that was tried."""
        tried = self._tried(clock[POSITION] - 1, clock[ROUND], order)
        if tried is not None:
            falls[tried] += (clock[BEFORE] - loss) / self.sweeps

    def _move_on(
        self,
        signals: Signals,
        mask: BoolArray,
        arrays: tuple[FloatArray, FloatArray, FloatArray],
        clock: FloatArray,
    ) -> None:
        """From learning to playing, and from playing to the next round."""
        now, falls, worth = arrays
        length = self.sweeps * int(mask.sum())
        end = length + max(round(self.hold * length), 1)
        left = decisions_left(signals.used, clock[DECISIONS])
        if clock[POSITION] == length:
            found = column_sums(falls, mask, self.one_hot)
            worth[:] = found if clock[ROUND] == 0 else self.keep * worth + (1 - self.keep) * found
            now[:] = stepped(now, self.rate * worth, mask)
        elif clock[ROUND] == 0 and clock[POSITION] < length:
            if left + clock[DECISIONS] < 2 * length:
                clock[POSITION] = end  # not even the first round has room
        elif clock[POSITION] >= end and left >= 2 * length:
            clock[POSITION], falls[:] = 0.0, 0.0
            clock[ROUND] += 1

    def _perturbed(self, mask: BoolArray, tried: int) -> FloatArray:
        """The mixture in which one source is tried."""
        count = int(mask.sum())
        weights = np.where(mask, rest_of(self.one_hot, count), 0.0)
        weights[tried] = self.one_hot if count > 1 else 1.0
        return weights


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
    rest = rest_of(one_hot, count)
    kept = np.where(mask, falls, 0.0)
    worth = kept if count < 2 else (kept - rest * kept.sum()) / (one_hot - rest)
    worth = np.where(mask, worth - min(float(worth[mask].min(initial=0.0)), 0.0), 0.0)
    return worth / max(float(worth.sum()), 1e-300)


def rest_of(one_hot: float, count: int) -> float:
    """Weight of every source that is not tried."""
    return (1.0 - one_hot) / max(count - 1, 1)


def decisions_left(used: float, decisions: float) -> float:
    """How many decisions are to come, from the budget that ``decisions`` of them have used."""
    return round((1.0 - used) * decisions / used) if used > 0 else np.inf


def _target_mean(signals: Signals) -> float:
    """Target-weighted mean held-out NLL; the plain mean where nothing is a target."""
    rows = signals.sources
    known = rows["nll"] > 0
    weights = np.where(known, rows["target"], 0.0)
    weights = weights if weights.any() else known.astype(np.float64)
    return float((weights * rows["nll"]).sum() / max(weights.sum(), 1e-300))
