"""The base of the published mixers: rules whose memory is as wide as the observation."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import State
from mixgym.agents.mixers.simplex import shares
from mixgym.agents.rule import Observation, Rule, Signals
from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.observations import parts_of

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class Mixer(Rule):
    """A rule with memory for any number of sources.

    Sources are treated alike: permuting them permutes the weights. Memory is all zeros at the start
    of an episode, so that zero has to mean "nothing known yet".

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        options: of the constructor, to be saved.
    """

    #: whether it pays attention to what a source counts in evaluation; may depend on options
    target_aware: bool = False

    def __init__(
        self, env: "VecEnv | None" = None, names: tuple[str, ...] = (), **options: Any
    ) -> None:
        super().__init__(env, names)
        self._options = options

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays of the state, for one environment of (K_max, G_max)."""
        return ()

    def predict(
        self,
        observation: Observation,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], State | None]:
        """See :class:`Rule`."""
        return super().predict(
            observation, state or self._blank(observation), episode_start, deterministic
        )

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return dict(self._options)

    def _blank(self, observation: Observation) -> State | None:
        cells = parts_of(observation)["cell_signals"]
        sources, strata = cells.shape[-3:-1]
        count = 1 if cells.ndim == 3 else len(cells)
        made = tuple(np.zeros((count, *shape)) for shape in self.shapes(sources, strata))
        return made or None


def measured(signals: Signals, probe: str, agent: str) -> FloatArray:
    """A probe's last values, float64[K] or [K, G_max]; NaN where unknown.

    Raises:
        ConfigError: if the environment does not take this probe.
    """
    if probe not in signals.probes:
        raise ConfigError(
            f"agent {agent} reads the probe {probe}, which is not measured: "
            f"set environment.probes.{probe} to a period in decisions"
        )
    return signals.probes[probe]


def excess_over_reference(table: dict[str, FloatArray], agent: str) -> FloatArray:
    """NLL minus the NLL of the reference model on the same rows, in nats; 0 where unknown.

    Args:
        table: ``signals.sources`` or ``signals.cells``.
        agent: for the error.

    Raises:
        ConfigError: if there is no reference model.
    """
    reference = table.get("nll_reference")
    if reference is None or not np.any(reference > 0):
        raise ConfigError(
            f"agent {agent} compares with a reference model: "
            "set environment.reference to the folder of a fine-tuned model"
        )
    known = (reference > 0) & (table["nll"] > 0)
    return np.where(known, table["nll"] - reference, 0.0)


def by_source(signals: Signals, values: FloatArray, unknown: float = np.nan) -> FloatArray:
    """float64[K] from a probe of strata [K, G]: the mean over a source's strata by size.

    Args:
        signals: for the sizes.
        values: NaN where unknown.
        unknown: what a source gets of which nothing is known.
    """
    known = np.isfinite(values) & (signals.cells["size"] > 0)
    size = shares(signals.cells["size"], known)
    mean = (size * np.where(known, values, 0.0)).sum(-1)
    return np.where(known.any(-1), mean, unknown)
