"""A source as the rest of the world sees it: encoded rows, their splits and their strata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import IntArray


@dataclass(frozen=True)
class EncodedRows:
    """Token sequences of different lengths, end to end.

    Attributes:
        tokens: int32[total].
        labels: bool[total], true where the token is supervised. The first token of a row never is:
            nothing predicts it.
        offsets: int64[rows + 1]; row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.bool_]
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """int64[rows], tokens of each row."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> IntArray:
        """int64[rows], supervised tokens of each row."""
        running = np.concatenate([[0], np.cumsum(self.labels, dtype=np.int64)])
        return np.diff(running[self.offsets])

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens and labels of one row (views)."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[part], self.labels[part]

    def take(self, rows: IntArray) -> "EncodedRows":
        """A copy that holds ``rows``, in that order."""
        return EncodedRows.from_lists([self.row(int(i)) for i in rows])

    def joined(self, other: "EncodedRows") -> "EncodedRows":
        """These rows, and ``other``'s behind them."""
        return EncodedRows(
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
        )

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


@dataclass(frozen=True)
class SourceReport:
    """What was read and what was done to it; every policy that acted has a count here.

    ``counts`` maps a plain name (``rows read``, ``rows truncated``, ``rows skipped: over-long``,
    ``rows skipped: no supervised token``, ``lines skipped: malformed``,
    ``duplicates: train in test`` ...) to a number; zero counts are left out. ``warnings`` are
    sentences on what stands in the rows and does not reach the model.
    """

    origin: str
    row_format: str
    counts: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One source, ready to be sampled and evaluated.

    Attributes:
        name: its name in the configuration.
        target: weight in rewards and evaluation.
        splits: ``train``, ``reward``, ``select``, ``test``; any may be empty.
        strata: for each split int64[rows], the stratum of each row, 0 the easiest.
        n_strata: G, the same for every source of a mixture.
        max_epochs: cap on passes over a stratum's rows, or None.
        report: what reading it did.
    """

    name: str
    target: float
    splits: Mapping[str, EncodedRows]
    strata: Mapping[str, IntArray]
    n_strata: int
    max_epochs: float | None
    report: SourceReport


def warnings_of(sources: Sequence[Source], least_rows: int) -> list[str]:
    """What a user should know of the sources before anything is trained on them.

    Args:
        sources: of a mixture.
        least_rows: ``data.held_out_rows``; targets with fewer are named.
    """
    found = [f"{source.name}: {line}" for source in sources for line in source.report.warnings]
    few = [
        f"{source.name} ({', '.join(parts)})"
        for source in sources
        if source.target > 0
        and (
            parts := [
                f"{split} {len(source.splits[split])}"
                for split in ("reward", "select", "test")
                if len(source.splits[split]) < least_rows
            ]
        )
    ]
    if few:
        found.append(
            f"fewer held-out rows than data.held_out_rows = {least_rows}, so that losses on them "
            f"are noisy: {', '.join(few)}; give the sources more rows, held-out files, or a "
            "larger data.held_out_fraction"
        )
    return found
