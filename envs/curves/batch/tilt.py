"""Bilevel weights in the fast world: lambda of many environments, moved by exact alignment."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.weights import Logits, effective_sources, handed_out, softmax_around
from mixgym.envs.curves.probes import Seen, target_falls
from mixgym.envs.learners.kinds import CURVES
from mixgym.envs.spaces.mixture import last_sum


@dataclass(frozen=True)
class Watched:
    """What step rule ``bilevel`` had learnt after a decision; arrays are never changed.

    Attributes:
        options: of the rule.
        base, weights, logits, gains: float64[n, K]: what agents asked for, what is sampled for it
            from now on, lambda, and what sources were found to be worth.
        travelled: float64[n], sum of the largest moves of lambda.
        negative, updates: int64[n], updates so far, and those with a negative gap.
    """

    options: BilevelOptions
    base: FloatArray
    weights: FloatArray
    logits: FloatArray
    gains: FloatArray
    travelled: FloatArray
    negative: NDArray[np.int64]
    updates: NDArray[np.int64]

    def health(self, index: int, names: tuple[str, ...]) -> dict[str, float]:
        """Of one environment: see :class:`~mixgym.envs.bilevel.rule.BilevelStep`."""
        i, count = index, len(names)
        steps = int(self.updates[i])
        alpha = float(self.options.alpha * (1.0 + steps) ** self.options.alpha_growth)
        weights, gap = self.weights[i, :count], -self.gains[i, :count]
        values = {
            "travel": float(self.travelled[i]) / self.options.travel,
            "effective_sources": effective_sources(weights),
            "alpha": alpha,
            "gap_negative": int(self.negative[i]) / max(steps, 1),
            "gap": float(weights @ gap) / alpha,
        }
        tables = {
            "weight": weights,
            "logit": self.logits[i, :count],
            "absent": np.zeros(count),
            "gap": gap,
        }
        for label, table in tables.items():
            values |= {f"{label}/{name}": float(v) for name, v in zip(names, table, strict=True)}
        return values


class BatchTilt:
    """What step rule ``bilevel`` does in single environments, for many at once.

    Args:
        options: of the rule; the estimator is ``alignment``, whatever they say.
        count: environments.
        sources: K_max.
    """

    def __init__(self, options: BilevelOptions, count: int, sources: int) -> None:
        own = options.on(CURVES)
        self._logits = Logits(np.zeros((count, sources)), own.update, own.clip, own.decay or 0.0)
        self._options = own
        self.gains = np.full((count, sources), np.nan)
        self._base = np.zeros((count, sources))
        self._updates = self._negative = np.zeros(count, np.int64)

    def reset(self, which: NDArray[np.intp]) -> None:
        """Start the environments ``which`` anew."""
        self._logits.clear(which)
        self.gains = self.gains.copy()
        self.gains[which] = np.nan
        self._updates, self._negative = self._updates.copy(), self._negative.copy()
        self._updates[which] = self._negative[which] = 0

    def tilt(self, asked: FloatArray) -> FloatArray:
        """float64[n, K], what is sampled where ``asked`` is asked for."""
        tilted = softmax_around(asked, self._logits.value)
        return np.where(self._logits.value.any(-1, keepdims=True), tilted, asked)

    def learn(self, seen: Seen, asked: FloatArray, now: FloatArray, then: FloatArray) -> None:
        """Move lambda by what tokens of each source are worth now, before they are trained on.

        Nothing moves before the first decision of an episode: steps are sized by the progress so
        far.

        Args:
            seen: all learners.
            asked: float64[n, K].
            now: float64[n], share of the budget used before this decision.
            then: the same before the decision before it.
        """
        present: BoolArray = asked > 0
        self.gains = np.where(seen.task.present.any(-1), target_falls(seen), np.nan)
        weights = self._logits.weights(asked)
        gap = -np.nan_to_num(self.gains)
        gradient = self._logits.gradient(weights, gap, present)
        self._base, self._updates = asked, self._updates + 1
        self._negative = self._negative + (last_sum(weights * gap) < 0)
        update = self._options.update
        handed = handed_out(update, now) - handed_out(update, then)
        self._logits.move(gradient, weights, self._options.travel * np.maximum(handed, 0.0))

    def watched(self) -> Watched:
        """What there is to watch of it now."""
        lam = self._logits
        return Watched(
            self._options,
            self._base,
            lam.weights(self._base),
            lam.value,
            self.gains,
            lam.travelled,
            self._negative,
            self._updates,
        )

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from."""
        counts = {"updates": self._updates.tolist(), "negative": self._negative.tolist()}
        return {**self._logits.snapshot(), **counts, "gains": self.gains.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._logits.restore(state)
        self.gains = np.array(state["gains"])
        self._updates = np.array(state["updates"], np.int64)
        self._negative = np.array(state["negative"], np.int64)
