"""From the Dict observation to what the two levels see, and to their rewards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.hbo.level import LevelView
from mixgym.agents.hbo.settings import PROGRESS, GlobalOptions, HboOptions, LevelOptions
from mixgym.agents.hbo.shaping import temperature_prior
from mixgym.agents.rule import Observation
from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.probes import find_probe
from mixgym.envs.spaces.observations import parts_of
from mixgym.envs.spaces.signals import AGE, CELL_SIGNALS, PREFIX, SIGNALS


@dataclass(frozen=True)
class LevelInputs:
    """A batch of observations as HBO reads it.

    Attributes:
        views: of the global and of the local level.
        nll: float64[n, K] and [n, K, G], held-out; 0 where unmeasured.
        targets: float64[n, K].
        epochs: passes over sources and cells, float64[n, K] and [n, K, G].
        probes: by name, float64[n, K] or [n, K, G]; NaN where unknown.
        fresh: by name, bool[n], measured just now.
    """

    views: tuple[LevelView, LevelView]
    nll: tuple[FloatArray, FloatArray]
    targets: FloatArray
    epochs: tuple[FloatArray, FloatArray]
    probes: dict[str, FloatArray]
    fresh: dict[str, BoolArray]

    @property
    def count(self) -> int:
        """Environments."""
        return len(self.targets)


def read_observation(batch: Observation, settings: HboOptions) -> LevelInputs:
    """Read a batch of Dict observations.

    Raises:
        ConfigError: if a probe that is needed is not in it.
    """
    parts = parts_of(batch)
    sources = {name: _column(parts["signals"], i) for i, name in enumerate(SIGNALS)}
    cells = {name: _column(parts["cell_signals"], i) for i, name in enumerate(CELL_SIGNALS)}
    trainable = sources["size"] > 0
    present = cells["size"] > 0
    views = (
        LevelView(
            _features(parts, "sources", settings.global_, batch),
            trainable,
            temperature_prior(sources["size"], settings.global_.tau),
        ),
        LevelView(
            _features(parts, "strata", settings.local, batch),
            present,
            temperature_prior(cells["size"], settings.local.tau),
        ),
    )
    probes, fresh = _probes(parts, settings)
    epochs = (sources["epochs"], cells["epochs"])
    nll = (sources["nll"], cells["nll"])
    return LevelInputs(views, nll, sources["target"], epochs, probes, fresh)


def rewards_of(
    inputs: LevelInputs, index: int, options: LevelOptions, before: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Raw rewards of a level (0 global, 1 local), and where they were measured just now.

    ``progress`` is the fall of the held-out NLL since the level's last update, over ``before``.

    Args:
        inputs: the observations.
        index: of the level.
        options: of the level.
        before: float64[n, K] or [n, K, G], NLL at the level's last update.
    """
    if options.reward == PROGRESS:
        now = inputs.nll[index]
        measured = (now > 0) & (before > 0)
        fall = (before - now) / np.where(measured, before, 1.0)
        rewards, fresh = np.where(measured, fall, np.nan), np.ones(inputs.count, np.bool_)
    else:
        rewards, fresh = inputs.probes[options.reward], inputs.fresh[options.reward]
    if isinstance(options, GlobalOptions) and options.by_target:
        rewards = rewards * inputs.targets
    if options.patience is not None:
        repeated = np.maximum(inputs.epochs[index] - 1.0, 0.0)
        rewards = rewards * np.exp(-repeated / options.patience)
    return rewards, fresh


def _probes(
    parts: Observation, settings: HboOptions
) -> tuple[dict[str, FloatArray], dict[str, BoolArray]]:
    names = sorted(key.removeprefix(PREFIX) for key in parts if key.startswith(PREFIX))
    values, fresh = {}, {}
    for name in settings.probes():
        if name not in names:
            raise ConfigError(
                f"environment.probes: HBO reads {name}, which the environment does not measure; "
                f"set environment.probes.{name}=1"
            )
        raw = parts[PREFIX + name].astype(np.float64)
        known = np.where(raw == 0, np.nan, raw)
        values[name] = np.exp(known) if find_probe(name).logarithm else known
        fresh[name] = np.asarray(parts[AGE][:, names.index(name)] == 0)
    return values, fresh


def _features(
    parts: Observation, rows: str, options: LevelOptions, batch: Observation
) -> FloatArray:
    """What the level's actor reads of the observation."""
    observed = parts[rows].astype(np.float64)
    if options.actor == "table":
        return observed[..., :0]
    if options.actor == "equivariant":
        flat = _flat_of(batch)
        shape = np.array(parts["strata"].shape[1:3], np.float64)
        return np.concatenate([flat, np.broadcast_to(shape, (len(flat), 2))], axis=-1)
    if options.features == "identity":
        units = np.eye(observed.shape[-2])
        return np.broadcast_to(units, (*observed.shape[:-1], len(units)))
    return observed


def _flat_of(batch: Observation) -> "NDArray[np.float64]":
    """The flat observations [n, size] that are in Dict observations."""
    parts = [batch[name] for name in ("progress", "sources", "strata", "masks")]
    return np.concatenate(parts, axis=-1).astype(np.float64)


def _column(table: NDArray[np.float32], index: int) -> FloatArray:
    return table[..., index].astype(np.float64)
