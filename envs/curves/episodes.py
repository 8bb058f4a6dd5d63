"""What the episodes of a batch of closed-form environments hold, as arrays."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.dynamics import CurveState
from mixgym.envs.spaces.actions import Levels


@dataclass(frozen=True)
class Episodes:
    """Of n environments; arrays are replaced and never written to, as records hold on to them.

    Attributes:
        decision: int64[n], decisions so far.
        reward: float64[n], of the last one.
        asked, weight: float64[n, K], the weights of sources that were asked for, and trained on.
        inner: float64[n, K, G], weights of strata.
        share: float64[n, K], realised so far.
        train, cell_train: float64[n, K], [n, K, G], training NLL; NaN where nothing was trained.
        start, before, now: float64[n, K, G], held-out NLL as measured.
        given, learnt: float64[n, K, G], see :class:`~mixgym.envs.curves.dynamics.CurveState`.
    """

    decision: NDArray[np.int64]
    reward: FloatArray
    asked: FloatArray
    weight: FloatArray
    inner: FloatArray
    share: FloatArray
    train: FloatArray
    cell_train: FloatArray
    start: FloatArray
    before: FloatArray
    now: FloatArray
    given: FloatArray
    learnt: FloatArray

    @classmethod
    def begun(cls, prior: Levels) -> "Episodes":
        """Before the first decision and any measurement; the mixture is the prior."""
        top, inner = prior
        nothing, cells = np.zeros_like(top), np.zeros_like(inner)
        return cls(
            decision=np.zeros(len(top), np.int64),
            reward=np.zeros(len(top)),
            asked=top,
            weight=top,
            inner=inner,
            share=nothing,
            train=np.full_like(top, np.nan),
            cell_train=np.full_like(inner, np.nan),
            start=cells,
            before=cells,
            now=cells,
            given=cells,
            learnt=cells,
        )

    @property
    def state(self) -> CurveState:
        """What has been trained so far."""
        return CurveState(self.given, self.learnt)

    def replaced(self, where: BoolArray, others: "Episodes") -> "Episodes":
        """These, and the ``others`` where bool[n] says so."""
        ours, theirs = vars(self), vars(others)
        return Episodes(**{n: over(where, theirs[n], ours[n]) for n in ours})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies by name, of which :meth:`of` makes the same again."""
        return {name: values.copy() for name, values in vars(self).items()}

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> "Episodes":
        """The opposite of :meth:`arrays`; other names are left alone."""
        return cls(**{field.name: np.array(arrays[field.name]) for field in fields(cls)})


def over(where: BoolArray, ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
    """``ours`` [n, ...] where bool[n] says so, ``theirs`` elsewhere."""
    return np.where(where.reshape(-1, *[1] * (ours.ndim - 1)), ours, theirs)
