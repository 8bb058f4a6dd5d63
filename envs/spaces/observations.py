"""What the agent sees: a documented layout of relative, scale-free features.

The default observation is one flat float32 vector, the concatenation of ``progress`` (P,),
``sources`` (K_max, S), ``strata`` (K_max, G_max, D) and ``masks`` (K_max + K_max * G_max,), clipped
to [-10, 10]. What a supervised token costs and how far a held-out loss can be trusted are always
among the features. The Dict observation has the same parts, and the raw numbers of
:mod:`mixgym.envs.spaces.signals`. Every part of the Dict is flattened, as Stable-Baselines3 wants
it; :func:`parts_of` gives the shapes back. Absent sources and strata are all zero.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.spaces.mixture import last_sum
from mixgym.envs.spaces.ratios import (
    BOUND,
    Single,
    fall_of,
    log_costs,
    log_ratio,
    log_share,
    relative_error,
    single,
)
from mixgym.envs.spaces.signals import (
    CELL_SIGNALS,
    PREFIX,
    SIGNALS,
    padded,
    probe_shape,
    signal_parts,
    signal_spaces,
)
from mixgym.envs.spaces.view import Fixed, View, source_size

_BOUND = np.float32(BOUND)

PROGRESS = (
    "remaining",  # share of the budget that is left
    "mean_loss",  # log of target-weighted mean NLL over its start
    "reward",  # last reward over the mean NLL at the start, times 10
)
SOURCES = (
    "target",  # over the largest target
    "size",  # log of the size (in the unit of ratios) over the mean size, a third
    "prior",  # log of the prior's weight over uniform, a third
    "weight",  # log of the current weight over uniform, a third
    "share",  # realised share so far
    "epochs",  # log(1 + epochs)
    "loss",  # log of held-out NLL over its start
    "change",  # last fall of held-out NLL over its start, times 10
    "train_loss",  # log of training NLL over the held-out NLL at the start
    "cost",  # log of tokens read per supervised token over the mean over the sources
    "error",  # log10 of the standard error of held-out NLL over it, -4 to 0; unknown 0, the worst
)
STRATA = (
    "difficulty",  # rank, 0 the easiest and 1 the hardest
    "size",  # share of the source
    "weight",  # current weight in the source
    "epochs",  # log(1 + epochs)
    "loss",  # log of held-out NLL over its start
    "change",  # last fall of held-out NLL over its start, times 10
    "cost",  # log of tokens read per supervised token over the mean over the sources
    "error",  # log10 of the standard error of held-out NLL over it, -4 to 0; unknown 0, the worst
)


_WEIGHT, _SHARE, _EPOCHS, _LOSS, _CHANGE, _TRAIN_LOSS, _ERROR = (
    SOURCES.index(name)
    for name in ("weight", "share", "epochs", "loss", "change", "train_loss", "error")
)
_CELL_WEIGHT, _CELL_EPOCHS, _CELL_LOSS, _CELL_CHANGE, _CELL_ERROR = (
    STRATA.index(name) for name in ("weight", "epochs", "loss", "change", "error")
)


@cache
def layout(shape: tuple[int, int]) -> dict[str, tuple[slice, tuple[int, ...]]]:
    """Name -> (slice of the flat observation, shape of that part).

    >>> layout((2, 1))["sources"]
    (slice(3, 25, None), (2, 11))
    """
    sources, strata = shape
    shapes: dict[str, tuple[int, ...]] = {
        "progress": (len(PROGRESS),),
        "sources": (sources, len(SOURCES)),
        "strata": (sources, strata, len(STRATA)),
        "masks": (sources + sources * strata,),
    }
    parts, start = {}, 0
    for name, part in shapes.items():
        size = int(np.prod(part))
        parts[name] = (slice(start, start + size), part)
        start += size
    return parts


def flat_space(shape: tuple[int, int]) -> gym.spaces.Box:
    """The space of the flat observation."""
    space: gym.spaces.Box = _box(max(part.stop for part, _ in layout(shape).values()))
    return space


def local_space(strata: int) -> gym.spaces.Box:
    """The space of a row of :func:`local_observation`."""
    space: gym.spaces.Box = _box(local_size(strata))
    return space


def _box(size: int) -> Any:
    return gym.spaces.Box(-BOUND, BOUND, (size,), np.float32)


def dict_space(shape: tuple[int, int], probes: Sequence[str] = ()) -> gym.spaces.Dict:
    """The space of the Dict observation, with a part for each of the ``probes``."""
    parts: dict[str, gym.Space[NDArray[np.float32]]] = {
        name: _box(part.stop - part.start) for name, (part, _) in layout(shape).items()
    }
    return gym.spaces.Dict({**parts, **signal_spaces(shape, probes)})


def flat_observation(view: View, shape: tuple[int, int]) -> tuple[NDArray[np.float32], FloatArray]:
    """The flat observations [..., size], and the share of entries that were clipped [...]."""
    whole = features(view, shape)
    return clipped_to_bounds(whole), (np.abs(whole) > BOUND).mean(-1)


def fixed_parts(view: View, shape: tuple[int, int]) -> Fixed:
    """What stays of a view's observations; the episode's start has to be measured."""
    mean, sources, cells = (
        np.divide(1.0, start, out=np.zeros(np.shape(start)), where=start > 0)
        for start in (np.asarray(view.mean_nll_start), view.nll_start, view.cell_nll_start)
    )
    present = view.cell_size > 0
    sources = np.where(view.sources, sources, 0.0)
    cells = np.where(present, cells, 0.0)
    return Fixed(
        template=_template(view, shape),
        count=last_sum(view.sources)[..., None],
        size=source_size(view.cell_size),
        source_mask=view.sources.astype(np.float32),
        cell_mask=present.astype(np.float32),
        start=mean,
        source_start=sources,
        cell_start=cells,
        measured=bool(np.isfinite(view.nll_start).all() and np.isfinite(view.cell_nll_start).all()),
    )


def _template(view: View, shape: tuple[int, int]) -> Single:
    """float32[..., size], an observation with the features that stay; 0 elsewhere."""
    lead = view.targets.shape[:-1]
    whole = np.zeros((*lead, layout(shape)["masks"][0].stop), np.float32)
    parts = _parts(whole, view, shape)
    _write_fixed_sources(parts.sources, view)
    _write_fixed_strata(parts.strata, view)
    whole[..., layout(shape)["masks"][0]] = _masks(view, shape)
    return whole


def _write_fixed_sources(rows: Single, view: View) -> None:
    count = last_sum(view.sources)[..., None]
    size = last_sum(view.cell_size)
    mean_size = np.maximum(last_sum(size)[..., None] / count, 1e-9)
    columns = {
        "target": view.targets / np.maximum(view.targets.max(-1, keepdims=True), 1e-9),
        "size": log_share(size / mean_size) / 3,
        "prior": log_share(view.prior * count) / 3,
        "cost": log_costs(view.cost, view.cell_cost)[0],
    }
    for name, column in columns.items():
        rows[..., SOURCES.index(name)] = column * view.sources


def _write_fixed_strata(rows: Single, view: View) -> None:
    present = view.cell_size > 0
    groups = np.maximum(present.any(-2).sum(-1), 1)[..., None, None]
    size = np.maximum(last_sum(view.cell_size), 1e-9)[..., None]
    columns = {
        "difficulty": np.arange(present.shape[-1]) / np.maximum(groups - 1, 1),
        "size": view.cell_size / size,
        "cost": log_costs(view.cost, view.cell_cost)[1],
    }
    for name, column in columns.items():
        rows[..., STRATA.index(name)] = column * present


class _Parts(NamedTuple):
    """Places in whole observations that are written to.

    Attributes:
        progress: float32[..., P].
        sources: float32[..., K, S].
        strata: float32[..., K, G, D].
    """

    progress: Single
    sources: Single
    strata: Single


def _parts(whole: Single, view: View, shape: tuple[int, int]) -> _Parts:
    """The places in observations [..., size] of what a view has, without the padding."""
    found = layout(shape)
    progress, sources, strata = (
        whole[..., part].reshape(*whole.shape[:-1], *size)  # a view: only the last axis is split
        for part, size in (found["progress"], found["sources"], found["strata"])
    )
    rows, groups = view.cell_size.shape[-2:]
    return _Parts(progress, sources[..., :rows, :], strata[..., :rows, :groups, :])


def features(view: View, shape: tuple[int, int]) -> Single:
    """The flat observations before clipping, float32[..., size]."""
    fixed = view.fixed or fixed_parts(view, shape)
    whole = fixed.template.copy()
    parts = _parts(whole, view, shape)
    _write_progress(parts.progress, view, fixed)
    _write_sources(parts.sources, view, fixed)
    _write_strata(parts.strata, view, fixed)
    return whole


def clipped_to_bounds(whole: Single) -> Single:
    """Features as they are given to an agent."""
    clipped = np.maximum(whole, -_BOUND)
    return np.minimum(clipped, _BOUND, out=clipped)


def dict_observation(
    view: View, shape: tuple[int, int]
) -> tuple[dict[str, NDArray[np.float32]], FloatArray]:
    """The Dict observation, and the share of its feature entries that were clipped."""
    flat, clipped = flat_observation(view, shape)
    return dict_parts(flat, view, shape), clipped


def dict_parts(
    flat: NDArray[np.float32], view: View, shape: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """The Dict observation, of a flat one that was made of the same view."""
    parts = {name: flat[..., part] for name, (part, _) in layout(shape).items()}
    return {**parts, **signal_parts(view, shape)}


def shape_of(observation_size: int, actions: int) -> tuple[int, int]:
    """(K_max, G_max) from the sizes of the flat observation and of the joint action.

    Raises:
        ValueError: if they are not those of a joint environment.
    """
    for sources in range(1, actions):
        strata = actions // sources - 1
        top, inner = len(SOURCES) + 1, len(STRATA) + 1
        size = len(PROGRESS) + sources * top + sources * strata * inner
        if sources * (strata + 1) == actions and size == observation_size:
            return sources, strata
    raise ValueError(
        f"an observation of {observation_size} and an action of {actions} entries are not "
        "those of mixgym/Mixture-v0 with the flat observation"
    )


def local_size(strata: int) -> int:
    """Entries of a source's own rows: see :func:`local_observation`."""
    return len(PROGRESS) + len(SOURCES) + strata * len(STRATA) + strata


