"""The plan of an interval: which rows are trained on, packed how, in which steps.

A :class:`DataPlane` owns the sampler and the packer. Learners read the plan and nothing else, so
that another planner can stand behind the same call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import IntArray
from mixgym.envs.spaces.mixture import Mixture

Counts = IntArray | NDArray[np.float64]


@dataclass(frozen=True)
class Pack:
    """Documents that are laid end to end in one sequence.

    Attributes:
        rows: int64[n, 3], (source, stratum, row of the source's train split) of each document.
        lengths: int64[n], tokens of each document.
        capacity: tokens that fit.
        weight: the weight of every label of the pack in the loss of its step.
        document_weights: float64[n], by which the labels of each document weigh besides; None: 1.
        normaliser: what the weighted sum of a step's losses is divided by, the same in all packs of
            a step; None: the sum of all weights of the step.
        sequence_parallel: degree of sequence parallelism that the pack is trained with.
        checkpointed_layers: layers whose activations are recomputed in the backward pass.
    """

    rows: IntArray
    lengths: IntArray
    capacity: int
    weight: float = 1.0
    document_weights: NDArray[np.float64] | None = None
    normaliser: float | None = None
    sequence_parallel: int = 1
    checkpointed_layers: int = 0

    @property
    def tokens(self) -> int:
        """Tokens used, at most ``capacity``."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class IntervalPlan:
    """The optimiser steps until the next decision.

    Attributes:
        mixture: the mixture that was asked for.
        steps: for each optimiser step its packs (the global batch).
        rows, tokens, supervised: [K, G], what the interval trains on: int64, or float64 where there
            are no rows (a closed-form learner is given fractions of a token)
        balanced: whether the interval ends where every cell's realised units since the last change
            of mixture are within one row of their share (false only if no such point fits).
        exhausted: whether the interval ended because the mixture's rows are used up, or the next
            row does not fit into the budget of tokens: there is nothing to plan after.
        packing: how well the steps use the machine, by name; see
            :class:`mixgym.envs.packing.costs.metrics.PackingMetrics`.
        step_seconds: what the cost model predicts for each step; empty without one.
    """

    mixture: Mixture
    steps: tuple[tuple[Pack, ...], ...]
    rows: Counts
    tokens: Counts
    supervised: Counts
    balanced: bool = True
    exhausted: bool = False
    packing: Mapping[str, float] = field(default_factory=dict)
    step_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What an interval may use.

    Attributes:
        steps: optimiser steps at most.
        supervised: supervised tokens at most; None: any number.
        tokens: tokens read at most, prompts included and padding not; None: any number.
    """

    steps: int
    supervised: int | None = None
    tokens: int | None = None


class DataPlane(Protocol):
    """Draws rows by the mixture and lays them out in steps."""

    def plan(self, mixture: Mixture, budget: Budget) -> IntervalPlan:
        """Draw and pack the rows of the next interval; an empty plan means nothing is left."""
        ...

    def available(self) -> NDArray[np.bool_]:
        """bool[K, G], the cells that still have rows to give."""
        ...

    def epochs(self) -> NDArray[np.float64]:
        """float64[K, G], passes over each cell's rows so far."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Plain data from which :meth:`restore` continues exactly."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        ...
