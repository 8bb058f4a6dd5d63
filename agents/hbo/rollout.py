"""Rewards of HBO in a rollout: out of the records of decisions, beside the observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.hbo.settings import PROGRESS
from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.probes import find_probe
from mixgym.envs.spaces.mixture import floored, logit_scale
from mixgym.envs.spaces.observations import SOURCES, STRATA, layout
from mixgym.envs.spaces.signals import probe_shape

Shape = tuple[int, int]


@dataclass(frozen=True)
class Units:
    """What the actions of a level mean in observations.

    Attributes:
        mask: bool[m, *, U], units that may get a weight.
        base: float64[m, *, U], log of the floored prior; 0 where masked.
        scale: float64[m, *, 1], of the action in the logits.
        progress: float64[m, *, U], last relative fall of the held-out NLL.
    """

    mask: BoolArray
    base: FloatArray
    scale: FloatArray
    progress: FloatArray


def measured(infos: Sequence[Mapping[str, Any]], name: str, shape: Shape) -> FloatArray:
    """A probe out of the records, float64[n, K] or [n, K, G]; NaN where it was not measured."""
    own = (1, 1) if name == PROGRESS else probe_shape(name, shape)
    values = np.full((len(infos), *own), np.nan)
    for row, info in zip(values, infos, strict=True):
        record = info.get("decision") or {}
        found = record.get("probes", {}).get(name)
        if found is None:
            continue
        for k, source in enumerate(record["mixture"]):
            if source in found:
                _enter(row, k, found[source])
    logarithm = name != PROGRESS and find_probe(name).logarithm
    return np.exp(values) if logarithm else values


def _enter(row: FloatArray, k: int, found: Any) -> None:
    if isinstance(found, Sequence):
        row[k, : len(found)] = [np.nan if value is None else value for value in found]
    else:
        row[k] = found


def after_steps(observations: FloatArray, last: FloatArray, dones: BoolArray) -> FloatArray:
    """What was seen when each step's probes were measured: float[t, n, size].

    Args:
        observations: [t, n, size], before each step.
        last: [n, size], after the last one.
        dones: bool[t, n]; an episode that ended was not seen any more, and stands as NaN.
    """
    following = np.concatenate([observations[1:], last[None]]).astype(np.float64)
    return np.where(dones[..., None], np.nan, following)


def units_of(flat: NDArray[Any], shape: Shape, floor: float, reach: float) -> tuple[Units, Units]:
    """The two levels of flat observations [m, size] with the action kind ``logits``.

    Args:
        flat: the observations.
        shape: (K_max, G_max).
        floor: ``environment.floor``.
        reach: ``environment.reach``.
    """
    parts = {
        name: np.asarray(flat[:, part], np.float64).reshape(-1, *size)
        for name, (part, size) in layout(shape).items()
    }
    sources, strata = parts["sources"], parts["strata"]
    cells = parts["masks"][:, shape[0] :].reshape(-1, *shape) > 0.5
    share = strata[..., STRATA.index("size")]
    present = share > 0
    top = np.exp(3.0 * sources[..., SOURCES.index("prior")])  # over uniform: the rest cancels
    return (
        _units(
            parts["masks"][:, : shape[0]] > 0.5,
            top,
            present.any(-1).sum(-1)[:, None],
            sources[..., SOURCES.index("change")],
            (floor, reach),
        ),
        _units(
            cells,
            share,
            present.any(-2).sum(-1)[:, None, None],
            strata[..., STRATA.index("change")],
            (floor, reach),
        ),
    )


def _units(
    mask: BoolArray,
    prior: FloatArray,
    count: NDArray[np.int64],
    change: FloatArray,
    bounds: tuple[float, float],
) -> Units:
    floor, reach = bounds
    base = floored(prior, mask, floor)
    scale = np.vectorize(lambda units: logit_scale(int(units), reach), otypes=[float])(count)
    return Units(mask, np.log(np.where(base > 0, base, 1.0)), scale, change)