def local_observation(flat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """What each source sees of flat observations: [..., size] -> [..., K_max, local size].

    A row is ``progress`` (P,), the source's row of ``sources`` (S,), its rows of ``strata``
    (G_max * D,) and the mask of its strata (G_max,).
    """
    sources, strata = shape
    lead = flat.shape[:-1]
    parts = {
        name: flat[..., part].reshape(*lead, *size) for name, (part, size) in layout(shape).items()
    }
    progress = np.broadcast_to(parts["progress"][..., None, :], (*lead, sources, len(PROGRESS)))
    cells = parts["masks"][..., sources:].reshape(*lead, sources, strata)
    inner = parts["strata"].reshape(*lead, sources, strata * len(STRATA))
    return np.concatenate([progress, parts["sources"], inner, cells], axis=-1)


def parts_of(
    observation: dict[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """The parts of a Dict observation in their own shapes; leading axes (environments) stay.

    >>> space = dict_space((3, 2))
    >>> parts_of(space.sample())["cell_signals"].shape
    (3, 2, 11)
    """
    sources = observation["signals"].shape[-1] // len(SIGNALS)
    strata = observation["masks"].shape[-1] // sources - 1
    shapes = {name: size for name, (_, size) in layout((sources, strata)).items()}
    shapes["signals"] = (sources, len(SIGNALS))
    shapes["cell_signals"] = (sources, strata, len(CELL_SIGNALS))
    for name in observation:
        if name.startswith(PREFIX):
            shapes[name] = probe_shape(name.removeprefix(PREFIX), (sources, strata))
    return {
        name: values.reshape(*values.shape[:-1], *shapes.get(name, (values.shape[-1],)))
        for name, values in observation.items()
    }


def _write_progress(rows: Single, view: View, fixed: Fixed) -> None:
    start = np.maximum(view.mean_nll_start, 1e-9)
    rows[..., 0] = view.remaining
    rows[..., 1] = log_ratio(np.asarray(view.mean_nll), fixed.start)
    rows[..., 2] = 10.0 * np.asarray(view.reward) / start


def _write_sources(rows: Single, view: View, fixed: Fixed) -> None:
    """The columns that change; those of absent sources stay 0."""
    mask, start = fixed.source_mask, fixed.source_start
    _put(rows, _WEIGHT, log_share(view.weight * fixed.count) / np.float32(3), mask)
    _put(rows, _SHARE, view.share, mask)
    _put(rows, _EPOCHS, np.log1p(single(view.epochs)), mask)
    rows[..., _LOSS] = log_ratio(view.nll, start)
    rows[..., _CHANGE] = fall_of(view.nll_before, view.nll, start, fixed.measured)
    rows[..., _TRAIN_LOSS] = log_ratio(view.nll_train, start)
    _put(rows, _ERROR, relative_error(view.error, view.nll), mask)


def _write_strata(rows: Single, view: View, fixed: Fixed) -> None:
    """The columns that change; those of strata without rows stay 0."""
    mask, start = fixed.cell_mask, fixed.cell_start
    _put(rows, _CELL_WEIGHT, view.cell_weight, mask)
    _put(rows, _CELL_EPOCHS, np.log1p(single(view.cell_epochs)), mask)
    rows[..., _CELL_LOSS] = log_ratio(view.cell_nll, start)
    rows[..., _CELL_CHANGE] = fall_of(view.cell_nll_before, view.cell_nll, start, fixed.measured)
    _put(rows, _CELL_ERROR, relative_error(view.cell_error, view.cell_nll), mask)


def _put(rows: Single, column: int, values: NDArray[Any], mask: Single) -> None:
    """Write a column; 0 where the mask is."""
    np.multiply(values, mask, out=rows[..., column], casting="same_kind")


def _masks(view: View, shape: tuple[int, int]) -> FloatArray:
    """float64[..., K_max + K_max * G_max]."""
    lead = view.available.shape[:-2]
    top = padded(np.asarray(view.available.any(-1))[..., None], shape[:1]).reshape(*lead, -1)
    inner = padded(view.available[..., None], shape).reshape(*lead, -1)
    return np.concatenate([top, inner], -1)
