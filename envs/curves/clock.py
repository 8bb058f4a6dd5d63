"""How a batch's budget is spread over its decisions: what they have used, by their number."""

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray, IntArray


class Clock:
    """Looked up rather than computed; an episode that has ended stands still.

    Args:
        decisions: in an episode.
        interval: steps between two decisions.
        steps: in an episode; the last interval may be shorter.

    Attributes:
        decisions, total: of an episode: decisions, and steps.
        used: int64[decisions + 1], steps that so many decisions take.
        steps: float64[decisions + 1], of the interval after so many decisions.
        done: float64[decisions + 1], share of the budget that they use.
    """

    def __init__(self, decisions: int, interval: int, steps: int) -> None:
        self.decisions = decisions
        self.used: IntArray = np.minimum(np.arange(decisions + 1) * interval, steps)
        self.total = int(self.used[-1])
        self.steps: FloatArray = np.diff(self.used, append=self.total).astype(np.float64)
        self.done: FloatArray = self.used / self.total

    def at(self, decision: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n], places in these tables."""
        return np.minimum(decision, self.decisions)
