"""Rates of a machine from a short profile: non-negative least squares on relative errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.costs.cost_model import CostModel, Hardware, ModelShape, cost_terms
from mixgym.envs.packing.grouping.groups import Group

_RATES = ("dense_rate", "attention_rate", "link_rate", "node_link_rate")
_FIXED = "fixed_seconds"
HUGE = 1e30  # a rate whose fitted time is 0


@dataclass(frozen=True)
class ProfilePoint:
    """One measurement.

    Attributes:
        tokens, work: of a pack: tokens, and sum of squared lengths.
        group: length, degree and checkpointed layers that it was trained with.
        seconds: of all its micro-steps.
        micro_steps: how many such packs a replica trained.
    """

    tokens: int
    work: int
    group: Group
    seconds: float
    micro_steps: int = 1


@dataclass(frozen=True)
class Fit:
    """A fitted machine.

    Attributes:
        hardware: with the rates found.
        errors: float64[points], (predicted - measured) / measured.
    """

    hardware: Hardware
    errors: FloatArray


def fit_hardware(
    points: Sequence[ProfilePoint],
    model: ModelShape,
    hardware: Hardware,
    stated: Mapping[str, float] | None = None,
) -> Fit:
    """Find the rates that explain a profile best.

    Args:
        points: the profile.
        model: what was trained.
        hardware: its devices and memory; rates that no point depends on stay as they are.
        stated: rates that are known and not fitted, by the names of :class:`Hardware`.

    Raises:
        ConfigError: for too few points, points that do not tell the rates apart, or times that are
            not positive.
    """
    base = _with_rates(hardware, stated or {})
    seconds = np.array([point.seconds for point in points], np.float64)
    if not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise ConfigError(f"profile: seconds {seconds.tolist()} have to be positive")
    terms = _terms(points, model, base)
    wanted = [
        name
        for name in (*_RATES, _FIXED)
        if name not in (stated or {}) and (len(points) == 0 or terms[name].any())
    ]
    known = sum((_known(terms, name, base) for name in terms if name not in wanted), 0.0)
    columns = np.stack([terms[name] for name in wanted], axis=1) / seconds[:, None]
    _check_rank(columns, wanted, len(points))
    times = non_negative_least_squares(columns, (seconds - known) / seconds)
    fitted = _with_rates(
        base, {name: _rate(name, time) for name, time in zip(wanted, times, strict=True)}
    )
    cost = CostModel(model, fitted)
    predicted = np.array(
        [p.micro_steps * float(cost.micro_step(p.tokens, p.work, p.group).total) for p in points]
    )
    return Fit(fitted, (predicted - seconds) / seconds)


def non_negative_least_squares(columns: FloatArray, target: FloatArray) -> FloatArray:
    """float64[k], the x >= 0 that minimises ``|columns @ x - target|``, for a few unknowns.

    At the minimum the positive entries solve the least squares of their own columns, so every
    subset is tried.

    Args:
        columns: float64[n, k], k small.
        target: float64[n].
    """
    unknowns = columns.shape[1]
    best, least = np.zeros(unknowns), float(target @ target)
    scale = np.maximum(np.abs(columns).max(0), 1e-300)
    for size in range(1, unknowns + 1):
        for chosen in map(list, combinations(range(unknowns), size)):
            part = columns[:, chosen] / scale[chosen]
            found = np.linalg.lstsq(part, target, rcond=None)[0]
            error = part @ found - target
            if (found >= 0).all() and error @ error < least:
                best, least = np.zeros(unknowns), float(error @ error)
                best[chosen] = found / scale[chosen]
    return best


def _terms(
    points: Sequence[ProfilePoint], model: ModelShape, hardware: Hardware
) -> dict[str, FloatArray]:
    """For each rate what it divides, float64[points]; for the fixed seconds the micro-steps."""
    tokens, work, degree, layers, times = (
        np.array(
            [
                (p.tokens, p.work, p.group.degree, p.group.checkpointed, p.micro_steps)
                for p in points
            ],
            np.float64,
        )
        .reshape(-1, 5)
        .T
    )
    terms = cost_terms(model, tokens, work, degree, layers)
    crossing = degree > hardware.devices_per_node
    return {
        "dense_rate": times * (terms.dense + terms.dense_again),
        "attention_rate": times * (terms.attention + terms.attention_again),
        "link_rate": times * np.where(crossing, 0.0, terms.exchanged_bytes),
        "node_link_rate": times
        * (np.where(crossing, terms.exchanged_bytes, 0.0) + terms.expert_bytes),
        _FIXED: times,
    }


def _with_rates(hardware: Hardware, rates: Mapping[str, Any]) -> Hardware:
    return replace(hardware, **rates)


def _known(terms: Mapping[str, FloatArray], name: str, hardware: Hardware) -> FloatArray:
    value = getattr(hardware, name)
    return terms[name] * value if name == _FIXED else terms[name] / value


def _rate(name: str, seconds_per_unit: float) -> float:
    if name == _FIXED:
        return float(seconds_per_unit)
    return float(1 / seconds_per_unit) if seconds_per_unit > 0 else HUGE


def _check_rank(columns: FloatArray, wanted: Sequence[str], points: int) -> None:
    if points < len(wanted):
        raise ConfigError(
            f"profile: {points} points cannot tell {', '.join(wanted)}: measure at least "
            f"{len(wanted)}, or state some of them"
        )
    scaled = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    if np.linalg.matrix_rank(scaled, tol=1e-6) < len(wanted):
        raise ConfigError(
            f"profile: the points do not tell {', '.join(wanted)} apart: vary lengths, degrees and "
            "fill, or state some of them"
        )
