"""Tables of usable rows, which are parsed when they are asked for, and selections of their rows.

What is known of a table without reading it (:class:`RowIndex`) is small: where its usable rows
are, and a digest of what stands in each, by which duplicates are found. It can be kept from one
start to the next.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.sources.encoded.token_rows import Digests, as_digests, digest_of
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.rows.turns import MalformedError
from mixgym.envs.sources.tables.parsing import Columns, Policy, parse, stop
from mixgym.envs.sources.tables.records import BATCH, Records, batches


class Table(Protocol):
    """Rows that can be used."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The rows at some places, in that order."""
        ...

    @property
    def digests(self) -> Digests:
        """uint64[rows, 2], equal where contents are."""
        ...

    def cells(self, column: str) -> Sequence[Any]:
        """What a column holds in every row; None where it is missing or no scalar."""
        ...


def content_digest(row: Row) -> bytes:
    """16 bytes that stand for the content of a row."""
    return digest_of(repr(row.content).encode())


class HeldTable:
    """Rows in memory."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The rows at some places, in that order."""
        return [self._rows[i] for i in places]

    @cached_property
    def digests(self) -> Digests:
        """uint64[rows, 2], equal where contents are."""
        return as_digests([content_digest(row) for row in self._rows])

    def cells(self, column: str) -> Sequence[Any]:
        """What a column holds in every row; None where it is missing."""
        return [row.columns.get(column) for row in self._rows]


@dataclass(frozen=True, eq=False)
class RowIndex:
    """What is known of a table without reading it.

    Attributes:
        records: int64[rows], where each usable row is among the records of all its files.
        sizes: records in each file.
        digests: uint64[rows, 2], of the content of each row.
        row_format: a name in :data:`mixgym.envs.sources.rows.formats.FORMATS`.
        counts: ``skipped`` and ``left out``.
        unused: what rows fill without a use -> how often.
        cells: the columns that were asked for.
    """

    records: IntArray
    sizes: tuple[int, ...]
    digests: Digests
    row_format: str
    counts: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    cells: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def index_rows(
    parts: Sequence[Records],
    row_format: str,
    columns: Columns,
    source: str,
    malformed: Policy,
    cells: Sequence[str] = (),
) -> RowIndex:
    """Look at every record once.

    Args:
        parts: the files, in order.
        row_format: of the source.
        columns: its own names of columns.
        source: its name, for errors.
        malformed: what to do with a row that cannot be used.
        cells: columns whose values are kept.

    Raises:
        SourceError: a row is malformed, under the policy ``error``.
    """
    counts: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    places: list[int] = []
    digests: list[bytes] = []
    kept: dict[str, list[Any]] = {column: [] for column in cells}
    place = -1
    for record in (r for part in parts for batch in batches(part) for r in batch):
        place += 1
        try:
            row = parse(columns.renamed(record), row_format, unused)
        except MalformedError as flaw:
            stop(record, source, malformed, str(flaw))
            counts["skipped"] += 1
            continue
        if row is None:
            counts["left out"] += 1
            continue
        places.append(place)
        digests.append(content_digest(row))
        for column, values in kept.items():
            values.append(row.columns.get(column))
    sizes = tuple(len(part) for part in parts)
    where = np.array(places, np.int64)
    return RowIndex(where, sizes, as_digests(digests), row_format, counts, unused, kept)


class FileTable:
    """The usable rows of some files.

    Args:
        parts: the files, in order; they are opened when a row is asked for.
        columns: the source's own names of columns.
        index: what is known of them.
        key: what the table is made of, as text, where that is known.
    """

    def __init__(
        self,
        parts: Sequence[Records],
        columns: Columns,
        index: RowIndex,
        key: str | None = None,
    ) -> None:
        self._parts = tuple(parts)
        self._columns = columns
        self.index = index
        self.key = key

    def all(self) -> "Rows":
        """Every row."""
        return Rows(self, np.arange(len(self)))

    def __len__(self) -> int:
        return len(self.index.records)

    @property
    def digests(self) -> Digests:
        """uint64[rows, 2], equal where contents are."""
        return self.index.digests

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The rows at some places, in that order."""
        wanted = self.index.records[np.asarray(places, np.int64)]
        starts = np.cumsum([0, *self.index.sizes])
        home = np.searchsorted(starts, wanted, side="right") - 1
        found: list[Row | None] = [None] * len(wanted)
        for part in np.unique(home).tolist():
            mine = np.flatnonzero(home == part)
            records = self._parts[part].pick((wanted[mine] - starts[part]).tolist())
            for slot, record in zip(mine.tolist(), records, strict=True):
                renamed = self._columns.renamed(record)
                found[slot] = parse(renamed, self.index.row_format, Counter())
        assert None not in found  # only usable rows are listed
        return [row for row in found if row is not None]

    def cells(self, column: str) -> Sequence[Any]:
        """What a column holds in every row; None where it is missing or no scalar."""
        if column in self.index.cells:
            return self.index.cells[column]
        return [row.columns.get(column) for row in self.all()]


class Rows(Sequence[Row]):
    """Some rows of a table, in order, made when they are asked for.

    Args:
        table: that they stand in.
        places: int64[rows] in the table.
    """

    def __init__(self, table: Table, places: IntArray) -> None:
        self.table = table
        self.places = np.asarray(places, np.int64)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Rows":
        """The rows themselves, or a table in memory of them."""
        return rows if isinstance(rows, Rows) else cls(HeldTable(rows), np.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return self.pick(np.arange(len(self))[index])
        return self.table.rows([int(self.places[index])])[0]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), BATCH):
            yield from self.table.rows(self.places[start : start + BATCH].tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def pick(self, indices: IntArray) -> "Rows":
        """The rows at some indices of these, in that order."""
        return Rows(self.table, self.places[np.asarray(indices, np.int64)])

    def where(self, keep: Callable[[Row], bool]) -> "Rows":
        """Those of the rows that are to be kept."""
        return self.pick(np.flatnonzero([keep(row) for row in self]))

    @property
    def digests(self) -> Digests:
        """uint64[rows, 2], equal where contents are."""
        return self.table.digests[self.places]

    def cells(self, column: str) -> list[Any]:
        """What a column holds in every row; None where it is missing or no scalar."""
        values = self.table.cells(column)
        return [values[i] for i in self.places.tolist()]
