"""Bilevel weights in the fast world: lambda of many environments, moved by exact alignment."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.weights import Logits, handed_out, softmax_around
from mixgym.envs.curves.probes import Seen, target_falls
from mixgym.envs.learners.kinds import CURVES


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

    def reset(self, which: NDArray[np.intp]) -> None:
        """Start the environments ``which`` anew."""
        self._logits.clear(which)
        self.gains = self.gains.copy()
        self.gains[which] = np.nan

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
        gradient = self._logits.gradient(weights, -np.nan_to_num(self.gains), present)
        update = self._options.update
        handed = handed_out(update, now) - handed_out(update, then)
        self._logits.move(gradient, weights, self._options.travel * np.maximum(handed, 0.0))

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from."""
        return {**self._logits.snapshot(), "gains": self.gains.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._logits.restore(state)
        self.gains = np.array(state["gains"])
