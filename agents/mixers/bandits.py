"""Bandits over sources: exponential weights (with both published forms of ODM), and UCB.

A pull of a bandit is a batch from one source; a decision here is a mixture, in which every source
with a weight is pulled in its share. So payments are shared out, and no arm is sampled.
"""

from typing import TYPE_CHECKING

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.simplex import even, smoothed, softmax
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
    also paid for what other sources taught it, divided by its own small weight.

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
    ) -> None:
        super().__init__(
            env,
            names,
            variant=variant,
            rate=rate,
            explore=explore,
            pulls=pulls,
            smoothing=smoothing,
        )
        self.variant = choice("variant", variant, tuple(_VARIANTS))
        self.target_aware = variant == "progress"
        self.rate = positive("rate", rate)
        self.explore = share("explore", explore, zero=False)
        self.pulls = whole("pulls", pulls)
        self.smoothing = share("smoothing", smoothing, one=False)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Scores; NLL at the last decision (0: none yet); decisions, and largest |x| so far."""
        return (sources,), (sources,), (2,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        return _VARIANTS[self.variant](self, signals, memory), None

    def _paid_by_progress(self, signals: Signals, memory: State) -> FloatArray:
        mask = signals.trainable
        scores, before, clock = memory[0][: len(mask)], memory[1][: len(mask)], memory[2]
        if before.any():
            paid = _progress_paid(signals, before)
            clock[1] = max(clock[1], float(np.abs(paid).max()), 1e-12)
            scores += self.rate * paid / clock[1]
        before[:] = signals.sources["nll"]
        return smoothed(softmax(scores, mask), mask, self.explore)

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
    what a source learnt from others is paid to it.

    The defaults were tuned on the validation tasks of the fast world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        bonus: weight of what is uncertain.
        temperature: of the softmax over indices.
        discount: what a decision leaves of the pulls before it.

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
    ) -> None:
        super().__init__(env, names, bonus=bonus, temperature=temperature, discount=discount)
        self.bonus = positive("bonus", bonus)
        self.temperature = positive("temperature", temperature)
        self.discount = share("discount", discount, zero=False)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Discounted pulls and pay; NLL at the last decision (0: none yet)."""
        return (sources,), (sources,), (sources,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        pulls, pay, before = (array[: len(mask)] for array in memory)
        weight = signals.sources["weight"]
        if before.any():
            pulls[:] = self.discount * pulls + mask.sum() * weight
            pay[:] = self.discount * pay + _progress_of(signals, before)
        before[:] = signals.sources["nll"]
        mean = np.where(mask, pay / np.maximum(pulls, LEAST_WEIGHT), 0.0)
        unsure = np.sqrt(np.log1p(pulls.sum()) / (1.0 + pulls))
        index = mean / max(float(np.abs(mean).max()), 1e-12) + self.bonus * unsure
        return softmax(index / self.temperature, mask), None


def _progress_of(signals: Signals, before: FloatArray) -> FloatArray:
    """float64[K], target times the fall of the held-out NLL, over its NLL at the start.

    A source that was not trained on has earned nothing by itself: 0.
    """
    rows = signals.sources
    measured = (rows["nll_start"] > 0) & (rows["nll"] > 0) & (before > 0)
    earned = measured & signals.trainable & (rows["weight"] > 0)
    fall = (before - rows["nll"]) / np.maximum(rows["nll_start"], 1e-9)
    return np.where(earned, rows["target"] * fall, 0.0)


def _progress_paid(signals: Signals, before: FloatArray) -> FloatArray:
    """float64[K], :func:`_progress_of` per unit of weight."""
    return _progress_of(signals, before) / np.maximum(signals.sources["weight"], LEAST_WEIGHT)


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
