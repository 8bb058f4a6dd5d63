"""Random mixtures that stay for a while and then change: what a library of runs is recorded under.

A fast world is fitted to what real runs did under many mixtures, constant ones and changing ones,
near the prior and far from it. Everything is drawn from named streams of one seed, so that a rule
remembers nothing: which piece of the budget it stands in tells the mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.rule import Rule, Signals
from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.random_streams import stream

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

Centre = Literal["prior", "uniform"]
CENTRES: tuple[Centre, ...] = get_args(Centre)
CONCENTRATIONS = (0.3, 1.0, 3.0, 10.0)
"""Dirichlet weights per source: far from the centre, anywhere, near it, very near."""

MILDER = 4.0
"""Times the concentration of sources is that of strata inside a source."""

MOST_CHANGES = 8
CONSTANT_SHARE = 0.25
"""Of the runs, those whose mixture never changes."""

_NAME = "random pieces"
_LEAST = 1e-6  # of a Dirichlet parameter: a source without a weight gets next to nothing


@dataclass(frozen=True)
class PieceDraw:
    """How the mixtures of one run are drawn.

    Attributes:
        centre: of the Dirichlet distribution over sources.
        concentration: of its parameters the mean, over sources.
        at: shares of the budget after which the mixture changes, rising.
    """

    centre: Centre
    concentration: float
    at: tuple[float, ...]


def draw_pieces(draw: int) -> PieceDraw:
    """Draw what is not given; a quarter of all draws never change.

    >>> draw_pieces(3) == draw_pieces(3)
    True
    """
    rng = stream(draw, _NAME, "options")
    centre, concentration = CENTRES[rng.integers(2)], float(rng.choice(CONCENTRATIONS))
    is_constant = rng.random() < CONSTANT_SHARE
    changes = 0 if is_constant else int(rng.integers(MOST_CHANGES + 1))
    return PieceDraw(centre, concentration, tuple(sorted(rng.random(changes).tolist())))


class RandomPieces(Rule):
    """Piecewise constant mixtures out of Dirichlet distributions, all drawn from one number.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        draw: number of the draw: the seed of all its streams.
        centre: prior or uniform; None: drawn.
        concentration: Dirichlet weight per source, strata get four times as much; None: drawn from
            0.3, 1, 3 and 10.
        at: shares of the budget after which the mixture changes; None: drawn, 0 to 8 of them.
        reverse: play the same pieces from the last to the first.

    Raises:
        ConfigError: for an option outside of what is said above.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        draw: int = 0,
        centre: Centre | None = None,
        concentration: float | None = None,
        at: Sequence[float] | None = None,
        reverse: bool = False,
    ) -> None:
        super().__init__(env, names)
        _check(draw, centre, concentration, at)
        drawn = draw_pieces(draw)
        self.draw, self.reverse = draw, reverse
        self.drawn = PieceDraw(
            drawn.centre if centre is None else centre,
            drawn.concentration if concentration is None else float(concentration),
            drawn.at if at is None else tuple(sorted(map(float, at))),
        )

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray]:
        """See :class:`Rule`."""
        return self._mixture(self.piece(signals.used), signals)

    def piece(self, used: float) -> int:
        """Index of the mixture that is played at a share of the budget."""
        at = np.array(self.drawn.at)
        if not self.reverse:
            return int((at <= used).sum())
        return len(at) - int((1.0 - at <= used).sum())

    def _mixture(self, piece: int, signals: Signals) -> tuple[FloatArray, FloatArray]:
        """Weights over sources and strata of a piece, whenever it is played."""
        rng = stream(self.draw, _NAME, f"piece {piece}")
        prior = signals.sources["prior"]
        even = signals.trainable.astype(np.float64)
        centre = prior if self.drawn.centre == "prior" else even
        top = _dirichlet(rng, centre, self.drawn.concentration, signals.trainable)
        inside = self.drawn.concentration * MILDER
        there = signals.cells["size"] > 0
        rows = [
            _dirichlet(rng, centre, inside, here)
            for centre, here in zip(signals.cells["prior"], there, strict=True)
        ]
        return top, np.stack(rows)

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {
            "draw": self.draw,
            "centre": self.drawn.centre,
            "concentration": self.drawn.concentration,
            "at": list(self.drawn.at),
            "reverse": self.reverse,
        }


def _dirichlet(
    rng: np.random.Generator, centre: FloatArray, concentration: float, there: BoolArray
) -> FloatArray:
    """A draw around ``centre``; zeros where nothing is there."""
    weights = np.zeros(len(centre))
    count = int(there.sum())
    if count == 0:
        return weights
    share = centre[there] / centre[there].sum()
    weights[there] = rng.dirichlet(np.maximum(concentration * count * share, _LEAST))
    return weights


def _check(
    draw: Any, centre: str | None, concentration: float | None, at: Sequence[float] | None
) -> None:
    where = "agent.options"
    if not isinstance(draw, int) or draw < 0:
        raise ConfigError(f"{where}.draw={draw}: must be an integer that is not negative")
    if centre is not None and centre not in CENTRES:
        raise ConfigError(f"{where}.centre={centre}: must be one of {', '.join(CENTRES)}")
    if concentration is not None and not concentration > 0:
        raise ConfigError(f"{where}.concentration={concentration}: must be positive")
    outside = [share for share in at or () if not 0.0 < share < 1.0]
    if outside:
        raise ConfigError(f"{where}.at: {outside[0]} is no share of the budget between 0 and 1")
