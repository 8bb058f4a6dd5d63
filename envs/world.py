"""The parts that an environment is made of, and what an episode has used of its budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.interval_plan import DataPlane, IntervalPlan
from mixgym.envs.learners.base import (
    Evaluation,
    Learner,
    StepRule,
    TrainReport,
)
from mixgym.envs.options import BudgetUnit
from mixgym.envs.spaces.mixture import Mixture


@dataclass(frozen=True)
class World:
    """The parts that an environment is made of.

    Attributes:
        names: of the sources, K of them.
        targets: float64[K].
        prior: the mixture of a zero action.
        cell_size: float64[K, G], units of the ratios that each cell holds; 0 marks an empty cell.
        cost, cell_cost: float64[K] and [K, G], tokens read per supervised token of the training
            rows; NaN where there are none.
        learner: what is trained.
        make_plane: a fresh data plane for an episode's seed.
        step_rule: takes the optimiser steps.
        draw: the world of an episode, by its seed, where every episode has its own.
        common: how many sources, from the first, every such world has; None: all of them.
        fingerprint: of the rows, so that a saved state is not continued on others.
        reference: measures the reward split by the reference model, where there is one.
        constants: what constant probes find, by their name: float64[K] or [K, G].
        bound: why this world is neither pickled nor deep-copied, in a sentence; empty if it may be.
    """

    names: tuple[str, ...]
    targets: FloatArray
    prior: Mixture
    cell_size: FloatArray
    cost: FloatArray
    cell_cost: FloatArray
    learner: Learner
    make_plane: Callable[[int], DataPlane]
    step_rule: StepRule
    draw: Callable[[int], "World"] | None = None
    common: int | None = None
    fingerprint: str = ""
    reference: Callable[[], Evaluation] | None = None
    constants: Mapping[str, FloatArray] = field(default_factory=dict)
    bound: str = ""

    @property
    def common_names(self) -> tuple[str, ...]:
        """Names of the sources that every episode has."""
        return self.names[: self.common]


@dataclass
class Progress:
    """What an episode has used and seen so far; plain data, saved with the environment."""

    seed: int = 0
    decisions: int = 0
    steps: int = 0
    supervised: int = 0
    tokens: int = 0
    measured: int = 0
    probed: int = 0
    reward: float = 0.0
    done: bool = False
    given: list[float] | None = None  # supervised tokens of each source
    train_nll: list[float] | None = None
    cell_train_nll: list[list[float]] | None = None
    history: list[list[float]] | None = None

    def used(self, unit: BudgetUnit) -> int:
        """How much of a budget in this unit is used."""
        return {
            "steps": self.steps,
            "supervised_tokens": self.supervised,
            "tokens": self.tokens,
        }[unit]

    def book(self, mixture: Mixture, plan: IntervalPlan, report: TrainReport) -> None:
        """Add what an interval used and how its training went."""
        self.decisions += 1
        self.steps += len(plan.steps)
        self.supervised += round(float(plan.supervised.sum()))
        self.tokens += round(float(plan.tokens.sum()))
        given = plan.supervised.sum(-1)
        self.given = (np.array(self.given or np.zeros_like(given)) + given).tolist()
        self.train_nll = _latest(report.source_nll, self.train_nll)
        self.cell_train_nll = _latest(report.nll, self.cell_train_nll)
        self.history = [*(self.history or []), mixture.sources.tolist()]


def _latest(fresh: FloatArray, before: list[Any] | None) -> list[Any]:
    """``fresh``, and what was known before where it is NaN."""
    known = np.isfinite(fresh)
    if before is not None and not known.all():
        fresh = np.where(known, fresh, np.array(before, np.float64))
    both: list[Any] = fresh.tolist()
    return both
