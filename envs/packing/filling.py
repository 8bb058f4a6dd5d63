"""Greedy fill: what is left in the packs of a long group takes documents of the shorter ones."""

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.packing.grouping.length_set import LengthSet
from mixgym.envs.packing.packed import Packing


def greedy_fill(
    packs: Packing, lengths: IntArray, capacity: int, shorter: IntArray, limit: int
) -> Packing:
    """Fill each pack with the longest shorter document that fits, again and again (HBP, alg. 6).

    Unbounded, badly filled long packs can swallow every short document, and with them the shorter
    group; ``limit`` keeps it alive.

    Args:
        packs: of the long group.
        lengths: int64[n], tokens of every document.
        capacity: tokens that fit into a pack.
        shorter: int64[m], indices of the documents that may be taken.
        limit: tokens that may be taken in all.

    Returns:
        The packs with what they took; documents that were there come first.
    """
    if not limit or not len(packs):
        return packs
    order = shorter[np.argsort(lengths[shorter], kind="stable")]
    values = lengths[order]
    firsts = np.flatnonzero(np.diff(values, prepend=-1))
    place_of = dict(zip(values[firsts].tolist(), firsts.tolist(), strict=True))
    end_of = dict(zip(place_of, [*firsts[1:].tolist(), len(order)], strict=True))
    waiting = LengthSet(capacity, place_of)
    taken: list[tuple[int, int, int]] = []  # (pack, first of the order, documents)
    for pack, room in enumerate((capacity - packs.sums(lengths)).tolist()):
        value = waiting.at_most(min(room, limit))
        while value > 0:
            first = place_of[value]
            count = min(end_of[value] - first, min(room, limit) // value)
            taken.append((pack, first, count))
            place_of[value] += count
            if place_of[value] == end_of[value]:
                waiting.discard(value)
            room, limit = room - count * value, limit - count * value
            value = waiting.at_most(min(room, limit, value - 1))
    return _with(packs, order, taken)


def _with(packs: Packing, order: IntArray, taken: list[tuple[int, int, int]]) -> Packing:
    if not taken:
        return packs
    pack, first, count = np.array(taken, np.int64).T
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    documents = np.concatenate([packs.documents, order[np.repeat(first, count) + within]])
    return Packing.grouped(
        documents, np.concatenate([packs.pack_of, np.repeat(pack, count)]), len(packs)
    )
