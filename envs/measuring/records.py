"""The record of a decision: what ``info``, ``decisions.jsonl`` and TensorBoard are made of.

Plain data; every name is API:

    decision, steps, supervised_tokens   counts so far
    mixture {source: weight}             what was asked for
    strata {source: [weight, ...]}       inside each source
    share {source: share}                realised, in supervised tokens, in this interval
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
    optimizer.gradient_norm              before clipping, mean over the interval's steps
    action [..], observation [..]        what the agent did, and the flat observation that it had
    cost.observation_clipped             share of the next observation's entries that were clipped
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.interval_plan import IntervalPlan
from mixgym.envs.learners.base import TrainReport
from mixgym.envs.rewards import Reward, target_mean
from mixgym.envs.spaces.mixture import Mixture

if TYPE_CHECKING:
    from mixgym.envs.environment import MixtureEnv


def decision_record(
    env: "MixtureEnv",
    *,
    action: "np.ndarray[Any, Any]",
    mixture: Mixture,
    plan: IntervalPlan,
    report: TrainReport,
    reward: Reward,
) -> dict[str, Any]:
    """The record of the decision that ``env`` has just booked."""
    names, done = env.world.names, env.progress
    supervised = plan.supervised.sum(-1)
    total = max(float(supervised.sum()), 1.0)
    nll = env.now.source_nll
    size = env.world.cell_size
    epochs = (env.plane.epochs() * size).sum(-1) / np.maximum(size.sum(-1), 1e-12)
    return {
        "decision": done.decisions,
        "steps": done.steps,
        "supervised_tokens": done.supervised,
        "mixture": _named(names, mixture.sources),
        "strata": {
            name: [float(w) for w in row] for name, row in zip(names, mixture.strata, strict=True)
        },
        "share": _named(names, supervised / total),
        "loss": {
            "train": _named(names, report.source_nll),
            "reward": _named(names, nll),
            "train_mean": float(report.loss_sum.sum() / total),
            "reward_mean": target_mean(nll, env.world.targets),
        },
        "reward": {
            "global": float(reward.value),
            "local": _named(names, reward.local),
            "components": {name: float(value) for name, value in reward.components.items()},
        },
        "epochs": _named(names, epochs),
        "packing": _packing(plan),
        **probe_section(names, env.measurements.fresh()),
        **({"bilevel": health} if (health := env.world.step_rule.health()) else {}),
        "cost": {
            "train_tokens": done.tokens,
            "measure_tokens": done.measured,
            "probe_tokens": done.probed,
        },
        "optimizer": {
            "learning_rate": report.learning_rate,
            "gradient_norm": float(np.mean(report.gradient_norm)) if report.gradient_norm else None,
        },
        "action": [float(value) for value in np.asarray(action).ravel()],
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


def _plain(row: Any) -> Any:
    """A float, or a list with None where there is no value."""
    if np.ndim(row) == 0:
        return float(row)
    return [float(value) if np.isfinite(value) else None for value in row]


def _named(names: tuple[str, ...], values: FloatArray) -> dict[str, float]:
    """Name -> value; unmeasured (NaN) entries are left out."""
    return {
        name: float(value) for name, value in zip(names, values, strict=True) if np.isfinite(value)
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
