"""What the agent sees: a documented layout of relative, scale-free features.

The default observation is one flat float32 vector, the concatenation of ``progress`` (P,),
``sources`` (K_max, S), ``strata`` (K_max, G_max, D) and ``masks`` (K_max + K_max * G_max,), clipped
to [-10, 10]. The Dict observation has the same parts, and the raw numbers that rules read in
``signals`` (K_max, ...) and ``cell_signals`` (K_max, G_max, ...). Every part of the Dict is
flattened, as Stable-Baselines3 wants it; :func:`parts_of` gives the shapes back. Absent sources and
strata are all zero.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.mixture import BoolArray, FloatArray

BOUND = 10.0
LARGEST = 1e12  # of raw signals: tokens in a source

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
SIGNALS = (
    "present",
    "target",
    "size",
    "prior",
    "weight",
    "share",
    "epochs",
    "nll",
    "nll_start",
    "nll_train",
)
CELL_SIGNALS = ("available", "size", "prior", "weight", "epochs", "nll", "nll_start")


@dataclass(frozen=True)
class View:
    """The numbers that observations are made of; K and G are the task's own, unpadded.

    Attributes:
        remaining: share of the budget that is left.
        reward: of the last decision.
        targets, prior, weight, share, nll, nll_before, nll_start, nll_train: float64[K]; NLL in
            nats per token, NaN where unmeasured.
        mean_nll, mean_nll_start: target-weighted.
        cell_size: float64[K, G], units of the ratios in each cell.
        cell_prior, cell_weight, cell_epochs, cell_nll, cell_nll_before, cell_nll_start:
            float64[K, G].
        available: bool[K, G].
    """

    remaining: float
    reward: float
    targets: FloatArray
    prior: FloatArray
    weight: FloatArray
    share: FloatArray
    nll: FloatArray
    nll_before: FloatArray
    nll_start: FloatArray
    nll_train: FloatArray
    mean_nll: float
    mean_nll_start: float
    cell_size: FloatArray
    cell_prior: FloatArray
    cell_weight: FloatArray
    cell_epochs: FloatArray
    cell_nll: FloatArray
    cell_nll_before: FloatArray
    cell_nll_start: FloatArray
    available: BoolArray

    @property
    def epochs(self) -> FloatArray:
        """float64[K], passes over each source: size-weighted mean over its strata."""
        size = self.cell_size.sum(-1)
        return (self.cell_epochs * self.cell_size).sum(-1) / np.maximum(size, 1e-12)


def layout(shape: tuple[int, int]) -> dict[str, tuple[slice, tuple[int, ...]]]:
    """Name -> (slice of the flat observation, shape of that part).

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
    parts, start = {}, 0
    for name, part in shapes.items():
        size = int(np.prod(part))
        parts[name] = (slice(start, start + size), part)
        start += size
    return parts


def flat_space(shape: tuple[int, int]) -> gym.spaces.Box:
    """The space of the flat observation."""
    size = max(part.stop for part, _ in layout(shape).values())
    return gym.spaces.Box(-BOUND, BOUND, (size,), np.float32)


def dict_space(shape: tuple[int, int]) -> gym.spaces.Dict:
    """The space of the Dict observation."""
    parts: dict[str, gym.Space[NDArray[np.float32]]] = {
        name: gym.spaces.Box(-BOUND, BOUND, (part.stop - part.start,), np.float32)
        for name, (part, _) in layout(shape).items()
    }
    sources, strata = shape
    parts["signals"] = gym.spaces.Box(0, LARGEST, (sources * len(SIGNALS),), np.float32)
    parts["cell_signals"] = gym.spaces.Box(
        0, LARGEST, (sources * strata * len(CELL_SIGNALS),), np.float32
    )
    return gym.spaces.Dict(parts)


def flat_observation(view: View, shape: tuple[int, int]) -> tuple[NDArray[np.float32], float]:
    """The flat observation, and the share of its entries that were clipped."""
    parts = _features(view, shape)
    whole = np.concatenate([parts[name].ravel() for name in layout(shape)])
    clipped = float((np.abs(whole) > BOUND).mean())
    return np.clip(whole, -BOUND, BOUND).astype(np.float32), clipped


