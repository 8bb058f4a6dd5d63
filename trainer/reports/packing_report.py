"""What ``mixgym plan`` says about packing: groups, predicted time, and whether they pay."""

from collections.abc import Sequence
from typing import Any

from mixgym.envs.arrays import IntArray
from mixgym.envs.build import packing_setup
from mixgym.envs.packing.balance import freedom
from mixgym.envs.packing.grouping.verdict import Outcome, judge
from mixgym.envs.packing.setup import PackingSetup, warnings_of
from mixgym.envs.sources.source import Source
from mixgym.trainer.config import RunConfig
from mixgym.trainer.simulate.report import describe, plain_groups

_JUDGED_POOLS = 50  # intervals that are planned again for the comparison, at most


def packing_report(
    config: RunConfig, sources: Sequence[Source], pools: Sequence[IntArray], processes: int
) -> dict[str, Any]:
    """Groups, balance, and predicted seconds beside one length.

    Args:
        config: the run.
        sources: K of them.
        pools: int64[n] each, lengths of the rows of every interval of the run.
        processes: that will train.
    """
    setup = packing_setup(config, sources, processes=processes)
    plan, training = setup.config, config.training
    found: dict[str, Any] = {
        "processes": processes,
        "groups": plain_groups(plan.groups),
        "packer": plan.packer,
        "balance": "sort" if plan.balance.sort else "none",
        "freedom": freedom(
            plan.cluster.packs(plan.groups[-1]) * training.interval,
            plan.cluster.packs(plan.groups[-1]),
            plan.balance,
        ),
        "hardware": config.data.packing.hardware,
        "warnings": warnings_of(setup, training.interval),
    }
    return found | _judged(
        setup, [pool for pool in pools if len(pool)][:_JUDGED_POOLS], config.seed
    )


def _judged(setup: PackingSetup, pools: Sequence[IntArray], seed: int) -> dict[str, Any]:
    """The comparison; without a cost model there is none."""
    if setup.cost is None or not pools:
        return {"judged_intervals": 0, "metrics": {}, "sentence": "the model's cost is unknown"}
    verdict = judge(pools, setup.config, setup.cost, seed)
    return {
        "judged_intervals": len(pools),
        "metrics": verdict.hierarchy.metrics.to_dict(),
        "as_configured": _seconds(verdict.hierarchy),
        "one_length_sorted": _seconds(verdict.one_length),
        "one_length_unsorted": _seconds(verdict.unsorted),
        "sentence": verdict.sentence,
    }


def _seconds(outcome: Outcome) -> dict[str, float]:
    return {"seconds": outcome.seconds, "no_wait_seconds": outcome.no_wait}


def packing_lines(report: dict[str, Any]) -> list[str]:
    """What is printed."""
    from mixgym.envs.packing.grouping.groups import Group

    groups = describe([Group(**group) for group in report["groups"]])
    lines = [
        f"packing: groups {groups}; {report['packer']}, balance {report['balance']} "
        f"({100 * report['freedom']:.0f}% of the randomness of batches left), "
        f"{report['processes']} processes"
    ]
    if not report["judged_intervals"]:
        return lines
    metrics = report["metrics"]
    named = [("as configured", "as_configured"), ("one length, sorted", "one_length_sorted")]
    named.append(("one length, at random", "one_length_unsorted"))
    times = "; ".join(
        f"{words} {report[key]['seconds']:.3g} s ({report[key]['no_wait_seconds']:.3g} s if no "
        "replica waited)"
        for words, key in named
    )
    return [
        *lines,
        f"balance: PR {metrics['padding']:.3f}, DBR {metrics['data_imbalance']:.3f}, "
        f"ABR {metrics['attention_imbalance']:.3f}, CR {metrics['communication']:.3f}, "
        f"{metrics['tokens_per_device']:,.0f} tokens per process and step",
        f"predicted on {report['hardware']}, {report['judged_intervals']} intervals: {times}",
        report["sentence"],
    ]
