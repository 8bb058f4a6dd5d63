"""The parts that an environment is made of, and what an episode has used of its budget."""

from collections.abc import Callable
from dataclasses import dataclass

from mixgym.envs.learners.base import FloatArray, Learner, StepRule
from mixgym.envs.mixture import Mixture
from mixgym.envs.plan import DataPlane


@dataclass(frozen=True)
class World:
    """The parts that an environment is made of.

    Attributes:
        names: of the sources, K of them.
        targets: float64[K].
        prior: the mixture of a zero action.
        cell_size: float64[K, G], units of the ratios that each cell holds; 0 marks an empty cell.
        learner: what is trained.
        make_plane: a fresh data plane for an episode's seed.
        step_rule: takes the optimiser steps.
        draw: the world of an episode, by its seed, where every episode has its own.
        fingerprint: of the rows, so that a saved state is not continued on others.
    """

    names: tuple[str, ...]
    targets: FloatArray
    prior: Mixture
    cell_size: FloatArray
    learner: Learner
    make_plane: Callable[[int], DataPlane]
    step_rule: StepRule
    draw: Callable[[int], "World"] | None = None
    fingerprint: str = ""


@dataclass
class Progress:
    """What an episode has used and seen so far; plain data, saved with the environment."""

    seed: int = 0
    decisions: int = 0
    steps: int = 0
    supervised: int = 0
    tokens: int = 0
    measured: int = 0
    reward: float = 0.0
    done: bool = False
    given: list[float] | None = None  # supervised tokens of each source
    train_nll: list[float] | None = None
    history: list[list[float]] | None = None