def dict_observation(
    view: View, shape: tuple[int, int]
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """The Dict observation, and the share of its feature entries that were clipped."""
    flat, clipped = flat_observation(view, shape)
    parts = {name: flat[part] for name, (part, _) in layout(shape).items()}
    return {**parts, **_signals(view, shape)}, clipped


def parts_of(
    observation: dict[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """The parts of a Dict observation in their own shapes; leading axes (environments) stay.

    >>> space = dict_space((3, 2))
    >>> parts_of(space.sample())["cell_signals"].shape
    (3, 2, 7)
    """
    sources = observation["signals"].shape[-1] // len(SIGNALS)
    strata = observation["masks"].shape[-1] // sources - 1
    shapes = {name: size for name, (_, size) in layout((sources, strata)).items()}
    shapes["signals"] = (sources, len(SIGNALS))
    shapes["cell_signals"] = (sources, strata, len(CELL_SIGNALS))
    return {
        name: values.reshape(*values.shape[:-1], *shapes[name])
        for name, values in observation.items()
    }


def _features(view: View, shape: tuple[int, int]) -> dict[str, FloatArray]:
    count, groups = view.available.shape
    present = view.cell_size > 0
    size = view.cell_size.sum(-1)
    start = np.maximum(view.nll_start, 1e-9)
    progress = [
        view.remaining,
        _log_ratio(np.array(view.mean_nll), np.array(view.mean_nll_start)),
        10 * view.reward / max(view.mean_nll_start, 1e-9),
    ]
    sources = [
        view.targets / max(view.targets.max(), 1e-9),
        _log_share(size / max(size.mean(), 1e-9)) / 3,
        _log_share(view.prior * count) / 3,
        _log_share(view.weight * count) / 3,
        view.share,
        np.log1p(view.epochs),
        _log_ratio(view.nll, view.nll_start),
        10 * (view.nll_before - view.nll) / start,
        _log_ratio(view.nll_train, view.nll_start),
    ]
    cell_start = np.maximum(view.cell_nll_start, 1e-9)
    rank = np.linspace(0.0, 1.0, groups) if groups > 1 else np.zeros(1)
    strata = [
        np.broadcast_to(rank, present.shape),
        view.cell_size / np.maximum(size, 1e-9)[:, None],
        view.cell_weight,
        np.log1p(view.cell_epochs),
        _log_ratio(view.cell_nll, view.cell_nll_start),
        10 * (view.cell_nll_before - view.cell_nll) / cell_start,
    ]
    masks = np.concatenate(
        [
            _padded(np.asarray(view.available.any(-1))[:, None], (shape[0], 1)).ravel(),
            _padded(view.available[..., None], (*shape, 1)).ravel(),
        ]
    )
    return {
        "progress": np.array(progress, np.float64),
        "sources": _padded(np.stack(sources, -1), (shape[0], len(SOURCES))),
        "strata": _padded(
            np.where(present[..., None], np.stack(strata, -1), 0.0), (*shape, len(STRATA))
        ),
        "masks": masks,
    }


def _signals(view: View, shape: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    columns = [
        np.ones(len(view.targets)),
        view.targets,
        view.cell_size.sum(-1),
        view.prior,
        view.weight,
        view.share,
        view.epochs,
        view.nll,
        view.nll_start,
        view.nll_train,
    ]
    cells = [
        view.available,
        view.cell_size,
        view.cell_prior,
        view.cell_weight,
        view.cell_epochs,
        view.cell_nll,
        view.cell_nll_start,
    ]
    signals = _padded(np.stack(columns, -1), (shape[0], len(SIGNALS)))
    inner = _padded(np.stack(cells, -1), (*shape, len(CELL_SIGNALS)))
    return {
        "signals": signals.ravel().astype(np.float32),
        "cell_signals": inner.ravel().astype(np.float32),
    }


def _log_ratio(value: FloatArray, reference: FloatArray) -> FloatArray:
    """log(value / reference); 0 where either is missing or not positive, at least -10."""
    good = (value > 0) & (reference > 0)
    ratio = np.where(good, value, 1.0) / np.where(good, reference, 1.0)
    return np.maximum(np.log(ratio), -BOUND)


def _log_share(value: FloatArray) -> FloatArray:
    """log(value), at least -10, which is also what 0 becomes."""
    return np.log(np.maximum(value, np.exp(-BOUND)))


def _padded(part: "NDArray[np.generic]", shape: tuple[int, ...]) -> FloatArray:
    """Zeros of ``shape`` with ``part`` in the first corner; NaN (unmeasured) becomes 0."""
    whole = np.zeros(shape)
    values = np.nan_to_num(part.astype(np.float64), nan=0.0)
    whole[tuple(slice(0, n) for n in part.shape)] = values
    return whole
