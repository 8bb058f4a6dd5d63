"""Packers: put documents into packs of one capacity. Pure functions of the lengths."""

from bisect import bisect_left, insort

import numpy as np

from mixgym.envs.errors import PackingError
from mixgym.envs.sources.source import IntArray


def best_fit_decreasing(lengths: IntArray, capacity: int) -> list[list[int]]:
    """Pack the longest document first, each into the fullest pack that still holds it.

    Args:
        lengths: int64[n], tokens of each document.
        capacity: tokens that fit into a pack.

    Returns:
        For each pack the indices of its documents; every index stands in exactly one pack.

    Raises:
        PackingError: if a document is longer than ``capacity``, or empty.

    >>> best_fit_decreasing(np.array([6, 5, 5, 4, 3, 7, 2, 8]), 10)
    [[7, 6], [5, 4], [0, 3], [1, 2]]
    """
    _check(lengths, capacity)
    packs: list[list[int]] = []
    waiting: dict[int, list[int]] = {}  # free tokens -> packs with that much room, oldest last
    rooms: list[int] = []  # the keys of `waiting`, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            room, pack = capacity, len(packs)
            packs.append([])
        else:
            room = rooms[at]
            pack = waiting[room].pop()
            if not waiting[room]:
                del waiting[room]
                rooms.pop(at)
        packs[pack].append(index)
        left = room - length
        if left:
            if left not in waiting:
                waiting[left] = []
                insort(rooms, left)
            waiting[left].append(pack)
    return packs


def _check(lengths: IntArray, capacity: int) -> None:
    if len(lengths) == 0:
        return
    longest, shortest = int(np.argmax(lengths)), int(np.argmin(lengths))
    if lengths[longest] > capacity:
        raise PackingError(
            f"document {longest} has {lengths[longest]} tokens and a pack holds {capacity}: "
            "raise max_length, or truncate or skip over-long rows"
        )
    if lengths[shortest] < 1:
        raise PackingError(f"document {shortest} is empty: skip rows without tokens")
