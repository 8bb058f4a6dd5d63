"""Batches with padding, which packing is compared with."""

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.layout import Layout


def padded_layout(
    lengths: IntArray,
    group: Group,
    cluster: Cluster,
    generator: np.random.Generator,
    *,
    in_order: bool,
    budget: bool,
    shuffle_batches: bool = False,
) -> Layout:
    """Padded batches, one per replica and micro-step; padding costs like tokens.

    Args:
        lengths: int64[n], tokens of each document, at most the group's length.
        group: pack length and degree.
        cluster: the devices.
        generator: of the order of documents and batches.
        in_order: sort documents by length; otherwise they are shuffled.
        budget: as many documents in a batch as fit with their padding; otherwise one.
        shuffle_batches: deal the batches at random, not neighbours to the same micro-step.
    """
    order = np.argsort(lengths, kind="stable") if in_order else generator.permutation(len(lengths))
    ordered = lengths[order]
    sizes = _budgeted(ordered, group.length) if budget else np.ones(len(ordered), np.int64)
    shuffled = generator.permutation(len(sizes)) if shuffle_batches else np.arange(len(sizes))
    starts = np.cumsum(sizes) - sizes
    longest = np.maximum.reduceat(ordered, starts) if len(ordered) else ordered
    tokens = np.add.reduceat(ordered, starts) if len(ordered) else ordered
    replicas = cluster.replicas(group)
    rows = -(-len(sizes) // replicas)
    place = np.arange(len(sizes))
    return Layout(
        (group,),
        cluster,
        row_group=np.zeros(rows, np.int64),
        row_step=np.arange(rows),
        row=place // replicas,
        replica=place % replicas,
        tokens=tokens[shuffled],
        slots=(sizes * longest)[shuffled],
        work=(sizes * longest**2)[shuffled],
    )


def _budgeted(lengths: IntArray, capacity: int) -> IntArray:
    """int64[batches], documents in each batch: in order, as many as fit with their padding."""
    sizes: list[int] = []
    longest, count = 0, 0
    for length in lengths.tolist():
        grown = max(longest, length)
        if count and grown * (count + 1) > capacity:
            sizes.append(count)
            grown, count = length, 0
        longest, count = grown, count + 1
    return np.array([*sizes, count] if count else sizes, np.int64)
