"""What the agent sees: a documented layout of relative, scale-free features.

The default observation is one flat float32 vector, the concatenation of ``progress`` (P,),
``sources`` (K_max, S), ``strata`` (K_max, G_max, D) and ``masks`` (K_max + K_max * G_max,), clipped
to [-10, 10]. With ``environment.costs`` a part ``costs`` (K_max + K_max * G_max,) follows: what a
supervised token of each source and stratum costs (see :mod:`mixgym.envs.packing.costs.token_cost`),
the log of predicted seconds over the mean of the sources, clipped to [-5, 5], its bounds in the
space. The Dict observation has the same parts, and the raw numbers of
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

BOUND = 10.0
COST_BOUND = 5.0

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
)
STRATA = (
    "difficulty",  # rank, 0 the easiest and 1 the hardest
    "size",  # share of the source
    "weight",  # current weight in the source
    "epochs",  # log(1 + epochs)
    "loss",  # log of held-out NLL over its start
    "change",  # last fall of held-out NLL over its start, times 10
)


def layout(shape: tuple[int, int], costs: bool = False) -> dict[str, tuple[slice, tuple[int, ...]]]:
    """Name -> (slice of the flat observation, shape of that part).

    Costs come last, so that the other parts are the same without them.

    >>> layout((2, 1))["sources"]
    (slice(3, 21, None), (2, 9))
    """
    sources, strata = shape
    shapes: dict[str, tuple[int, ...]] = {
        "progress": (len(PROGRESS),),
        "sources": (sources, len(SOURCES)),
        "strata": (sources, strata, len(STRATA)),
        "masks": (sources + sources * strata,),
    }
    if costs:
        shapes["costs"] = shapes["masks"]
    parts, start = {}, 0
    for name, part in shapes.items():
        size = int(np.prod(part))
        parts[name] = (slice(start, start + size), part)
        start += size
    return parts


def flat_space(shape: tuple[int, int], costs: bool = False) -> gym.spaces.Box:
    """The space of the flat observation."""
    size = max(part.stop for part, _ in layout(shape, costs).values())
    return _bounded(size, shape[0] * (1 + shape[1]) if costs else 0)


def local_space(strata: int, costs: bool = False) -> gym.spaces.Box:
    """The space of a row of :func:`local_observation`."""
    return _bounded(local_size(strata, costs), 1 + strata if costs else 0)


def _bounded(size: int, costs: int) -> gym.spaces.Box:
    """Features, the last ``costs`` of which have bounds of their own."""
    bounds = np.full(size, BOUND, np.float32)
    bounds[size - costs :] = COST_BOUND
    return gym.spaces.Box(-bounds, bounds, dtype=np.float32)


def observes_costs(space: gym.Space[Any]) -> bool:
    """Whether a flat space, of the joint environment or of a level, ends with costs."""
    return isinstance(space, gym.spaces.Box) and bool(space.high.ravel()[-1] == COST_BOUND)


def dict_space(
    shape: tuple[int, int], probes: Sequence[str] = (), costs: bool = False
) -> gym.spaces.Dict:
    """The space of the Dict observation, with a part for each of the ``probes``."""
    parts: dict[str, gym.Space[NDArray[np.float32]]] = {
        name: gym.spaces.Box(
            -(bound := COST_BOUND if name == "costs" else BOUND),
            bound,
            (part.stop - part.start,),
            np.float32,
        )
        for name, (part, _) in layout(shape, costs).items()
    }
    return gym.spaces.Dict({**parts, **signal_spaces(shape, probes)})


def flat_observation(view: View, shape: tuple[int, int]) -> tuple[NDArray[np.float32], FloatArray]:
    """The flat observations [..., size], and the share of entries that were clipped [...]."""
    whole = features(view, shape)
    return clipped_to_bounds(whole), (np.abs(whole) > BOUND).mean(-1)


def fixed_parts(view: View, shape: tuple[int, int]) -> Fixed:
    """The fixed features of a view."""
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
        view.sources.astype(np.float64),
        present.astype(np.float64),
        _masks(view, shape),
    )


def features(view: View, shape: tuple[int, int]) -> FloatArray:
    """The flat observations before clipping, float64[..., size]."""
    fixed = view.fixed or fixed_parts(view, shape)
    sources = padded(_source_rows(view, fixed), shape[:1])
    strata = padded(_stratum_rows(view, fixed), shape)
    lead = view.targets.shape[:-1]
    parts = [_progress(view), sources, strata, fixed.masks]
    if view.costs is not None and view.cell_costs is not None:
        parts += [_costs(view.costs, shape[:1]), _costs(view.cell_costs, shape)]
    return np.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)


def clipped_to_bounds(whole: FloatArray) -> NDArray[np.float32]:
    """Features as they are given to an agent."""
    return np.minimum(np.maximum(whole, -BOUND), BOUND).astype(np.float32)


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
    parts = {
        name: flat[..., part] for name, (part, _) in layout(shape, view.costs is not None).items()
    }
    return {**parts, **signal_parts(view, shape)}


def shape_of(observation_size: int, actions: int, costs: bool = False) -> tuple[int, int]:
    """(K_max, G_max) from the sizes of the flat observation and of the joint action.

    Raises:
        ValueError: if they are not those of a joint environment.
    """
    for sources in range(1, actions):
        strata = actions // sources - 1
        top, inner = len(SOURCES) + 1 + costs, len(STRATA) + 1 + costs
        size = len(PROGRESS) + sources * top + sources * strata * inner
        if sources * (strata + 1) == actions and size == observation_size:
            return sources, strata
    raise ValueError(
        f"an observation of {observation_size} and an action of {actions} entries are not "
        "those of mixgym/Mixture-v0 with the flat observation"
    )


def local_size(strata: int, costs: bool = False) -> int:
    """Entries of a source's own rows: see :func:`local_observation`."""
    plain = len(PROGRESS) + len(SOURCES) + strata * len(STRATA) + strata
    return plain + (1 + strata if costs else 0)


