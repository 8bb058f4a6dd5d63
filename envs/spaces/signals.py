"""The raw numbers of the Dict observation: signals, and what probes found.

``signals`` (K_max, ...) and ``cell_signals`` (K_max, G_max, ...) are what rules read; an unknown
NLL is 0. Every probe that is asked for is a part ``probe/<name>``, (K_max,) or (K_max, G_max). The
0 of a probe or of a standard error means unknown, and a value of exactly 0 stands as :data:`ZERO`.
``probe_age`` has an entry per probe, in the order of their sorted names: decisions since it was
measured, 0 for just now, -1 for never.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.probes import find_probe
from mixgym.envs.spaces.view import View

LARGEST = 1e12  # of raw signals: tokens in a source
ZERO = 1e-30  # a probe or a standard error that is known to be exactly 0
PREFIX = "probe/"
AGE = "probe_age"

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
    "nll_reference",
    "cost",  # tokens read per supervised token
    "error",  # standard error of nll, in nats
)
CELL_SIGNALS = (
    "available",
    "size",
    "prior",
    "weight",
    "epochs",
    "nll",
    "nll_start",
    "nll_train",
    "nll_reference",
    "cost",
    "error",
)


def signal_spaces(
    shape: tuple[int, int], probes: Sequence[str] = ()
) -> dict[str, gym.Space[NDArray[np.float32]]]:
    """The spaces of these parts, all flattened."""
    spaces: dict[str, gym.Space[NDArray[np.float32]]] = {
        "signals": gym.spaces.Box(0, LARGEST, (shape[0] * len(SIGNALS),), np.float32),
        "cell_signals": gym.spaces.Box(
            0, LARGEST, (shape[0] * shape[1] * len(CELL_SIGNALS),), np.float32
        ),
    }
    for name in sorted(probes):
        size = int(np.prod(probe_shape(name, shape)))
        spaces[PREFIX + name] = gym.spaces.Box(-LARGEST, LARGEST, (size,), np.float32)
    if probes:
        spaces[AGE] = gym.spaces.Box(-1, LARGEST, (len(probes),), np.float32)
    return spaces


def probe_shape(name: str, shape: tuple[int, int]) -> tuple[int, ...]:
    """Of a probe's values: (K,) or (K, G).

    >>> probe_shape("gradient_norm", (3, 4)), probe_shape("perplexity_ratio", (3, 4))
    ((3,), (3, 4))
    """
    return shape[:1] if find_probe(name).level == "source" else shape


def signal_parts(view: View, shape: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """The parts of a view, flattened."""
    lead = view.targets.shape[:-1]
    parts = {
        "signals": padded(np.stack(_columns(view), -1), shape[:1]),
        "cell_signals": padded(np.stack(_cell_columns(view), -1), shape),
    }
    for name, values in (view.probes or {}).items():
        parts[PREFIX + name] = padded(_known(values)[..., None], probe_shape(name, shape))
    raw = {
        name: np.nan_to_num(part.reshape(*lead, -1), nan=0.0).astype(np.float32)
        for name, part in parts.items()
    }
    return raw if view.probe_age is None else raw | {AGE: view.probe_age.astype(np.float32)}


def _columns(view: View) -> list[FloatArray]:
    """Of :data:`SIGNALS`, each [..., K]."""
    unknown = np.full(view.nll.shape, np.nan)
    return [
        view.sources.astype(np.float64),
        view.targets,
        view.cell_size.sum(-1),
        view.prior,
        view.weight,
        view.share,
        view.epochs,
        view.nll,
        view.nll_start,
        view.nll_train,
        unknown if view.nll_reference is None else view.nll_reference,
        view.cost,
        _known(view.error),
    ]


def _cell_columns(view: View) -> list[FloatArray]:
    """Of :data:`CELL_SIGNALS`, each [..., K, G]."""
    unknown = np.full(view.cell_nll.shape, np.nan)
    return [
        view.available.astype(np.float64),
        view.cell_size,
        view.cell_prior,
        view.cell_weight,
        view.cell_epochs,
        view.cell_nll,
        view.cell_nll_start,
        unknown if view.cell_nll_train is None else view.cell_nll_train,
        unknown if view.cell_nll_reference is None else view.cell_nll_reference,
        view.cell_cost,
        _known(view.cell_error),
    ]


def _known(values: FloatArray) -> FloatArray:
    """Values whose 0 is not taken for an unknown one."""
    return np.where(values == 0, ZERO, values)


def padded(part: NDArray[np.generic], shape: tuple[int, ...]) -> FloatArray:
    """``part`` [..., *rows, features] with its row axes filled up to ``shape`` with zeros."""
    rows = part.shape[-len(shape) - 1 : -1]
    if rows == shape:
        return part.astype(np.float64, copy=False)
    lead = part.shape[: -len(shape) - 1]
    whole = np.zeros((*lead, *shape, part.shape[-1]))
    corner: tuple[Any, ...] = (Ellipsis, *(slice(0, n) for n in rows), slice(None))
    whole[corner] = part
    return whole
