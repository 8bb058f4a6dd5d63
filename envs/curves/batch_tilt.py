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
        decisions: in an episode, over which the travel is spread.
    """

    def __init__(self, options: BilevelOptions, count: int, sources: int, decisions: int) -> None:
        own = options.on(CURVES)
        self._logits = Logits(np.zeros((count, sources)), own.update, own.clip, own.decay or 0.0)
        self._options, self._decisions = own, decisions
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

    def learn(self, seen: Seen, asked: FloatArray, decision: NDArray[np.int64]) -> None:
        """Move lambda by what tokens of each source are worth now, before they are trained on.

        Nothing moves before decision 0 of an episode: steps are sized by the progress so far.
        """
        present: BoolArray = asked > 0
        self.gains = np.where(seen.task.present.any(-1), target_falls(seen), np.nan)
        weights = self._logits.weights(asked)
        gradient = self._logits.gradient(weights, -np.nan_to_num(self.gains), present)
        self._logits.move(gradient, weights, self._size(decision))

    def _size(self, decision: NDArray[np.int64]) -> FloatArray:
        """float64[n], what of the travel the decision before this one has handed out."""
        now, then = (
            handed_out(self._options.update, np.maximum(decision - back, 0) / self._decisions)
            for back in (0, 1)
        )
        size: FloatArray = self._options.travel * np.maximum(now - then, 0.0)
        return size

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from."""
        return {**self._logits.snapshot(), "gains": self.gains.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._logits.restore(state)
        self.gains = np.array(state["gains"])
