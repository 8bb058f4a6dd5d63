"""Is the hierarchy worth it? The same documents under it, and at one length, sorted."""

from dataclasses import dataclass, replace

from mixgym.envs.packing.balance import Balance
from mixgym.envs.packing.cost import CostModel
from mixgym.envs.packing.metrics import PackingMetrics, measure
from mixgym.envs.packing.planner import PlanConfig, make_plan
from mixgym.envs.sources.source import IntArray

WORTH = 0.02  # share of the time that the hierarchy has to save


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
    """

    hierarchy: Outcome
    one_length: Outcome
    unsorted: Outcome

    @property
    def saved(self) -> float:
        """Share of the time of one sorted length that the hierarchy saves; may be negative."""
        return 1 - self.hierarchy.seconds / max(self.one_length.seconds, 1e-300)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        sorting = 1 - self.one_length.seconds / max(self.unsorted.seconds, 1e-300)
        base = f"sorting by attention work saves {_percent(sorting)} of the predicted time"
        if self.saved >= WORTH:
            return f"{base}, the hierarchy of lengths another {_percent(self.saved)}"
        return (
            f"{base}; the hierarchy of lengths saves {_percent(self.saved)} beside one sorted "
            "length and is not worth it here: leave one group"
        )


def judge(lengths: IntArray, config: PlanConfig, cost: CostModel, seed: int) -> Verdict:
    """Plan the documents with the hierarchy, and without.

    Args:
        lengths: int64[n], tokens of each document.
        config: with the groups of the hierarchy.
        cost: the model on the machine.
        seed: of the plans.
    """
    one = replace(config, groups=config.groups[-1:], balance=Balance())
    unsorted = replace(one, balance=Balance(sort=False))
    found = [_outcome(lengths, each, cost, seed) for each in (config, one, unsorted)]
    return Verdict(*found)


def _outcome(lengths: IntArray, config: PlanConfig, cost: CostModel, seed: int) -> Outcome:
    layout = make_plan(lengths, config, seed).layout
    return Outcome(cost.seconds(layout), cost.seconds_without_waiting(layout), measure(layout))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
