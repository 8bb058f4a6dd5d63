"""Packers: put documents into packs of one capacity. Pure functions of lengths and a generator.

Lengths repeat, so the packers that sort place all documents of one length together, into many packs
at once; what they do is the same, pack for pack, as one document after the other. A million
documents take about a second. Which packs are trained together is decided elsewhere.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import PackingError
from mixgym.envs.packing.grouping.length_set import LengthSet
from mixgym.envs.packing.packed import Packing, Placement
from mixgym.envs.plugins.outside import check_signature, summary_of
from mixgym.envs.plugins.registry import Registry

_ISF_ROUNDS = 10
_ISF_SLACK = 128  # tokens that a pack may lack to be kept

RandomPacker = Callable[[IntArray, int, np.random.Generator], Packing]


class _Sorting(Protocol):
    def __call__(self, lengths: IntArray, capacity: int, /) -> Packing: ...


def best_fit_decreasing(lengths: IntArray, capacity: int) -> Packing:
    """Pack the longest document first, each into the fullest pack that still holds it.

    Args:
        lengths: int64[n], tokens of each document.
        capacity: tokens that fit into a pack.

    Returns:
        The packs; every document lies in exactly one.

    Raises:
        PackingError: if a document is longer than ``capacity``, or empty.

    >>> [pack.tolist() for pack in best_fit_decreasing(np.array([6, 5, 5, 4, 3, 7, 2, 8]), 10)]
    [[7, 6], [5, 4], [0, 3], [1, 2]]
    """
    return _into_open_packs(lengths, capacity, fullest=True)


def worst_fit_decreasing(lengths: IntArray, capacity: int) -> Packing:
    """Pack the longest document first, each into the emptiest open pack, if that holds it.

    This is shortest-pack-first histogram packing (Krell et al., arXiv 2107.02027, algorithm 2)
    without its bound on documents per pack; arguments and errors as :func:`best_fit_decreasing`.
    """
    return _into_open_packs(lengths, capacity, fullest=False)


def first_fit_decreasing(lengths: IntArray, capacity: int) -> Packing:
    """Pack the longest document first, each into the first pack that still holds it.

    The packs come out one after the other: each takes the longest document that still fits until
    none does, which gives the same packs (see the tests). A pattern of lengths is laid down as
    often as there are documents for it. Arguments and errors as :func:`best_fit_decreasing`.

    >>> [pack.tolist() for pack in first_fit_decreasing(np.array([6, 5, 5, 4, 3, 7, 2, 8]), 10)]
    [[7, 6], [5, 4], [0, 3], [1, 2]]
    """
    order, values, firsts, counts = _by_length(lengths, capacity)
    placement = Placement(order)
    place_of = dict(zip(values, firsts, strict=True))
    left = dict(zip(values, counts, strict=True))
    waiting = LengthSet(capacity, values)
    while (value := waiting.last()) > 0:
        # the pattern of the next pack: n_v = min(left_v, room // v) of each length v, from the
        # longest that fits downwards
        room, pattern = capacity, []
        while value > 0:
            each = min(left[value], room // value)
            pattern.append((value, each))
            room -= each * value
            value = waiting.at_most(min(room, value - 1))
        # the next packs have the same pattern for as long as every n_v of it is left
        many = min(left[value] // each for value, each in pattern)
        pack = placement.packs
        for value, each in pattern:
            placement.place(place_of[value], pack, many, each)
            place_of[value] += many * each
            left[value] -= many * each
            if not left[value]:
                waiting.discard(value)
    return placement.finish()


def next_fit(lengths: IntArray, capacity: int) -> Packing:
    """Pack documents in the order given; what does not fit any more opens the next pack.

    Arguments and errors as :func:`best_fit_decreasing`.

    >>> [pack.tolist() for pack in next_fit(np.array([6, 5, 5, 4, 3, 7, 2, 8]), 10)]
    [[0], [1, 2], [3, 4], [5, 6], [7]]
    """
    check_lengths(lengths, capacity)
    ends = np.cumsum(lengths).tolist()
    offsets, used = [0], 0
    while offsets[-1] < len(ends):
        offsets.append(bisect_right(ends, used + capacity, lo=offsets[-1]))
        used = ends[offsets[-1] - 1]
    return Packing(np.arange(len(ends)), np.array(offsets, np.int64))


def isf(
    lengths: IntArray,
    capacity: int,
    generator: np.random.Generator,
    *,
    rounds: int = _ISF_ROUNDS,
    slack: int = _ISF_SLACK,
) -> Packing:
    """Iterative sampling and filtering: shuffle, next fit, keep the full packs, try the rest again.

    After OmniBal (arXiv 2407.20761). The last round keeps all of its packs.

    Args:
        lengths: int64[n], tokens of each document.
        capacity: tokens that fit into a pack.
        generator: of the shuffles.
        rounds: shuffles before the last one, at least 0.
        slack: tokens that a pack may lack and still be kept (a thirtieth of the capacity at most).

    Raises:
        PackingError: if a document is longer than ``capacity``, or empty.
    """
    check_lengths(lengths, capacity)
    enough = capacity - min(slack, capacity // 30)
    rest, kept = np.arange(len(lengths)), []
    for _ in range(rounds):
        packs = _next_fit_shuffled(lengths[rest], capacity, generator).renamed(rest)
        full = packs.sums(lengths) >= enough
        kept.append(packs.take(np.flatnonzero(full)))
        rest = packs.take(np.flatnonzero(~full)).documents
    last = _next_fit_shuffled(lengths[rest], capacity, generator).renamed(rest)
    return Packing.joined([*kept, last])


def _next_fit_shuffled(lengths: IntArray, capacity: int, generator: np.random.Generator) -> Packing:
    check_lengths(lengths, capacity)  # before the order that errors speak of is lost
    order = generator.permutation(len(lengths))
    return next_fit(lengths[order], capacity).renamed(order)


def _fixed(packer: _Sorting) -> RandomPacker:
    return lambda lengths, capacity, _: packer(lengths, capacity)


@dataclass(frozen=True)
class PackerKind:
    """A packer by name.

    Attributes:
        summary: one line.
        pack: (lengths, capacity, generator) -> packs.
    """

    summary: str
    pack: RandomPacker


def as_kind(where: str, thing: Any, **declared: Any) -> PackerKind:
    """The packer that a plug-in is: a :class:`PackerKind`, or a function as its ``pack``.

    Raises:
        ConfigError: for anything else, beginning with ``where``.
    """
    if isinstance(thing, PackerKind):
        return replace(thing, **declared)
    check_signature(thing, ("lengths", "capacity", "generator"), where)
    return PackerKind(**{"summary": summary_of(thing), "pack": thing, **declared})


_BUILT_IN = {
    "best_fit_decreasing": PackerKind(
        "longest document first, into the fullest pack that holds it", _fixed(best_fit_decreasing)
    ),
    "first_fit_decreasing": PackerKind(
        "longest document first, into the first pack that holds it", _fixed(first_fit_decreasing)
    ),
    "knapsack": PackerKind(
        "pack by pack, the longest document that fits (the packs of first_fit_decreasing)",
        _fixed(first_fit_decreasing),
    ),
    "spfhp": PackerKind(
        "longest document first, into the emptiest pack", _fixed(worst_fit_decreasing)
    ),
    "isf": PackerKind("shuffle, next fit, keep full packs, repeat with the rest", isf),
    "next_fit": PackerKind("shuffle; what does not fit opens the next pack", _next_fit_shuffled),
}

PACKERS: Registry[PackerKind] = Registry(
    "packer", "data.packing.packer", "mixgym.packers", as_kind, _BUILT_IN
)


def find_packer(name: str) -> PackerKind:
    """The packer called ``name``.

    Raises:
        ConfigError: if there is none, with the names there are, or for a plug-in that is none.
    """
    return PACKERS[name]


def _by_length(
    lengths: IntArray, capacity: int
) -> tuple[IntArray, list[int], list[int], list[int]]:
    """Documents from long to short, and the runs of equal length among them.

    Returns:
        (order: int64[n], indices of the documents; for each distinct length from long to short the
        length, where its run starts in ``order``, and how many there are).

    Raises:
        PackingError: if a document is longer than ``capacity``, or empty.
    """
    check_lengths(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    found = lengths[order]
    firsts = np.flatnonzero(np.diff(found, prepend=-1))
    counts = np.diff(np.append(firsts, len(found)))
    return order, found[firsts].tolist(), firsts.tolist(), counts.tolist()


def check_lengths(lengths: IntArray, capacity: int) -> None:
    """Refuse documents that no pack can hold.

    Raises:
        PackingError: if a document is longer than ``capacity``, or empty.
    """
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


def _into_open_packs(lengths: IntArray, capacity: int, *, fullest: bool) -> Packing:
    """Longest first; the pack is the one with the least room that suffices, or with the most."""
    order, values, firsts, counts = _by_length(lengths, capacity)
    placement, shelf = Placement(order), _Shelf(capacity)
    for value, first, count in zip(values, firsts, counts, strict=True):
        while count:
            room = shelf.least(value) if fullest else shelf.most()
            if room < value:  # open packs, and fill each before the next
                each = capacity // value
                room, pack, many = capacity, placement.packs, -(-count // each)
            else:
                # best fit stays with a pack until the length no longer fits, since it is then the
                # fullest; worst fit goes on to another as soon as a pack has got one
                pack, many = shelf.take(room)
                each = room // value if fullest else 1
            # count = full * each + rest: as many packs get ``each``, one gets the rest
            full = min(many, count // each)
            rest = min(count - full * each, each) if full < many else 0
            placement.place(first, pack, full, each)
            shelf.put(room - each * value, pack, full)
            if rest:
                placement.place(first + full * each, pack + full, 1, rest)
                shelf.put(room - rest * value, pack + full, 1)
            used = full + (rest > 0)
            shelf.put(room, pack + used, many - used)
            first, count = first + full * each + rest, count - full * each - rest
    return placement.finish()


class _Shelf:
    """Open packs by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self._packs: dict[int, list[tuple[int, int]]] = {}  # room -> (first pack, packs)
        self._rooms = LengthSet(capacity)

    def least(self, room: int) -> int:
        """The least room that is at least ``room``; -1 if there is none."""
        return self._rooms.at_least(room)

    def most(self) -> int:
        """The most room that a pack has; -1 if there is no open pack."""
        return self._rooms.last()

    def put(self, room: int, first: int, many: int) -> None:
        """Packs ``first`` ... ``first + many - 1`` have that much room; full packs are put away."""
        if room and many:
            self._packs.setdefault(room, []).append((first, many))
            self._rooms.add(room)

    def take(self, room: int) -> tuple[int, int]:
        """Packs with exactly that much room: (first pack, packs)."""
        found = self._packs[room].pop()
        if not self._packs[room]:
            del self._packs[room]
            self._rooms.discard(room)
        return found
