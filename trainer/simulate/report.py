"""Methods beside each other on one cluster, over seeds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.costs.cost_model import CostModel
from mixgym.envs.packing.costs.metrics import measure
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.trainer.runs.tables import number, table
from mixgym.trainer.simulate.cluster import Barrier, run_cluster
from mixgym.trainer.simulate.methods import Scenario, find_method

REFERENCE = "isf"
_METRICS = ("fill", "padding", "data_imbalance", "attention_imbalance", "communication")

_ASSUMPTIONS = (
    "documents are neither dropped nor repeated; replicas without a pack in a last step still wait",
    "packs attend inside documents only; padded batches pay attention over their padding",
    "optimiser, data loading, and switching degrees and checkpointing cost nothing",
    "the order of steps changes no time, so a curriculum costs nothing",
    "layers to checkpoint follow from the tokens on a device by the stated memory",
    "one length means the longest group alone; x is against isf of the same seed, mean and "
    "standard deviation over seeds",
)
"""What a simulation takes for granted, beside what its scenario states."""


@dataclass(frozen=True)
class Machine:
    """Who trains what, and where replicas wait for each other.

    Attributes:
        cost: model and hardware.
        cluster: devices and tokens in a step.
        groups: of the hierarchy.
        barrier: after every micro-step or every optimiser step.
    """

    cost: CostModel
    cluster: Cluster
    groups: tuple[Group, ...]
    barrier: Barrier = "micro_step"


def simulate(
    draws: Sequence[IntArray], machine: Machine, methods: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Each method on each draw of lengths.

    Args:
        draws: one int64[n] of lengths per seed.
        machine: the cluster.
        methods: names of :data:`mixgym.trainer.simulate.methods.METHODS`.

    Returns:
        By method: ``seconds``, ``no_wait``, ``speed_up`` and ``speed_up_sd`` (None without the
        reference), metrics, and ``seconds_of_seeds``.

    Raises:
        ConfigError: for an unknown method or no documents.
    """
    if not draws or not all(len(lengths) for lengths in draws):
        raise ConfigError("simulate: there is no document: give at least one for each seed")
    runs = {
        name: [_run(name, lengths, machine, seed) for seed, lengths in enumerate(draws)]
        for name in dict.fromkeys(methods)
    }
    reference = runs.get(REFERENCE)
    return {name: _summary(found, reference) for name, found in runs.items()}


def _run(name: str, lengths: IntArray, machine: Machine, seed: int) -> dict[str, float]:
    scenario = Scenario(lengths, machine.groups, machine.cluster, seed)
    layout = find_method(name).layout(scenario)
    cost = machine.cost
    seconds = run_cluster(layout, cost.units(layout), machine.barrier).seconds
    metrics = measure(layout).to_dict()
    return {"seconds": seconds, "no_wait": cost.seconds_without_waiting(layout)} | metrics


def _summary(
    runs: list[dict[str, float]], reference: list[dict[str, float]] | None
) -> dict[str, Any]:
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    ratios = (
        np.array([r["seconds"] / run["seconds"] for r, run in zip(reference, runs, strict=True)])
        if reference
        else None
    )
    spread = None if ratios is None or len(ratios) < 2 else float(ratios.std(ddof=1))
    return mean | {
        "speed_up": None if ratios is None else float(ratios.mean()),
        "speed_up_sd": spread,
        "seconds_of_seeds": [run["seconds"] for run in runs],
    }


def assumptions(machine: Machine) -> list[str]:
    """What the numbers rest on, in words."""
    rates = machine.cost.hardware
    waits = "micro-step" if machine.barrier == "micro_step" else "optimiser step"
    return [
        f"{rates.devices} devices, {rates.devices_per_node} to a node; all-to-all at "
        f"{rates.link_rate / 1e9:g} GB/s inside a node, {rates.node_link_rate / 1e9:g} GB/s across",
        f"{rates.dense_rate / 1e12:g} TFLOP/s dense, {rates.attention_rate / 1e12:g} TFLOP/s "
        f"attention, {rates.fixed_seconds:g} s fixed per micro-step",
        f"{machine.cluster.step_tokens:,} tokens in a step; groups {describe(machine.groups)}; "
        f"replicas wait for each other after every {waits}",
        *_ASSUMPTIONS,
    ]


def describe(groups: Sequence[Group]) -> str:
    """The groups in words.

    >>> describe([Group(16384, 1, 28), Group(131072, 8, 28)])
    '16,384 (degree 1, 28 checkpointed), 131,072 (degree 8, 28 checkpointed)'
    """
    return ", ".join(
        f"{group.length:,} (degree {group.degree}, {group.checkpointed} checkpointed)"
        for group in groups
    )


def simulation_tables(report: dict[str, Any]) -> list[Any]:
    """What is printed."""
    rows = [
        [
            name,
            number(row["seconds"], 1),
            _ratio(row),
            number(row["no_wait"], 1),
            *(number(row[key], 4 if key == "fill" else 3) for key in _METRICS),
        ]
        for name, row in report["methods"].items()
    ]
    columns = ["method", "seconds", f"x {REFERENCE}", "no wait", "fill", "PR", "DBR", "ABR", "CR"]
    return [
        table(report["title"], columns, rows),
        *(f"assumed: {line}" for line in report["assumptions"]),
        *(f"picture: {path}" for path in report["pictures"]),
    ]


def _ratio(row: dict[str, Any]) -> str:
    if row["speed_up"] is None:
        return "-"
    spread = "" if row["speed_up_sd"] is None else f" ± {row['speed_up_sd']:.3f}"
    return f"{row['speed_up']:.3f}{spread}"


def plain_groups(groups: Sequence[Group]) -> list[dict[str, int]]:
    """The groups as plain data."""
    return [asdict(group) for group in groups]
