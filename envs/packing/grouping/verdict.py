"""Is the hierarchy worth it? The same documents under it, and at one length, sorted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.packing.balance import Balance
from mixgym.envs.packing.costs.cost_model import CostModel
from mixgym.envs.packing.costs.metrics import PackingMetrics, measure
from mixgym.envs.packing.planner import PlanConfig, make_plan

_WORTH = 0.02  # share of the time that the hierarchy has to save


@dataclass(frozen=True)
class Outcome:
    """A plan and what it costs.

    Attributes:
        seconds: predicted, replicas waiting for each other.
        no_wait: predicted, if each micro-step's work could be spread evenly.
        metrics: of the plan.
    """

    seconds: float
    no_wait: float
    metrics: PackingMetrics


@dataclass(frozen=True)
class Verdict:
    """The hierarchy beside one length.

    Attributes:
        hierarchy: the plan as configured.
        one_length: the longest group alone, sorted by attention work.
        unsorted: the longest group alone, packs in random order.
        groups: of the hierarchy.
    """

    hierarchy: Outcome
    one_length: Outcome
    unsorted: Outcome
    groups: int = 1

    @property
    def saved(self) -> float:
        """Share of the time of one sorted length that the hierarchy saves; may be negative."""
        return _saved(self.hierarchy.seconds, self.one_length.seconds)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if not self.unsorted.metrics.units:
            return "there is nothing to pack"
        sorting = _saved(self.one_length.seconds, self.unsorted.seconds)
        base = f"sorting by attention work saves {_percent(sorting)} of the predicted time"
        if self.groups == 1:
            return f"{base} of packs of one length"
        if self.saved >= _WORTH:
            return f"{base}, the hierarchy of lengths another {_percent(self.saved)}"
        return (
            f"{base}; the hierarchy of lengths saves {_percent(self.saved)} beside one sorted "
            "length and is not worth it here: leave one group"
        )


def judge(pools: Sequence[IntArray], config: PlanConfig, cost: CostModel, seed: int) -> Verdict:
    """Plan the documents with the hierarchy, and without.

    Args:
        pools: int64[n] each, tokens of the documents that are packed together.
        config: with the groups of the hierarchy.
        cost: the model on the machine.
        seed: of the plans.
    """
    one = replace(config, groups=config.groups[-1:], balance=Balance())
    unsorted = replace(one, balance=Balance(sort=False))
    return Verdict(
        _outcome(pools, config, cost, seed),
        _outcome(pools, one, cost, seed),
        _outcome(pools, unsorted, cost, seed),
        len(config.groups),
    )


def _outcome(pools: Sequence[IntArray], config: PlanConfig, cost: CostModel, seed: int) -> Outcome:
    layouts = [make_plan(pool, config, seed, i).layout for i, pool in enumerate(pools)]
    return Outcome(
        sum(cost.seconds(layout) for layout in layouts),
        sum(cost.seconds_without_waiting(layout) for layout in layouts),
        _mean([measure(layout) for layout in layouts]),
    )


def _mean(metrics: Sequence[PackingMetrics]) -> PackingMetrics:
    """Shares are averaged over the steps of all pools; counts are added."""
    steps = np.array([found.steps for found in metrics], np.float64)
    weights = steps / max(steps.sum(), 1)

    def mean(name: str) -> float:
        return float(weights @ np.array([getattr(found, name) for found in metrics]))

    return PackingMetrics(
        padding=mean("padding"),
        data_imbalance=mean("data_imbalance"),
        attention_imbalance=mean("attention_imbalance"),
        communication=mean("communication"),
        tokens_per_device=mean("tokens_per_device"),
        fill=mean("fill"),
        units=sum(found.units for found in metrics),
        steps=int(steps.sum()),
        micro_steps=sum(found.micro_steps for found in metrics),
    )


def _percent(share: float) -> str:
    return f"{100 * share:z.1f}%"


def _saved(seconds: float, beside: float) -> float:
    return 1 - seconds / beside if beside > 0 else 0.0
