"""What became of rows when they were encoded: their tokens, and what was skipped or cut."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import IntArray
from mixgym.envs.sources.encoded.token_rows import (
    Digests,
    EncodedRows,
    TokenStore,
    as_digests,
    digest_of,
)
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.tables.table import Rows

_Bools = NDArray[np.bool_]

UNANSWERED = "turns behind the last answer"
NO_SUPERVISED = "rows skipped: no supervised token"
REFUSED = "rows skipped: refused by the template"
SKIPPED = "rows skipped: over-long"
TRUNCATED = "rows truncated"
CUT = "supervised tokens cut"
EVENTS = (NO_SUPERVISED, REFUSED, SKIPPED, TRUNCATED, UNANSWERED)
"""What can happen to a row, each a bit of :attr:`Encoded.events`."""


@dataclass(frozen=True)
class Encoding:
    """Rows after encoding.

    Attributes:
        rows: the token sequences.
        raw: the rows that they come from, one for one; skipped ones are gone.
        lengths: int64[rows], tokens of each row before truncation.
        counts: what was skipped, truncated and cut.
        left_out: what rows hold and their texts do not -> how often.
    """

    rows: EncodedRows
    raw: Sequence[Row]
    lengths: IntArray
    counts: Counter[str]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Encoded:
    """All rows that were given, those that are skipped without a token.

    Attributes:
        tokens: int32[total], of the rows end to end.
        labels: bool[total].
        sizes: int64[rows], tokens of each row; 0 where it is skipped.
        supervised: int64[rows], supervised tokens of each row.
        lengths: int64[rows], tokens before truncation.
        cut: int64[rows], supervised tokens that truncation cut.
        events: int64[rows], bits of :data:`EVENTS`.
        largest: int32[rows], the largest token.
        digests: uint64[rows, 2], of tokens and labels.
        left_out: (index of the row, what it holds and its text does not, how often).
    """

    tokens: NDArray[np.int32]
    labels: _Bools
    sizes: IntArray
    supervised: IntArray
    lengths: IntArray
    cut: IntArray
    events: IntArray
    largest: NDArray[np.int32]
    digests: Digests
    left_out: tuple[tuple[int, str, int], ...]

    @cached_property
    def store(self) -> TokenStore:
        """The rows as others take them."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])[:-1].astype(np.int64)
        known = (self.supervised, self.digests, self.largest)
        return TokenStore(self.tokens, self.labels, starts, self.sizes, *known)

    def select(self, raw: Rows, places: IntArray) -> Encoding:
        """The encoding of some of the rows.

        Args:
            raw: the rows at ``places``.
            places: int64[n].
        """
        kept = np.flatnonzero(self.sizes[places] > 0)
        events = self.events[places]
        counts = Counter({name: int((events >> i & 1).sum()) for i, name in enumerate(EVENTS)})
        counts[CUT] = int(self.cut[places].sum())
        left_out: Counter[str] = Counter()
        if self.left_out:
            chosen = set(places.tolist())
            for row, name, times in self.left_out:
                left_out[name] += times if row in chosen else 0
        return Encoding(
            EncodedRows.of(self.store, places[kept]),
            raw.pick(kept),
            self.lengths[places[kept]],
            +counts,
            +left_out,
        )


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Parts of a table, end to end; at least one."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    starts = np.cumsum([0, *(len(part.sizes) for part in parts)]).tolist()
    left_out = tuple(
        (start + row, name, times)
        for start, part in zip(starts, parts, strict=False)
        for row, name, times in part.left_out
    )
    return Encoded(**arrays, left_out=left_out)


ARRAYS = tuple(f.name for f in fields(Encoded) if f.name != "left_out")
"""Names of the arrays of :class:`Encoded`."""


class Outcome:
    """What became of the rows of a batch."""

    def __init__(self, count: int) -> None:
        self.sizes, self.supervised, self.lengths, self.cut, self.events = (
            np.zeros(count, np.int64) for _ in range(5)
        )
        self.largest = np.full(count, -1, np.int32)
        self.digests = np.zeros((count, 2), np.uint64)
        self.left_out: list[tuple[int, str, int]] = []
        self._tokens: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        self._labels: list[_Bools] = [np.zeros(0, np.bool_)]

    def note(self, index: int, event: str) -> None:
        """Something happened to a row."""
        self.events[index] |= 1 << EVENTS.index(event)

    def keep(self, index: int, length: int, tokens: NDArray[np.int32], labels: _Bools) -> None:
        """A row is kept."""
        self._tokens.append(tokens)
        self._labels.append(labels)
        self.sizes[index], self.lengths[index] = len(tokens), length
        self.supervised[index], self.largest[index] = np.count_nonzero(labels), tokens.max()
        self.digests[index] = as_digests([digest_of(tokens.tobytes(), labels.tobytes())])[0]

    def encoded(self) -> Encoded:
        """All of it."""
        return Encoded(
            np.concatenate(self._tokens),
            np.concatenate(self._labels),
            self.sizes,
            self.supervised,
            self.lengths,
            self.cut,
            self.events,
            self.largest,
            self.digests,
            tuple(self.left_out),
        )
