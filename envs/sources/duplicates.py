"""Rows that stand in two splits, in one source or in two: counted, dropped or refused.

A row of an earlier split (train < reward < select < test) is a duplicate if the same messages or
text stand in a later one, of its own source or of any other; it is counted once per later split.
``drop`` removes it from the earlier split, so that test stays whole and train gives way to all.
Duplicates inside train are counted and kept: a row written twice counts twice. The same row in one
split of two sources leaks nothing. Rows are compared by 128-bit digests of their contents, in
arrays, so that none of them is looked at here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mixgym.envs.arrays import BoolArray, IntArray
from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS
from mixgym.envs.sources.encoded.token_rows import Digests
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.tables.table import Rows

Policy = Literal["report", "drop", "error"]
Splits = dict[str, Rows]
Home = tuple[str, str]
"""Source and split."""


def handle_duplicates(
    sources: Mapping[str, Mapping[str, Sequence[Row]]], policy: Policy = "report"
) -> dict[str, tuple[Splits, dict[str, int]]]:
    """Count rows that stand, word for word, in a later split too, and act on them by policy.

    Args:
        sources: by name, the four splits of each.
        policy: what to do with them.

    Returns:
        By source, the splits and the counts, such as ``duplicates: train in test`` and
        ``duplicates: train in test of OTHER``; zero counts are left out.

    Raises:
        SourceError: under ``error``, naming both places of the first duplicate.
    """
    rows = {(s, name): Rows.of(splits[name]) for s, splits in sources.items() for name in SPLITS}
    contents = _Contents({home: part.digests for home, part in rows.items()})
    found: dict[str, tuple[Splits, dict[str, int]]] = {}
    for source in sources:
        counts = Counter({"duplicates: within train": contents.repeated((source, "train"))})
        twins = {name: _twins((source, name), contents, counts) for name in SPLITS}
        if policy == "error":
            _refuse_first(source, rows, contents, twins)
        kept = {name: rows[source, name] for name in SPLITS}
        if policy == "drop":
            kept = {name: part.pick(np.flatnonzero(~twins[name])) for name, part in kept.items()}
            counts["rows dropped: duplicates"] = sum(int(t.sum()) for t in twins.values())
        found[source] = kept, {name: n for name, n in counts.items() if n}
    return found


class _Contents:
    """Rows of all splits by a number for what stands in them.

    Args:
        digests: of each split of each source.
    """

    def __init__(self, digests: Mapping[Home, Digests]) -> None:
        sizes = [len(part) for part in digests.values()]
        numbers, self._count = number_contents(np.concatenate(list(digests.values())))
        parts = np.split(numbers, np.cumsum(sizes)[:-1])
        self.of = dict(zip(digests, parts, strict=True))
        self._members: dict[Home, BoolArray] = {}

    def members(self, home: Home) -> BoolArray:
        """bool[contents], those that stand in a split."""
        if home not in self._members:
            flags = np.zeros(self._count, np.bool_)
            flags[self.of[home]] = True
            self._members[home] = flags
        return self._members[home]

    def repeated(self, home: Home) -> int:
        """Rows of a split that stand in it before."""
        return len(self.of[home]) - int(self.members(home).sum())

    def later(self, home: Home) -> list[Home]:
        """Splits of all sources that a row of this one should not stand in."""
        rank = SPLITS.index(home[1])
        return [other for other in self.of if SPLITS.index(other[1]) > rank]


def number_contents(digests: Digests) -> tuple[IntArray, int]:
    """A number for each row, equal where digests are, and how many numbers there are.

    >>> number_contents(np.array([[7, 1], [2, 2], [7, 1], [7, 0]], np.uint64))
    (array([2, 0, 2, 1]), 3)
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    new = np.ones(len(order), np.bool_)
    new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers, int(new.sum())


def _twins(home: Home, contents: _Contents, counts: Counter[str]) -> BoolArray:
    """bool[rows], those that stand in a later split too; they are counted by split."""
    source, split = home
    mine = contents.of[home]
    found = np.zeros(len(mine), np.bool_)
    for other in contents.later(home) if len(mine) else ():
        shared = contents.members(other)[mine]
        of = "" if other[0] == source else f" of {other[0]}"
        counts[f"duplicates: {split} in {other[1]}{of}"] += int(shared.sum())
        found |= shared
    return found


def _refuse_first(
    source: str, rows: Mapping[Home, Rows], contents: _Contents, twins: Mapping[str, BoolArray]
) -> None:
    """Raise the error of the first duplicate of a source, if there is one."""
    for split in SPLITS:
        if not twins[split].any():
            continue
        first = int(np.argmax(twins[split]))
        number = contents.of[source, split][first]
        home = next(h for h in contents.later((source, split)) if contents.members(h)[number])
        twin = int(np.argmax(contents.of[home] == number))
        _refuse(rows[source, split][first], source, split, home, rows[home][twin])


def _refuse(row: Row, source: str, split: str, home: Home, twin: Row) -> None:
    of = "" if home[0] == source else f" of source {home[0]!r}"
    raise SourceError(
        f"source {source!r}: the {split} row {row.where} stands again in {home[1]}{of}, "
        f"{twin.where}; remove one, or set data.duplicates to drop"
    )
