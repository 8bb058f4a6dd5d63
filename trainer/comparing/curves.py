"""The held-out loss of a run along the tokens that it read, and when it was as good as another."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixgym.envs import storage
from mixgym.envs.arrays import FloatArray
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.world_record import WORLD


@dataclass(frozen=True)
class RunCurve:
    """The best held-out loss so far (the reward split's, weighted by target).

    Attributes:
        tokens: float64[n] read until then, rising from 0.
        best: float64[n], nats, falling.
    """

    tokens: FloatArray
    best: FloatArray

    @property
    def final(self) -> float:
        """The best loss of the whole run."""
        return float(self.best[-1])


def curve_of(folder: Path) -> RunCurve:
    """The curve of a recorded run, from before training on."""
    start = storage.read_json(folder / WORLD)["start"]["mean"]
    records = RunFolder.open(folder).read_decisions()
    tokens = [0, *(record["cost"]["train_tokens"] for record in records)]
    losses = [start, *(record["loss"]["reward_mean"] for record in records)]
    return RunCurve(np.array(tokens, np.float64), np.minimum.accumulate(np.array(losses)))


def tokens_to(curve: RunCurve, loss: float) -> float | None:
    """Tokens until the curve is down to a loss, linear between measurements; None: it never is.

    >>> curve = RunCurve(np.array([0.0, 100.0, 200.0]), np.array([5.0, 3.0, 2.0]))
    >>> tokens_to(curve, 4.0), tokens_to(curve, 2.0), tokens_to(curve, 1.9)
    (50.0, 200.0, None)
    """
    below = np.flatnonzero(curve.best <= loss)
    if not len(below):
        return None
    end = int(below[0])
    if end == 0:
        return float(curve.tokens[0])
    before, after = curve.best[end - 1], curve.best[end]
    share = (before - loss) / (before - after)
    return float(curve.tokens[end - 1] + share * (curve.tokens[end] - curve.tokens[end - 1]))
