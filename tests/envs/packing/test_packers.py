from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError, PackingError
from mixgym.envs.packing.grouping.length_set import LengthSet
from mixgym.envs.packing.packed import Packing, Placement
from mixgym.envs.packing.packers import (
    PACKERS,
    best_fit_decreasing,
    find_packer,
    first_fit_decreasing,
    isf,
    next_fit,
    worst_fit_decreasing,
)

WORKED = np.array([6, 5, 5, 4, 3, 7, 2, 8])
CASES = st.integers(1, 64).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))
)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def contents(packing: Packing, lengths: np.ndarray) -> Counter[tuple[int, ...]]:
    return Counter(tuple(sorted(lengths[pack].tolist())) for pack in packing)


def one_by_one(
    lengths: list[int], capacity: int, choose: Callable[[list[int]], int]
) -> Counter[tuple[int, ...]]:
    """Packing as in a textbook: ``choose`` picks among the rooms of the packs that still fit."""
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        rooms = [capacity - sum(pack) for pack in packs]
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            packs[fitting[choose([rooms[i] for i in fitting])]].append(length)
        else:
            packs.append([length])
    return Counter(tuple(sorted(pack)) for pack in packs)


def knapsack(lengths: list[int], capacity: int) -> Counter[tuple[int, ...]]:
    """Pack by pack, always the longest document that fits."""
    left, packs = sorted(lengths, reverse=True), []
    while left:
        pack: list[int] = []
        for length in list(left):
            if sum(pack) + length <= capacity:
                pack.append(length)
                left.remove(length)
        packs.append(tuple(sorted(pack)))
    return Counter(packs)


@pytest.mark.parametrize("name", PACKERS)
@settings(max_examples=60)
@given(case=CASES)
def test_every_packer_keeps_every_document_once_within_the_capacity(
    name: str, case: tuple[int, list[int]]
) -> None:
    capacity, listed = case
    lengths = np.array(listed, np.int64)
    packing = PACKERS[name].pack(lengths, capacity, generator())
    assert sorted(packing.documents.tolist()) == list(range(len(lengths)))
    used = packing.sums(lengths)
    assert used.sum() == lengths.sum()
    assert ((used > 0) & (used <= capacity)).all()
    bound = -(-int(lengths.sum()) // capacity)
    assert bound <= len(packing) <= 2 * bound + 1
    if name not in ("isf", "next_fit"):
        assert (2 * used <= capacity).sum() <= 1


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize(
    ("listed", "packs"), [([], 0), ([7], 1), ([10], 1), ([10] * 5, 5), ([5] * 7, 4), ([1] * 95, 10)]
)
def test_every_packer_on_extreme_cases(name: str, listed: list[int], packs: int) -> None:
    packing = PACKERS[name].pack(np.array(listed, np.int64), 10, generator())
    assert len(packing) == packs
    assert len(packing.documents) == len(listed)


@settings(max_examples=200)
@given(CASES)
def test_the_packers_that_sort_are_those_of_the_textbook(case: tuple[int, list[int]]) -> None:
    capacity, listed = case
    lengths = np.array(listed, np.int64)
    # packs with equal room are alike to these two, so the loads are compared
    best = best_fit_decreasing(lengths, capacity).sums(lengths)
    wanted = one_by_one(listed, capacity, lambda rooms: rooms.index(min(rooms)))
    assert sorted(best.tolist()) == sorted(map(sum, wanted.elements()))
    worst = worst_fit_decreasing(lengths, capacity).sums(lengths)
    wanted = one_by_one(listed, capacity, lambda rooms: rooms.index(max(rooms)))
    assert sorted(worst.tolist()) == sorted(map(sum, wanted.elements()))
    first = contents(first_fit_decreasing(lengths, capacity), lengths)
    assert first == one_by_one(listed, capacity, lambda rooms: 0) == knapsack(listed, capacity)


def test_the_worked_example() -> None:
    perfect = Counter([(2, 8), (3, 7), (4, 6), (5, 5)])
    assert contents(first_fit_decreasing(WORKED, 10), WORKED) == perfect
    assert contents(best_fit_decreasing(WORKED, 10), WORKED) == perfect
    assert [WORKED[pack].tolist() for pack in next_fit(WORKED, 10)] == [
        [6],
        [5, 5],
        [4, 3],
        [7, 2],
        [8],
    ]


def test_isf_keeps_full_packs_and_tries_the_rest_again() -> None:
    lengths = np.random.default_rng(1).integers(1, 400, 3000)
    once = isf(lengths, 1000, generator(), rounds=0)
    often = isf(lengths, 1000, generator(), rounds=30)
    assert len(often) < len(once)
    used = often.sums(lengths)
    assert (used >= 1000 - 33).mean() > 0.9


@settings(max_examples=100)
@given(st.sets(st.integers(0, 700)), st.integers(0, 900))
def test_the_set_finds_its_neighbours(members: set[int], bound: int) -> None:
    found = LengthSet(700, members)
    assert found.at_least(bound) == min((m for m in members if m >= bound), default=-1)
    assert found.at_most(bound) == max((m for m in members if m <= bound), default=-1)
    assert found.last() == max(members, default=-1)
    for member in list(members)[:3]:
        found.discard(member)
        members.discard(member)
    found.discard(701)  # what is not in may be taken out
    assert found.at_least(0) == min(members, default=-1)


def test_packs_can_be_taken_joined_and_renamed() -> None:
    packing = Packing.of([[0, 1], [2], [3, 4, 5]])
    taken = packing.take(np.array([2, 0]))
    assert [pack.tolist() for pack in taken] == [[3, 4, 5], [0, 1]]
    joined = Packing.joined([taken, packing.take(np.array([1]))])
    assert [pack.tolist() for pack in joined] == [[3, 4, 5], [0, 1], [2]]
    assert joined.renamed(np.arange(10, 16))[-1].tolist() == [12]
    assert joined.pack_of.tolist() == [0, 0, 0, 1, 1, 2]
    with pytest.raises(IndexError, match="pack 3 of 3"):
        joined[3]
    assert len(Placement(np.zeros(0, np.int64)).finish()) == 0


@pytest.mark.parametrize("name", PACKERS)
def test_every_packer_refuses_what_no_pack_holds(name: str) -> None:
    with pytest.raises(PackingError, match="document 1 has 11 tokens and a pack holds 10"):
        PACKERS[name].pack(np.array([3, 11]), 10, generator())
    with pytest.raises(PackingError, match="document 2 is empty"):
        PACKERS[name].pack(np.array([3, 4, 0]), 10, generator())


def test_an_unknown_packer_is_told_the_names() -> None:
    with pytest.raises(ConfigError, match=r"packer=bdf: unknown packer.*best_fit_decreasing"):
        find_packer("bdf")


def test_a_million_documents_are_packed_nearly_full() -> None:
    """The window of a packer, not its kind, is what costs at long packs: this one has none."""
    from mixgym.trainer.simulate.mixes import paper_like

    lengths = paper_like(1_000_000, np.random.default_rng(0))
    packing = best_fit_decreasing(lengths, 131_072)
    bound = -(-int(lengths.sum()) // 131_072)
    assert len(packing) <= bound + 1
    assert lengths.sum() / (len(packing) * 131_072) >= 0.999
