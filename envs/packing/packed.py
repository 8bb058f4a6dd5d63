"""Which document lies in which pack: flat arrays, linear in the documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mixgym.envs.arrays import IntArray


@dataclass(frozen=True)
class Packing:
    """Packs of documents; a sequence of index arrays.

    Attributes:
        documents: int64[n], indices of the documents, pack by pack.
        offsets: int64[packs + 1]; pack ``i`` is ``documents[offsets[i]:offsets[i + 1]]``.

    Example:
        >>> [pack.tolist() for pack in Packing.of([[2, 0], [1]])]
        [[2, 0], [1]]
    """

    documents: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, packs: list[list[int]]) -> "Packing":
        """From lists of indices."""
        documents = np.array([i for pack in packs for i in pack], np.int64)
        return cls(documents, _offsets(np.array([len(pack) for pack in packs], np.int64)))

    @classmethod
    def grouped(cls, documents: IntArray, pack_of: IntArray, packs: int) -> "Packing":
        """From the pack of each document; documents keep their order inside a pack."""
        order = np.argsort(pack_of, kind="stable")
        return cls(documents[order], _offsets(np.bincount(pack_of, minlength=packs)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> IntArray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        index %= len(self)
        return self.documents[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[i] for i in range(len(self)))

    @property
    def sizes(self) -> IntArray:
        """int64[packs], documents in each pack."""
        return np.diff(self.offsets)

    @property
    def pack_of(self) -> IntArray:
        """int64[n], the pack of each entry of ``documents``."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def sums(self, values: IntArray) -> IntArray:
        """int64[packs], the sum over each pack of ``values``, which are given per document."""
        running = np.concatenate([[0], np.cumsum(values[self.documents])])
        return np.diff(running[self.offsets])

    def take(self, packs: IntArray) -> "Packing":
        """Some of the packs, in the order given."""
        sizes = self.sizes[packs]
        offsets = _offsets(sizes)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        return Packing(self.documents[np.repeat(self.offsets[packs], sizes) + within], offsets)

    def renamed(self, names: IntArray) -> "Packing":
        """The same packs, with document ``i`` called ``names[i]``."""
        return Packing(names[self.documents], self.offsets)

    @classmethod
    def joined(cls, parts: Sequence["Packing"]) -> "Packing":
        """The packs of every part, one part after the other."""
        sizes = np.concatenate([part.sizes for part in parts])
        return cls(np.concatenate([part.documents for part in parts]), _offsets(sizes))


@dataclass
class Placement:
    """Packs in the making, from documents in order of length.

    Documents of one length are alike, so packers place runs of them: ``each`` documents into every
    one of ``many`` packs that follow each other.

    Args:
        documents: int64[n], indices of the documents in the order that places refer to.
    """

    documents: IntArray
    packs: int = 0
    _runs: list[tuple[int, int, int, int]] = field(default_factory=list)

    def place(self, first: int, pack: int, many: int, each: int) -> None:
        """Documents ``first`` ... of the order go into packs ``pack`` ... ``pack + many - 1``."""
        self._runs.append((first, pack, many, each))
        self.packs = max(self.packs, pack + many)

    def finish(self) -> Packing:
        """The packs; documents that were not placed are in none."""
        if not self._runs:
            return Packing(np.zeros(0, np.int64), np.zeros(self.packs + 1, np.int64))
        first, pack, many, each = np.array(self._runs, np.int64).T
        sizes = many * each
        run = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return Packing.grouped(
            self.documents[first[run] + within], pack[run] + within // each[run], self.packs
        )


def _offsets(sizes: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
