"""The plan: documents to groups, packs, global batches and a schedule (HBP, arXiv 2503.07680).

A pure function of (lengths, configuration, seed, period): every process computes the same plan, and
a resumed run goes on with the rest of it. What the packs hold is decided by whoever draws the rows.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.balance import (
    IDLE,
    Balance,
    attention_work,
    deal,
    even_out,
    order_packs,
)
from mixgym.envs.packing.filling import greedy_fill
from mixgym.envs.packing.grouping.groups import (
    Cluster,
    Group,
    OverLong,
    check_groups,
    fit_lengths,
    group_of,
)
from mixgym.envs.packing.layout import Layout
from mixgym.envs.packing.packed import Packing
from mixgym.envs.packing.packers import find_packer
from mixgym.envs.random_streams import stream


@dataclass(frozen=True)
class PlanConfig:
    """How documents are packed and laid out.

    Attributes:
        groups: from short to long.
        cluster: devices, and tokens in an optimiser step.
        packer: a name of :data:`mixgym.envs.packing.packers.PACKERS`.
        balance: how packs are sorted by attention work.
        fill: share of the tokens of shorter groups that may fill the packs of a longer one, at
            most; 0 fills nothing, 1 lets badly filled long packs swallow the shorter groups.
        warm_up: first steps that are taken from the shortest group alone.
        spread: whether the packs of a group are dealt to its steps alike, to one micro-step, or
            fill all of them but the last.
        over_long: what to do with documents longer than the longest group.

    Raises:
        ConfigError: for anything that the cluster cannot train.
    """

    groups: tuple[Group, ...]
    cluster: Cluster
    packer: str = "best_fit_decreasing"
    balance: Balance = field(default_factory=Balance)
    fill: float = 0.25
    warm_up: int = 0
    over_long: OverLong = "error"
    spread: bool = False

    def __post_init__(self) -> None:
        check_groups(self.groups, self.cluster)
        find_packer(self.packer)
        if not 0 <= self.fill <= 1:
            raise ConfigError(f"packing.fill={self.fill}: give a share between 0 and 1")
        if self.warm_up < 0 or (self.balance.window is not None and self.balance.window < 1):
            raise ConfigError(
                f"packing: warm_up={self.warm_up} starts at 0 and window={self.balance.window} at 1"
            )


@dataclass(frozen=True)
class Step:
    """An optimiser step: one global batch of one group.

    Attributes:
        group: index of the group.
        slots: int64[micro_steps, replicas], packs; :data:`~mixgym.envs.packing.balance.IDLE` where
            a replica waits.
    """

    group: int
    slots: IntArray

    @property
    def packs(self) -> IntArray:
        """int64[n], the packs of the step, micro-step by micro-step."""
        return self.slots[self.slots != IDLE]


@dataclass(frozen=True)
class PackingPlan:
    """Packs and steps; every document that was not skipped lies in exactly one pack of one step.

    Attributes:
        config: what was asked for.
        lengths: int64[n], tokens of each document as it is trained (0 for skipped ones).
        packing: the packs, group by group.
        pack_group: int64[packs].
        steps: in the order in which they are trained.
        over_long: documents that no group could hold.
        lost_tokens: tokens skipped or cut with them.
    """

    config: PlanConfig
    lengths: IntArray
    packing: Packing
    pack_group: IntArray
    steps: tuple[Step, ...]
    over_long: int = 0
    lost_tokens: int = 0

    @property
    def layout(self) -> Layout:
        """The work of every replica in every micro-step."""
        group = np.array([step.group for step in self.steps], np.int64)
        micro = np.array([len(step.slots) for step in self.steps], np.int64)
        pack, row, replica = _flat(self.steps, micro)
        tokens = self.packing.sums(self.lengths)
        work = attention_work(self.packing, self.lengths)
        return Layout(
            self.config.groups,
            self.config.cluster,
            row_group=np.repeat(group, micro),
            row_step=np.repeat(np.arange(len(group)), micro),
            row=row,
            replica=replica,
            tokens=tokens[pack],
            slots=tokens[pack],
            work=work[pack],
        )

    def digest(self) -> str:
        """A digest of everything in the plan, by which processes know that they have the same."""
        digest = hashlib.sha256(repr(self.config).encode())
        for array in (self.lengths, self.packing.documents, self.packing.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        for step in self.steps:
            digest.update(f"{step.group}".encode())
            digest.update(step.slots.tobytes())
        return digest.hexdigest()[:32]


def make_plan(lengths: IntArray, config: PlanConfig, seed: int, period: int = 0) -> PackingPlan:
    """Plan an epoch or an interval.

    Args:
        lengths: int64[n], tokens of each document.
        config: groups, cluster, packer, balance, fill, curriculum.
        seed: of the run.
        period: which epoch or interval; another one is another order.

    Raises:
        PackingError: for empty documents, or over-long ones under ``over_long=error``.
    """
    fitted = fit_lengths(lengths, config.groups[-1].length, config.over_long)
    trained = np.zeros(len(lengths), np.int64)
    trained[fitted.kept] = fitted.lengths
    parts = [
        packs.renamed(fitted.kept) for packs in _pack_groups(fitted.lengths, config, seed, period)
    ]
    packing = Packing.joined(parts)
    pack_group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    work = attention_work(packing, trained)
    dealt = [
        _deal_group(np.flatnonzero(pack_group == index), work, config, index, seed, period)
        for index in range(len(parts))
    ]
    counts = np.array([len(slots) for slots in dealt], np.int64)
    order = schedule_steps(counts, config.warm_up, stream(seed, "packing", "order", str(period)))
    steps = tuple(Step(group, dealt[group][which]) for group, which in order.tolist())
    return PackingPlan(
        config, trained, packing, pack_group, steps, fitted.over_long, fitted.lost_tokens
    )


def steps_needed(lengths: IntArray, config: PlanConfig, seed: int, period: int = 0) -> int:
    """Optimiser steps of the plan, without laying it out; arguments as of :func:`make_plan`."""
    fitted = fit_lengths(lengths, config.groups[-1].length, config.over_long)
    parts = _pack_groups(fitted.lengths, config, seed, period)
    return sum(
        -(-len(part) // config.cluster.packs(group))
        for part, group in zip(parts, config.groups, strict=True)
    )


def _pack_groups(lengths: IntArray, config: PlanConfig, seed: int, period: int) -> list[Packing]:
    """Packs of every group; the longest is packed first, since its packs take shorter documents."""
    groups = group_of(lengths, config.groups)
    free = np.ones(len(lengths), np.bool_)
    packer = find_packer(config.packer)
    parts: list[Packing] = []
    for index, group in reversed(list(enumerate(config.groups))):
        generator = stream(seed, "packing", "packer", str(period), str(index))
        # shuffled, so that documents of one length change places from period to period
        own = generator.permutation(np.flatnonzero(free & (groups == index)))
        packs = packer.pack(lengths[own], group.length, generator).renamed(own)
        shorter = generator.permutation(np.flatnonzero(free & (groups < index)))
        limit = int(config.fill * lengths[shorter].sum())
        packs = greedy_fill(packs, lengths, group.length, shorter, limit)
        free[packs.documents] = False
        parts.append(packs)
    return parts[::-1]


def _deal_group(
    packs: IntArray, work: IntArray, config: PlanConfig, index: int, seed: int, period: int
) -> IntArray:
    """int64[steps, micro_steps, replicas], the packs of a group in steps."""
    group, cluster = config.groups[index], config.cluster
    generator = stream(seed, "packing", "balance", str(period), str(index))
    order = order_packs(work[packs], cluster.packs(group), config.balance, generator)
    replicas = cluster.replicas(group)
    together = replicas if config.balance.sort and config.balance.whole else 1
    slots = deal(
        packs[order],
        cluster.micro_steps(group),
        replicas,
        spread=config.spread,
        together=together,
    )
    return even_out(slots, work) if config.balance.sort else slots


def _flat(steps: tuple[Step, ...], micro: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """(pack, row, replica), each int64[units], of all packs of all steps."""
    firsts = (np.cumsum(micro) - micro).tolist()
    found = [_places(step.slots, first) for step, first in zip(steps, firsts, strict=True)]
    if not found:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    pack, row, replica = np.concatenate(found, axis=1)
    return pack, row, replica


def _places(slots: IntArray, first: int) -> IntArray:
    row, replica = np.nonzero(slots != IDLE)
    return np.stack([slots[row, replica], first + row, replica])


def schedule_steps(counts: IntArray, warm_up: int, generator: np.random.Generator) -> IntArray:
    """Steps of the shortest group first, then the groups in turn, at random.

    Args:
        counts: int64[groups], steps of each group, the shortest group first.
        warm_up: steps of the shortest group that come first (curriculum); 0 for none.
        generator: of the order after that.

    Returns:
        int64[steps, 2]: (group, which of its steps). Every step stands there once, a group's steps
        in random order.
    """
    groups = np.repeat(np.arange(len(counts)), counts)
    which = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = generator.permutation(len(groups))
    early = np.flatnonzero(groups[order] == 0)[:warm_up]
    order = np.concatenate([order[early], np.delete(order, early)])
    return np.stack([groups[order], which[order]], axis=1)
