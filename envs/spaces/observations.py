"""What the agent sees: a documented layout of relative, scale-free features.

The default observation is one flat float32 vector, the concatenation of ``progress`` (P,),
``sources`` (K_max, S), ``strata`` (K_max, G_max, D) and ``masks`` (K_max + K_max * G_max,), clipped
to [-10, 10]. What a supervised token costs and how far a held-out loss can be trusted are always
among the features. The Dict observation has the same parts, and the raw numbers of
:mod:`mixgym.envs.spaces.signals`. Every part of the Dict is flattened, as Stable-Baselines3 wants
it; :func:`parts_of` gives the shapes back. Absent sources and strata are all zero.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.spaces.mixture import last_sum
from mixgym.envs.spaces.signals import (
    CELL_SIGNALS,
    PREFIX,
    SIGNALS,
    padded,
    probe_shape,
    signal_parts,
    signal_spaces,
)
from mixgym.envs.spaces.view import Fixed, View

Single = NDArray[np.float32]

BOUND = 10.0
LEAST_ERROR = 1e-4  # of a held-out loss, relative; what is smaller looks like this

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
    """The fixed features of a view."""
    cost, cell_cost = _log_costs(view)
    count = last_sum(view.sources)[..., None]
    present = view.cell_size > 0
    size = last_sum(view.cell_size)
    mean_size = np.maximum(last_sum(size)[..., None] / count, 1e-9)
    groups = np.maximum(present.any(-2).sum(-1), 1)[..., None, None]
    rank = np.arange(present.shape[-1]) / np.maximum(groups - 1, 1)
    sources = [
        view.targets / np.maximum(view.targets.max(-1, keepdims=True), 1e-9),
        _log_share(size / mean_size) / 3,
        _log_share(view.prior * count) / 3,
    ]
    strata = [
        np.broadcast_to(rank, present.shape),
        view.cell_size / np.maximum(size, 1e-9)[..., None],
    ]
    return Fixed(
        count,
        np.stack(sources, -1),
        np.stack(strata, -1),
        cost,
        cell_cost,
        view.sources.astype(np.float64),
        present.astype(np.float64),
        _masks(view, shape),
    )


def features(view: View, shape: tuple[int, int]) -> Single:
    """The flat observations before clipping, float32[..., size]."""
    fixed = view.fixed or fixed_parts(view, shape)
    sources = padded(_source_rows(view, fixed), shape[:1])
    strata = padded(_stratum_rows(view, fixed), shape)
    lead = view.targets.shape[:-1]
    parts = [_progress(view), sources, strata, fixed.masks]
    rows = [part.reshape(*lead, -1) for part in parts]
    return np.concatenate(rows, axis=-1, dtype=np.float32)


def clipped_to_bounds(whole: Single) -> Single:
    """Features as they are given to an agent."""
    return np.minimum(np.maximum(whole, np.float32(-BOUND)), np.float32(BOUND))


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


def _single(values: FloatArray) -> Single:
    """In single precision, whose logarithms take a quarter of the time."""
    return np.asarray(values, np.float32)


def _progress(view: View) -> FloatArray:
    """float64[..., P]."""
    start = np.maximum(view.mean_nll_start, 1e-9)
    columns = [
        np.asarray(view.remaining),
        _log_ratio(np.asarray(view.mean_nll), np.asarray(view.mean_nll_start)),
        10 * np.asarray(view.reward) / start,
    ]
    return np.stack(columns, -1)


def _source_rows(view: View, fixed: Fixed) -> Single:
    """float32[..., K, S]; absent sources are zero."""
    rows = np.empty((*view.targets.shape, len(SOURCES)), np.float32)
    rows[..., :3] = fixed.sources
    rows[..., 3] = _log_share(view.weight * fixed.count) / 3
    rows[..., 4] = view.share
    rows[..., 5] = np.log1p(_single(view.epochs))
    rows[..., 6] = _log_ratio(view.nll, view.nll_start)
    rows[..., 7] = _fall(view.nll_before, view.nll, view.nll_start)
    rows[..., 8] = _log_ratio(view.nll_train, view.nll_start)
    rows[..., 9] = fixed.cost
    rows[..., 10] = _relative_error(view.error, view.nll)
    rows *= fixed.source_mask[..., None]
    return rows


def _stratum_rows(view: View, fixed: Fixed) -> Single:
    """float32[..., K, G, D]; strata without rows are zero."""
    rows = np.empty((*view.cell_size.shape, len(STRATA)), np.float32)
    rows[..., :2] = fixed.strata
    rows[..., 2] = view.cell_weight
    rows[..., 3] = np.log1p(_single(view.cell_epochs))
    rows[..., 4] = _log_ratio(view.cell_nll, view.cell_nll_start)
    rows[..., 5] = _fall(view.cell_nll_before, view.cell_nll, view.cell_nll_start)
    rows[..., 6] = fixed.cell_cost
    rows[..., 7] = _relative_error(view.cell_error, view.cell_nll)
    rows *= fixed.cell_mask[..., None]
    return rows


def _masks(view: View, shape: tuple[int, int]) -> FloatArray:
    """float64[..., K_max + K_max * G_max]."""
    lead = view.available.shape[:-2]
    top = padded(np.asarray(view.available.any(-1))[..., None], shape[:1]).reshape(*lead, -1)
    inner = padded(view.available[..., None], shape).reshape(*lead, -1)
    return np.concatenate([top, inner], -1)


def _log_costs(view: View) -> tuple[FloatArray, FloatArray]:
    """float64[..., K] and [..., K, G], logs of costs over the mean of the sources; 0 if unknown.

    Strata are measured by the same mean, so that they compare across sources.
    """
    known = np.isfinite(view.cost)
    total = last_sum(np.where(known, view.cost, 0.0))
    mean = np.where(known.any(-1), total, 1.0) / np.maximum(known.sum(-1), 1)
    return (
        np.nan_to_num(np.log(view.cost / mean[..., None]), nan=0.0),
        np.nan_to_num(np.log(view.cell_cost / mean[..., None, None]), nan=0.0),
    )


def _relative_error(error: FloatArray, value: FloatArray) -> Single:
    """log10(error / value) from -4 to 0; 0 where either is unknown (NaN)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # an absent row is 0 / 0
        relative = error / value
    # fmin, of a number and NaN, is the number
    return np.log10(_single(np.maximum(np.fmin(relative, 1.0), LEAST_ERROR)))


def _log_ratio(value: FloatArray, reference: FloatArray) -> Single:
    """log(value / reference); 0 where either is missing or not positive, at least -10."""
    good = (value > 0) & (reference > 0)
    ratio = np.where(good, value, 1.0) / np.where(good, reference, 1.0)
    return np.maximum(np.log(_single(ratio)), np.float32(-BOUND))


def _fall(before: FloatArray, after: FloatArray, start: FloatArray) -> FloatArray:
    """10 (before - after) / start; 0 where unmeasured (NaN)."""
    measured = start > 0
    return np.where(measured, 10.0 * (before - after) / np.where(measured, start, 1.0), 0.0)


def _log_share(value: FloatArray) -> Single:
    """log(value), at least -10, which is also what 0 becomes."""
    return np.log(_single(np.maximum(value, np.exp(-BOUND))))
