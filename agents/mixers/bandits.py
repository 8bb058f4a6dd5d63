"""Bandits over sources: exponential weights (with both published forms of ODM), and UCB.

A pull of a bandit is a batch from one source; a decision here is a mixture, in which every source
with a weight is pulled in its share. So payments are shared out, and no arm is sampled.
"""

from typing import TYPE_CHECKING

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, flag, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.simplex import even, smoothed, softmax
from mixgym.agents.mixers.trust import believed, charged, falls_since, moving_error
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

LEAST_WEIGHT = 1e-3
"""Payments are divided by a weight, but by no less than this."""


class Exp3(Mixer):
    """Exponential weights over sources, paid by progress or, as published in ODM, by loss.

    ``progress`` (ours): after a decision source k is paid x_k = target_k (fall of its held-out NLL
    / its NLL at the start) / p_k, over the largest |x| so far; its score rises by ``rate`` x_k, and
    the weights are (1 - explore) softmax(scores) + explore / K (Auer et al. 2002, with every arm
    seen).

    ``paper`` (Albalak et al. 2023, "Efficient Online Data Mixing", Algorithm 1): the reward is the
    training loss, R_k grows by (loss_k / 10) / p_k at a pull of k, eps_t = min(1/K, sqrt(ln K /
    (K t))), and p = (1 - K eps_t) softmax(eps_{t-1} R) + eps_t. A decision stands for ``pulls``
    pulls, of which k has the share p_k: R_k grows by what they pay together, pulls * loss_k / 10,
    and t counts pulls.

    ``released`` (what the authors' repository says that it ran): R_k <- s R_k + (1 - s) exp(loss_k)
    with s = ``smoothing``, and p = (1 - K eps_t) R / sum R + eps_t.

    Known complaints: whoever is paid by loss loves noise, which has the highest loss for ever and
    no target to tell it by; exp(loss) is dominated by a single source. Paid by progress, an arm is
    also paid for what other sources taught it, divided by its own small weight; and a held-out set
    of a hundred tokens, or a source that is read at fifty times the tokens, is paid like any other.
    Against the last ``progress`` is ``noise_aware``: of a fall it pays what is believed and carries
    the rest over, per token read, worth less with every pass (see :mod:`.trust`).

    ``rate`` and ``explore`` were tuned on the validation tasks of the fast world; the rest is as
    published.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        variant: ``progress``, ``paper`` or ``released``.
        rate: how fast scores move (``progress``).
        explore: share of uniform in the weights (``progress``).
        pulls: what a decision counts for (``paper``, ``released``).
        smoothing: s, what is kept of the last estimate (``released``).
        noise_aware: count errors, costs and passes (``progress``); false: falls as measured.

    Raises:
        ConfigError: for options outside their range.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        variant: str = "progress",
        rate: float = 4.0,
        explore: float = 0.05,
        pulls: int = 10,
        smoothing: float = 0.5,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env,
            names,
            variant=variant,
            rate=rate,
            explore=explore,
            pulls=pulls,
            smoothing=smoothing,
            noise_aware=noise_aware,
        )
        self.variant = choice("variant", variant, tuple(_VARIANTS))
        self.target_aware = variant == "progress"
        self.rate = positive("rate", rate)
        self.explore = share("explore", explore, zero=False)
        self.pulls = whole("pulls", pulls)
        self.smoothing = share("smoothing", smoothing, one=False)
        self.noise_aware = flag("noise_aware", noise_aware)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Scores; NLL that was paid for (0: none yet); decisions, and largest |x| so far."""
        return (sources,), (sources,), (2,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        return _VARIANTS[self.variant](self, signals, memory), None

    def _paid_by_progress(self, signals: Signals, memory: State) -> FloatArray:
        mask = signals.trainable
        scores, before, clock = memory[0][: len(mask)], memory[1][: len(mask)], memory[2]
        counted, found = (
            self._per_pull(signals, fall) for fall in falls_since(signals, before, self.noise_aware)
        )
        if found.any():
            # over what was measured: what is not believed must not look large again
            clock[1] = max(clock[1], float(np.abs(found).max()), 1e-12)
            scores += self.rate * counted / clock[1]
        return smoothed(softmax(scores, mask), mask, self.explore)

    def _per_pull(self, signals: Signals, fall: FloatArray) -> FloatArray:
        """float64[K], what a fall pays per unit of weight, or of tokens read."""
        pay = _progress_of(signals, fall) / np.maximum(signals.sources["weight"], LEAST_WEIGHT)
        return charged(signals, pay) if self.noise_aware else pay

    def _paid_by_loss(self, signals: Signals, memory: State) -> FloatArray:
        mask = signals.trainable
        scores, clock = memory[0][: len(mask)], memory[2]
        pulled = _pulled(signals, clock)
        scores += np.where(pulled, self.pulls * signals.sources["nll_train"] / 10.0, 0.0)
        # the step size is of the pull before, the floor of this one
        rate, floor = (_exploration(mask, clock[0] * self.pulls - back) for back in (1, 0))
        clock[0] += 1
        return _floored(softmax(rate * scores, mask), mask, floor)

    def _paid_by_smoothed_loss(self, signals: Signals, memory: State) -> FloatArray:
        mask = signals.trainable
        logs, seen, clock = memory[0][: len(mask)], memory[1][: len(mask)], memory[2]
        pulled = _pulled(signals, clock)
        loss = signals.sources["nll_train"]
        with np.errstate(divide="ignore"):
            kept, new = np.log(self.smoothing), np.log1p(-self.smoothing)
        moved = np.where(seen > 0, np.logaddexp(kept + logs, new + loss), loss)
        logs[:] = np.where(pulled, moved, logs)
        seen[:] = np.maximum(seen, pulled)
        clock[0] += 1
        known = mask & (seen > 0)
        if not known.any():
            return even(mask)
        # a source that was never pulled is taken for a mean one
        guess = np.log(np.mean(np.exp(logs[known] - logs[known].max()))) + logs[known].max()
        floor = _exploration(mask, (clock[0] - 1) * self.pulls)
        return _floored(softmax(np.where(known, logs, guess), mask), mask, floor)


_VARIANTS = {
    "progress": Exp3._paid_by_progress,
    "paper": Exp3._paid_by_loss,
    "released": Exp3._paid_by_smoothed_loss,
}


class Ucb(Mixer):
    """Upper confidence bounds for payments that drift, softened into a mixture.

    Discounted UCB (Garivier and Moulines 2011): with discount g, pulls N_k = sum g^age K p_k and
    pay X_k = sum g^age x_k, the index of source k is X_k / N_k, over the largest of these, plus
    ``bonus`` sqrt(ln(1 + sum N) / (1 + N_k)); the 1 keeps arms finite that were never pulled. A
    mixture cannot take the best arm alone: p = softmax(index / temperature), as DUMP (Wang et al.
    2025) softens it. x_k is the target times the fall of the held-out NLL over its start.

    Known complaints: a payment for loss instead of progress would love noise (see :class:`Exp3`);
    what a source learnt from others is paid to it. Errors of measuring are no reason to explore:
    no pull makes a held-out set larger. So ``noise_aware`` leaves the bonus to pulls, and takes the
    error from the mean: X_k / N_k counts as far as it is believed, per token read, worth less with
    every pass (see :mod:`.trust`). The falls in X_k telescope, so that X_k errs by no more than one
    of them, however many there are.

    The defaults were tuned on the validation tasks of the fast world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        bonus: weight of what is uncertain.
        temperature: of the softmax over indices.
        discount: what a decision leaves of the pulls before it.
        noise_aware: count errors, costs and passes; false: falls as measured.

    Raises:
        ConfigError: for options outside their range.
    """

    target_aware = True

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        bonus: float = 0.1,
        temperature: float = 0.2,
        discount: float = 0.8,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env,
            names,
            bonus=bonus,
            temperature=temperature,
            discount=discount,
            noise_aware=noise_aware,
        )
        self.bonus = positive("bonus", bonus)
        self.temperature = positive("temperature", temperature)
        self.discount = share("discount", discount, zero=False)
        self.noise_aware = flag("noise_aware", noise_aware)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Discounted pulls and pay; NLL at the last decision (0: none yet)."""
        return (sources,), (sources,), (sources,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        pulls, pay, before = (array[: len(mask)] for array in memory)
        weight = signals.sources["weight"]
        started = before.any()
        _, fall = falls_since(signals, before, aware=False)  # the sum is believed, not its parts
        if started:
            pulls[:] = self.discount * pulls + mask.sum() * weight
            pay[:] = self.discount * pay + _progress_of(signals, fall)
        mean, largest = self._means(signals, pay, np.maximum(pulls, LEAST_WEIGHT))
        unsure = np.sqrt(np.log1p(pulls.sum()) / (1.0 + pulls))
        index = mean / max(largest, 1e-12) + self.bonus * unsure
        return softmax(index / self.temperature, mask), None

    def _means(
        self, signals: Signals, pay: FloatArray, pulls: FloatArray
    ) -> tuple[FloatArray, float]:
        """float64[K], X_k / N_k as far as it counts; and the largest as it was measured."""
        mean = np.where(signals.trainable, pay / pulls, 0.0)
        if not self.noise_aware:
            return mean, float(np.abs(mean).max())
        rows = signals.sources
        error = rows["target"] * moving_error(rows) / np.maximum(rows["nll_start"], 1e-9) / pulls
        largest = float(np.abs(charged(signals, mean)).max())
        return charged(signals, believed(mean, error)), largest


def _progress_of(signals: Signals, fall: FloatArray) -> FloatArray:
    """float64[K], target times the fall of the held-out NLL, over its NLL at the start.

    A source that was not trained on has earned nothing by itself: 0.
    """
    rows = signals.sources
    earned = (rows["nll_start"] > 0) & signals.trainable & (rows["weight"] > 0)
    return np.where(earned, rows["target"] * (fall / np.maximum(rows["nll_start"], 1e-9)), 0.0)


def _pulled(signals: Signals, clock: FloatArray) -> BoolArray:
    """bool[K], sources that were trained on in the last interval."""
    rows = signals.sources
    pulled: BoolArray = signals.trainable & (rows["weight"] > 0) & (rows["nll_train"] > 0)
    return pulled & bool(clock[0] > 0)


def _exploration(mask: BoolArray, pulls: float) -> float:
    """eps_t = min(1/K, sqrt(ln K / (K t))) after ``pulls`` pulls."""
    count = max(int(mask.sum()), 1)
    return min(1.0 / count, float(np.sqrt(np.log(count) / (count * max(pulls, 1e-9)))))


def _floored(weights: FloatArray, mask: BoolArray, floor: float) -> FloatArray:
    """(1 - K floor) weights + floor."""
    count = int(mask.sum())
    return smoothed(weights, mask, min(count * floor, 1.0))
