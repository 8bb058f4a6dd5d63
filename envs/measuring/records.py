"""The record of a decision: what ``info``, ``decisions.jsonl`` and TensorBoard are made of.

Plain data; every name is API:

    decision, steps, supervised_tokens   counts so far
    mixture {source: weight}             what was asked for
    strata {source: [weight, ...]}       inside each source
    share {source: share}                realised, in supervised tokens, in this interval
    tokens {source: tokens}              read in this interval, prompts included
    cells.tokens, cells.supervised {source: [tokens, ...]}   likewise per stratum; null where it has
        no rows
    cells.loss {source: [nats per token, ...]}   of the reward split after the interval; null where
        nothing is held out
    error {source: nats}, cells.error {source: [nats, ...]}   standard errors of these losses; left
        out or null where unknown
    loss.train, loss.reward {source: nats per token}; loss.train_mean, loss.reward_mean
    reward.global, reward.local {source: nats}, reward.components {name: value}
    epochs {source: passes so far}
    packing.fill, packing.packs, packing.balanced
    packing.<name>   of :class:`mixgym.envs.packing.costs.metrics.PackingMetrics`; seconds and
        no_wait_seconds by the cost model, freedom of balancing, steps_of_group_<i>
    bilevel.<name>, bilevel.<name>/<source>   see BilevelStep.health; only with that step rule
    probes {name: {source: value, or one per stratum}}   those measured after this decision
    actor {name: {source: value, or one per stratum}}   what the agent says of its own updates
    cost.train_tokens, cost.measure_tokens   tokens so far, prompts included
    cost.probe_tokens    tokens of a pass forward so far, see :mod:`mixgym.envs.probes`
    optimizer.learning_rate              of the interval's last step
    optimizer.rates                      sum of the learning rates of the interval's steps
    optimizer.gradient_norm              before clipping, mean over the interval's steps
    action [..], observation [..]        what the agent did, and the flat observation that it had
    cost.observation_clipped             share of the next observation's entries that were clipped
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.interval_plan import IntervalPlan
from mixgym.envs.learners.base import TrainReport
from mixgym.envs.rewards import Reward
from mixgym.envs.spaces.mixture import Mixture
from mixgym.envs.spaces.view import View
from mixgym.envs.world import Progress


@dataclass(frozen=True)
class Decision:
    """A decision that was booked: what its record is made of.

    Attributes:
        names: of the K sources.
        action: what the agent did.
        observation: the flat observation that it had.
        mixture: that was trained on.
        plan: what was laid out.
        report: how training went.
        reward: what it earned.
        view: what was booked of it.
        progress: counts so far.
        probes: by name, the values that were measured after it.
        health: of the step rule, by name; empty if it has none.
        clipped: share of the next observation's entries that were clipped.
    """

    names: tuple[str, ...]
    action: NDArray[Any]
    observation: NDArray[np.float32]
    mixture: Mixture
    plan: IntervalPlan
    report: TrainReport
    reward: Reward
    view: View
    progress: Progress
    probes: Mapping[str, FloatArray]
    health: Mapping[str, Any]
    clipped: float


def decision_record(made: Decision) -> dict[str, Any]:
    """The record of a decision, as plain data."""
    names, done, report = made.names, made.progress, made.report
    supervised = made.plan.supervised.sum(-1)
    total = max(float(supervised.sum()), 1.0)
    return {
        "decision": done.decisions,
        "steps": done.steps,
        "supervised_tokens": done.supervised,
        "mixture": _named(names, made.mixture.sources),
        "strata": dict(zip(names, made.mixture.strata.tolist(), strict=True)),
        "share": _named(names, supervised / total),
        "tokens": dict(zip(names, made.plan.tokens.sum(-1).tolist(), strict=True)),
        "cells": _cells(made),
        "loss": {
            "train": _named(names, report.source_nll),
            "reward": _named(names, made.view.nll),
            "train_mean": float(report.loss_sum.sum() / total),
            "reward_mean": float(made.view.mean_nll),
        },
        "error": _named(names, made.view.error),
        "reward": {
            "global": float(made.reward.value),
            "local": _named(names, made.reward.local),
            "components": {name: float(value) for name, value in made.reward.components.items()},
        },
        "epochs": _named(names, made.view.epochs),
        "packing": _packing(made.plan),
        **probe_section(names, made.probes),
        **({"bilevel": dict(made.health)} if made.health else {}),
        "cost": {
            "train_tokens": done.tokens,
            "measure_tokens": done.measured,
            "probe_tokens": done.probed,
            "observation_clipped": made.clipped,
        },
        "optimizer": {
            "learning_rate": report.learning_rate,
            "rates": report.rates,
            "gradient_norm": float(np.mean(report.gradient_norm)) if report.gradient_norm else None,
        },
        "action": np.asarray(made.action, np.float64).ravel().tolist(),
        "observation": made.observation.tolist(),
    }


def probe_section(names: Sequence[str], fresh: Mapping[str, FloatArray]) -> dict[str, Any]:
    """``{"probes": {probe: {source: value or [values]}}}``; empty if nothing was measured.

    A stratum without a value is None; sources without any are left out.

    >>> probe_section(("a", "b"), {"loss": np.array([[1.5, np.nan], [np.nan, np.nan]])})
    {'probes': {'loss': {'a': [1.5, None]}}}
    """
    found = {
        probe: {
            name: _plain(row)
            for name, row in zip(names, values, strict=False)
            if np.isfinite(row).any()
        }
        for probe, values in fresh.items()
    }
    return {"probes": found} if found else {}


def _cells(made: Decision) -> dict[str, dict[str, list[float | None]]]:
    """The interval by source and stratum."""
    empty = made.view.cell_size <= 0
    return {
        "tokens": by_stratum(made.names, np.where(empty, np.nan, made.plan.tokens)),
        "supervised": by_stratum(made.names, np.where(empty, np.nan, made.plan.supervised)),
        "loss": by_stratum(made.names, made.view.cell_nll),
        "error": by_stratum(made.names, made.view.cell_error),
    }


def by_stratum(names: Sequence[str], values: FloatArray) -> dict[str, list[float | None]]:
    """Name -> one value per stratum, from ``values`` [K, G]; None where there is none (NaN).

    >>> by_stratum(("a",), np.array([[1.5, np.nan]]))
    {'a': [1.5, None]}
    """
    rows = values.tolist()
    return {name: [_or_none(x) for x in row] for name, row in zip(names, rows, strict=True)}


def _plain(row: Any) -> Any:
    """A float, or a list with None where there is no value."""
    if np.ndim(row) == 0:
        return float(row)
    return [_or_none(value) for value in np.asarray(row, np.float64).tolist()]


def _or_none(value: float) -> float | None:
    return value if isfinite(value) else None


def _named(names: tuple[str, ...], values: FloatArray) -> dict[str, float]:
    """Name -> value; unmeasured (NaN) entries are left out."""
    return {
        name: value for name, value in zip(names, values.tolist(), strict=True) if isfinite(value)
    }


def _packing(plan: IntervalPlan) -> dict[str, float]:
    packs = [pack for step in plan.steps for pack in step]
    capacity = sum(pack.capacity for pack in packs)
    return {
        **{name: float(value) for name, value in plan.packing.items()},
        "packs": float(len(packs)),
        "fill": sum(pack.tokens for pack in packs) / capacity if capacity else 1.0,
        "balanced": float(plan.balanced),
    }
