"""Token sequences of different lengths in flat arrays, which may be files, and selections of them.

A :class:`TokenStore` holds the rows end to end; an :class:`EncodedRows` names some of them, in an
order of its own, and copies nothing: a million rows on disk are cut into splits and strata by their
places alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import IntArray

Digests = NDArray[np.uint64]
"""uint64[rows, 2], 128 bits for each row, by which equal rows are known."""


def digest_of(*parts: bytes) -> bytes:
    """16 bytes that stand for some bytes."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def as_digests(parts: Sequence[bytes]) -> Digests:
    """Digests of rows as an array."""
    return np.frombuffer(bytearray().join(parts), np.uint64).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Rows end to end.

    Attributes:
        tokens: int32[total].
        labels: bool[total], true where the token is supervised. The first token of a row never is:
            nothing predicts it.
        starts: int64[rows], where each row begins.
        lengths: int64[rows], tokens of each row.
        known_supervised: int64[rows], supervised tokens of each row, if they were counted before.
        known_digests: of each row, likewise.
        known_largest: int32[rows], the largest token of each row, likewise.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.bool_]
    starts: IntArray
    lengths: IntArray
    known_supervised: IntArray | None = None
    known_digests: Digests | None = None
    known_largest: NDArray[np.int32] | None = None

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens and labels of one row (views)."""
        start = self.starts[index]
        part = slice(start, start + self.lengths[index])
        return self.tokens[part], self.labels[part]

    @cached_property
    def supervised(self) -> IntArray:
        """int64[rows], supervised tokens of each row."""
        if self.known_supervised is not None:
            return self.known_supervised
        running = np.concatenate([[0], np.cumsum(self.labels, dtype=np.int64)])
        return np.asarray(running[self.starts + self.lengths] - running[self.starts])

    @cached_property
    def digests(self) -> Digests:
        """uint64[rows, 2], of tokens and labels of each row."""
        if self.known_digests is not None:
            return self.known_digests
        rows = (self.row(i) for i in range(len(self.starts)))
        return as_digests([digest_of(ids.tobytes(), labels.tobytes()) for ids, labels in rows])

    @cached_property
    def largest(self) -> NDArray[np.int32]:
        """int32[rows], the largest token of each row; -1 without tokens."""
        if self.known_largest is not None:
            return self.known_largest
        rows = (self.row(i)[0].max(initial=-1) for i in range(len(self.starts)))
        return np.fromiter(rows, np.int32, count=len(self.starts))


class EncodedRows:
    """Some rows of a store, in order.

    Args:
        tokens: int32[total], of rows end to end.
        labels: bool[total], true where the token is supervised.
        offsets: int64[rows + 1]; row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(
        self, tokens: NDArray[np.int32], labels: NDArray[np.bool_], offsets: IntArray
    ) -> None:
        self._store = TokenStore(tokens, labels, offsets[:-1], np.diff(offsets))
        self._places: IntArray = np.arange(len(offsets) - 1, dtype=np.int64)

    @classmethod
    def of(cls, store: TokenStore, places: IntArray) -> "EncodedRows":
        """The rows at ``places`` of a store."""
        rows = cls.__new__(cls)
        rows._store, rows._places = store, np.asarray(places, np.int64)
        return rows

    @classmethod
    def from_lists(cls, rows: list[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> "EncodedRows":
        """Join ``(tokens, labels)`` pairs."""
        lengths = np.array([len(tokens) for tokens, _ in rows], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if not rows:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.bool_), offsets)
        tokens = np.concatenate([tokens for tokens, _ in rows]).astype(np.int32)
        labels = np.concatenate([labels for _, labels in rows]).astype(np.bool_)
        return cls(tokens, labels, offsets)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def lengths(self) -> IntArray:
        """int64[rows], tokens of each row."""
        return self._store.lengths[self._places]

    @cached_property
    def supervised(self) -> IntArray:
        """int64[rows], supervised tokens of each row."""
        return self._store.supervised[self._places]

    @cached_property
    def digests(self) -> Digests:
        """uint64[rows, 2], of tokens and labels of each row."""
        return self._store.digests[self._places]

    @property
    def offsets(self) -> IntArray:
        """int64[rows + 1], where the rows begin and end in :attr:`tokens` and :attr:`labels`."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32[total], a copy of the rows' tokens end to end."""
        return np.concatenate([np.zeros(0, np.int32), *(tokens for tokens, _ in self)])

    @property
    def labels(self) -> NDArray[np.bool_]:
        """bool[total], likewise of the labels."""
        return np.concatenate([np.zeros(0, np.bool_), *(labels for _, labels in self)])

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        return (self._store.row(place) for place in self._places.tolist())

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens and labels of one row (views)."""
        return self._store.row(self._places[index])

    def take(self, rows: IntArray) -> "EncodedRows":
        """The same store's ``rows`` of these, in that order; tokens are not copied."""
        return EncodedRows.of(self._store, self._places[np.asarray(rows, np.int64)])

    def joined(self, other: "EncodedRows") -> "EncodedRows":
        """These rows, and ``other``'s behind them."""
        if other._store is self._store:
            return EncodedRows.of(self._store, np.concatenate([self._places, other._places]))
        return EncodedRows(
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
        )

    @property
    def largest(self) -> int:
        """The largest token; -1 without rows."""
        return int(self._store.largest[self._places].max(initial=-1))