def local_observation(flat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """What each source sees of flat observations: [..., size] -> [..., K_max, local size].

    A row is ``progress`` (P,), the source's row of ``sources`` (S,), its rows of ``strata``
    (G_max * D,), the mask of its strata (G_max,), and where costs are observed, its own and those
    of its strata (1 + G_max,).
    """
    sources, strata = shape
    lead = flat.shape[:-1]
    costs = flat.shape[-1] > max(part.stop for part, _ in layout(shape).values())
    parts = {
        name: flat[..., part].reshape(*lead, *size)
        for name, (part, size) in layout(shape, costs).items()
    }
    progress = np.broadcast_to(parts["progress"][..., None, :], (*lead, sources, len(PROGRESS)))
    cells = parts["masks"][..., sources:].reshape(*lead, sources, strata)
    inner = parts["strata"].reshape(*lead, sources, strata * len(STRATA))
    rows = [progress, parts["sources"], inner, cells]
    if costs:
        own, below = np.split(parts["costs"], [sources], axis=-1)
        rows += [own[..., None], below.reshape(*lead, sources, strata)]
    return np.concatenate(rows, axis=-1)


def parts_of(
    observation: dict[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """The parts of a Dict observation in their own shapes; leading axes (environments) stay.

    >>> space = dict_space((3, 2))
    >>> parts_of(space.sample())["cell_signals"].shape
    (3, 2, 9)
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


def _progress(view: View) -> FloatArray:
    """float64[..., P]."""
    start = np.maximum(view.mean_nll_start, 1e-9)
    columns = [
        np.asarray(view.remaining),
        _log_ratio(np.asarray(view.mean_nll), np.asarray(view.mean_nll_start)),
        10 * np.asarray(view.reward) / start,
    ]
    return np.stack(columns, -1)


def _source_rows(view: View, fixed: Fixed) -> FloatArray:
    """float64[..., K, S]; absent sources are zero."""
    rows = np.empty((*view.targets.shape, len(SOURCES)))
    rows[..., :3] = fixed.sources
    rows[..., 3] = _log_share(view.weight * fixed.count) / 3
    rows[..., 4] = view.share
    rows[..., 5] = np.log1p(view.epochs)
    rows[..., 6] = _log_ratio(view.nll, view.nll_start)
    rows[..., 7] = _fall(view.nll_before, view.nll, view.nll_start)
    rows[..., 8] = _log_ratio(view.nll_train, view.nll_start)
    rows *= fixed.source_mask[..., None]
    return rows


def _stratum_rows(view: View, fixed: Fixed) -> FloatArray:
    """float64[..., K, G, D]; strata without rows are zero."""
    rows = np.empty((*view.cell_size.shape, len(STRATA)))
    rows[..., :2] = fixed.strata
    rows[..., 2] = view.cell_weight
    rows[..., 3] = np.log1p(view.cell_epochs)
    rows[..., 4] = _log_ratio(view.cell_nll, view.cell_nll_start)
    rows[..., 5] = _fall(view.cell_nll_before, view.cell_nll, view.cell_nll_start)
    rows *= fixed.cell_mask[..., None]
    return rows


def _masks(view: View, shape: tuple[int, int]) -> FloatArray:
    """float64[..., K_max + K_max * G_max]."""
    lead = view.available.shape[:-2]
    top = padded(np.asarray(view.available.any(-1))[..., None], shape[:1]).reshape(*lead, -1)
    inner = padded(view.available[..., None], shape).reshape(*lead, -1)
    return np.concatenate([top, inner], -1)


def _costs(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """float64[..., entries]; 0 where there are no rows."""
    known = np.clip(np.nan_to_num(values, nan=0.0), -COST_BOUND, COST_BOUND)
    lead = known.shape[: known.ndim - len(shape)]
    return padded(known[..., None], shape).reshape(*lead, -1)


def _log_ratio(value: FloatArray, reference: FloatArray) -> FloatArray:
    """log(value / reference); 0 where either is missing or not positive, at least -10."""
    good = (value > 0) & (reference > 0)
    ratio = np.where(good, value, 1.0) / np.where(good, reference, 1.0)
    return np.maximum(np.log(ratio), -BOUND)


def _fall(before: FloatArray, after: FloatArray, start: FloatArray) -> FloatArray:
    """10 (before - after) / start; 0 where unmeasured (NaN)."""
    measured = start > 0
    return np.where(measured, 10.0 * (before - after) / np.where(measured, start, 1.0), 0.0)


def _log_share(value: FloatArray) -> FloatArray:
    """log(value), at least -10, which is also what 0 becomes."""
    return np.log(np.maximum(value, np.exp(-BOUND)))
