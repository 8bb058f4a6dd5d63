"""From options to what the data plane needs: groups, plan, cost, normaliser.

Everything here is a pure function of the configuration, the training rows and the number of
processes, so that every rank comes to the same. The steps of a plan do not depend on that number
unless it is asked for: by ``balance: sort``, or groups whose degrees are chosen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.balance import Balance, freedom
from mixgym.envs.packing.costs.cost_model import CostModel, Hardware, ModelShape
from mixgym.envs.packing.costs.descriptions import HARDWARE
from mixgym.envs.packing.costs.metrics import measure
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.grouping.selection import (
    candidate_degrees,
    candidate_lengths,
    select_groups,
)
from mixgym.envs.packing.packing_options import PackingOptions
from mixgym.envs.packing.planner import PackingPlan, PlanConfig

_FEW_STEPS = 8
"""Global batches below which an interval is a small pool to pack and balance."""


@dataclass(frozen=True)
class PackingSetup:
    """How the data plane packs.

    Attributes:
        config: groups, cluster, packer, balance, fill.
        normaliser: name of the loss normaliser.
        warm_up: first steps of the run in which the shortest group comes first.
        whole_run: whether all rows of a run are packed together.
        cost: predicts seconds; None where the model is unknown.
    """

    config: PlanConfig
    normaliser: str = "token"
    warm_up: int = 0
    whole_run: bool = False
    cost: CostModel | None = None

    @classmethod
    def one_length(cls, capacity: int, packs: int) -> "PackingSetup":
        """Packs of one length in random order, for one process."""
        config = PlanConfig(
            (Group(capacity),),
            Cluster(1, capacity * packs),
            balance=Balance(sort=False),
            spread=True,
        )
        return cls(config)

    def report(self, plan: PackingPlan) -> Mapping[str, float]:
        """Metrics of a plan, ``seconds`` and ``no_wait_seconds`` by the cost model."""
        layout = plan.layout
        found = measure(layout).to_dict()
        per_step = self.config.cluster.packs(self.config.groups[-1])
        found["freedom"] = freedom(len(plan.packing), per_step, self.config.balance)
        for index in range(len(self.config.groups)):
            found[f"steps_of_group_{index}"] = sum(step.group == index for step in plan.steps)
        if self.cost is not None:
            found["seconds"] = self.cost.seconds(layout)
            found["no_wait_seconds"] = self.cost.seconds_without_waiting(layout)
        return found

    def step_seconds(self, plan: PackingPlan) -> tuple[float, ...]:
        """Predicted seconds of every step; empty where the model is unknown."""
        if self.cost is None:
            return ()
        layout = plan.layout
        rows = layout.largest(self.cost.units(layout))
        return tuple(np.bincount(layout.row_step, rows).tolist())


@dataclass(frozen=True)
class PackingTask:
    """What is packed for whom.

    Attributes:
        lengths: int64[n], tokens of all training rows.
        max_length: tokens in the longest pack.
        packs: packs of that length in a step.
        processes: that train.
        model: shape of the model; None if unknown.
        seed: of the profile that chooses groups.
    """

    lengths: IntArray
    max_length: int
    packs: int
    processes: int = 1
    model: ModelShape | None = None
    seed: int = 0


def make_setup(options: PackingOptions, task: PackingTask) -> PackingSetup:
    """What the data plane needs.

    Raises:
        ConfigError: for groups that the processes cannot train, ``auto`` with an unknown model, or
            a machine that is not known.
    """
    hardware = replace(find_hardware(options.hardware), devices=task.processes)
    cost = CostModel(task.model, hardware) if task.model is not None else None
    cluster = Cluster(task.processes, task.max_length * task.packs)
    groups = _groups(options, task, cost, cluster)
    if groups[-1].length != task.max_length:
        raise ConfigError(
            f"data.packing.groups: the longest group has {groups[-1].length} tokens, and "
            f"data.max_length is {task.max_length}: make them equal"
        )
    config = PlanConfig(
        groups,
        cluster,
        options.packer,
        Balance(_sorts(options, groups), options.window, whole=options.balance == "sort"),
        options.fill,
        spread=True,
    )
    whole = options.pool == "run"
    return PackingSetup(config, options.normaliser, options.warm_up, whole, cost)


def _groups(
    options: PackingOptions, task: PackingTask, cost: CostModel | None, cluster: Cluster
) -> tuple[Group, ...]:
    if options.groups == "one":
        return (Group(task.max_length),)
    if options.groups != "auto":
        return tuple(Group(g.length, g.degree, g.checkpointed) for g in options.groups)
    if cost is None:
        raise ConfigError(
            "data.packing.groups=auto: the cost of this model is unknown: give a list of groups"
        )
    candidates = [n for n in candidate_lengths(task.max_length) if n >= 1]
    degrees = candidate_degrees(task.processes, cost.model.heads)
    lengths = np.minimum(task.lengths, task.max_length)
    return select_groups(lengths, candidates, degrees, cost, cluster, seed=task.seed).groups


def _sorts(options: PackingOptions, groups: Sequence[Group]) -> bool:
    """Whether packs are sorted: by what was asked for, not by how many processes there are."""
    if options.balance == "auto":
        return len(groups) > 1
    return options.balance == "sort"


def find_hardware(name: str) -> Hardware:
    """A stated machine, or one from a JSON file.

    Raises:
        ConfigError: if there is none, or the file does not describe one.
    """
    if name in HARDWARE:
        return HARDWARE[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"data.packing.hardware={name}: is neither a stated machine ({', '.join(HARDWARE)}) "
            "nor a file written by mixgym profile"
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        return _hardware_from(values["hardware"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"data.packing.hardware={name}: does not describe a machine ({error}): write it with "
            "mixgym profile"
        ) from error


def _hardware_from(values: Mapping[str, Any]) -> Hardware:
    """The inverse of ``dataclasses.asdict``.

    Raises:
        ValueError: for rates that are not numbers above 0, or keys that are missing or unknown.
    """
    names = {entry.name for entry in fields(Hardware)}
    if set(values) != names:
        raise ValueError(f"keys {sorted(set(values) ^ names)} are missing or unknown")
    memory = tuple((int(tokens), float(share)) for tokens, share in values["memory"])
    rates = {name: float(value) for name, value in values.items() if name.endswith("_rate")}
    fixed = float(values["fixed_seconds"])
    if not all(np.isfinite(rate) and rate > 0 for rate in rates.values()) or not fixed >= 0:
        raise ValueError("rates have to be above 0")
    return Hardware(
        devices=int(values["devices"]),
        devices_per_node=int(values["devices_per_node"]),
        dense_rate=rates["dense_rate"],
        attention_rate=rates["attention_rate"],
        link_rate=rates["link_rate"],
        node_link_rate=rates["node_link_rate"],
        fixed_seconds=fixed,
        memory=memory,
    )


def hardware_text(hardware: Hardware, **notes: Any) -> str:
    """JSON that :func:`find_hardware` reads, with notes beside."""
    return json.dumps({"hardware": asdict(hardware), **notes}, indent=2) + "\n"


def warnings_of(setup: PackingSetup, interval_steps: int) -> list[str]:
    """What is worth a warning before the run."""
    config = setup.config
    packs = config.cluster.packs(config.groups[-1])
    busy = len(config.groups) > 1 or config.balance.sort
    if not busy or setup.whole_run or interval_steps >= _FEW_STEPS:
        return []
    return [
        f"an interval has {interval_steps} steps of {packs} packs: fewer than {_FEW_STEPS} "
        "global batches are a small pool to balance; raise training.interval"
    ]
