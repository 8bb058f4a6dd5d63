"""How hard a row is, and the strata that follow from it.

A :class:`Scorer` gives every row of a source a number, higher for harder. The train rows, sorted by
(score, order), are split in G groups of equal count (the first groups take the remainder, so
sizes differ by at most one); fewer rows than G leave the last strata empty. Held-out rows are
binned by the edges of the train strata: a row is in the first stratum whose hardest train row is
at least as hard, or in the last filled one. Where train rows of one score fill several strata,
held-out rows of that score are spread over them in the same proportions. A source without train
rows takes its edges from its held-out rows. Scorers that need a model stand
with the learners, behind the same protocol.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.options import SPLITS
from mixgym.envs.sources.encoding import Encoding
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.scorers import MODEL_SCORES, SCORERS, ScorerKind, column_of
from mixgym.envs.sources.tables.table import Rows

Scores = NDArray[np.float64]

DROPPED = -1  # the stratum of a train row that is left out


class Scorer(Protocol):
    """Grades the rows of a source."""

    @property
    def name(self) -> str:
        """The word in ``data.strata_by``."""
        ...

    @property
    def cost(self) -> int:
        """Tokens that scoring took so far; 0 without a model."""
        ...

    @property
    def is_stratum(self) -> bool:
        """Whether a score is a stratum's number already (0, 1, ...), to be taken as it is."""
        ...

    def score(self, rows: Encoding) -> Scores:
        """float64[n], finite; higher is harder.

        Args:
            rows: n encoded rows, and the rows they come from for their columns.
        """
        ...


@dataclass(frozen=True)
class LengthScorer:
    """Tokens in the row, before truncation: rows that were cut are not all equally hard."""

    name: str = "length"
    cost: int = 0
    is_stratum: bool = False

    def score(self, rows: Encoding) -> Scores:
        """float64[n], tokens."""
        return rows.lengths.astype(np.float64)


@dataclass(frozen=True)
class ColumnScorer:
    """A numeric column of the rows.

    Texts that read as numbers are numbers. Otherwise, ``labels`` lists the texts that the column
    may hold, sorted, and a row's stratum is the place of its text in the list.
    """

    column: str
    source: str
    labels: tuple[str, ...] = ()
    cost: int = 0

    @property
    def name(self) -> str:
        """The word in ``data.strata_by``."""
        return f"column:{self.column}"

    @property
    def is_stratum(self) -> bool:
        """Whether scores are places in ``labels``."""
        return bool(self.labels)

    def score(self, rows: Encoding) -> Scores:
        """float64[n], the column's numbers or the places of its labels.

        Raises:
            SourceError: naming the place of the first row without a usable value.
        """
        place = {label: float(i) for i, label in enumerate(self.labels)}
        raw = Rows.of(rows.raw)
        cells = raw.cells(self.column)
        values = [self._place(c, place) if self.labels else _as_number(c) for c in cells]
        if None in values:
            labels = f"a label among {', '.join(map(repr, self.labels))}"
            self._refuse(raw[values.index(None)], labels if self.labels else "a finite number")
        return np.array(values, dtype=np.float64)

    def _place(self, cell: object, place: Mapping[str, float]) -> float | None:
        return place.get(cell) if isinstance(cell, str) else None

    def _refuse(self, row: Row, wanted: str) -> None:
        seen = row.columns.get(self.column)
        problem = f"holds {seen!r}" if self.column in row.columns else "is missing or no scalar"
        raise SourceError(
            f"source {self.source!r}: {row.where}: column {self.column!r} {problem}; give every "
            f"row {wanted}, or set data.strata_by to length"
        )


@dataclass
class PluginScorer:
    """A plug-in's grades, looked at before they are used.

    Attributes:
        name: the word in ``data.strata_by``.
        kind: the plug-in.
        source: the source's name, for errors.
        dry: grade by length instead where a model would be read, and count what it would read.
        cost: tokens that grading took so far.
    """

    name: str
    kind: ScorerKind
    source: str
    dry: bool = False
    cost: int = 0

    @property
    def is_stratum(self) -> bool:
        """Whether a score is a stratum's number already."""
        return self.kind.is_stratum

    def score(self, rows: Encoding) -> Scores:
        """float64[n].

        Raises:
            SourceError: if it gives another number of them, or one that is not finite.
        """
        self.cost += self.kind.passes * int(rows.rows.lengths.sum())
        if not len(rows.raw) or (self.dry and self.kind.passes):
            return rows.lengths.astype(np.float64)
        assert self.kind.score is not None
        scores = np.asarray(self.kind.score(rows), np.float64)
        if scores.shape != (len(rows.raw),):
            raise SourceError(
                f"source {self.source!r}: scorer {self.name} gave an array {scores.shape} for "
                f"{len(rows.raw)} rows; it has to give one number for each"
            )
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise SourceError(
                f"source {self.source!r}: {rows.raw[bad[0]].where}: scorer {self.name} gave "
                f"{scores[bad[0]]}; it has to give a finite number"
            )
        return scores


def plugin_scorers(
    word: str, sources: Sequence[str], *, dry: bool = False
) -> dict[str, PluginScorer]:
    """By source the plug-in that ``data.strata_by`` asks for; none if that is no plug-in."""
    kind = None if column_of(word) is not None else SCORERS[word]
    if kind is None or kind.score is None:
        return {}
    return {name: PluginScorer(word, kind, name, dry) for name in sources}


def scorer_for(strata_by: str, raw: Sequence[Sequence[Row]], strata: int, source: str) -> Scorer:
    """The scorer that ``data.strata_by`` asks for.

    A column whose first value is a text that is no number is read as labels; at most ``strata``
    distinct ones can be, each a stratum of its own, in sorted order.

    Args:
        strata_by: ``length``, ``column:NAME`` or a plug-in.
        raw: all rows of the source, by split.
        strata: G.
        source: the source's name, for errors.

    Raises:
        ConfigError: another word.
        SourceError: too many labels.
    """
    if strata_by == "length":
        return LengthScorer()
    column = column_of(strata_by)
    if column is None:
        found = plugin_scorers(strata_by, [source])
        if not found:
            raise ConfigError(
                f"data.strata_by={strata_by}: a model grades, not the rows alone; take length, "
                f"column:NAME or a plug-in here, not one of {', '.join(MODEL_SCORES)}"
            )
        return found[source]
    cells = [cell for part in raw for cell in Rows.of(part).cells(column)]
    if not cells or not isinstance(cells[0], str) or _as_number(cells[0]) is not None:
        return ColumnScorer(column, source)
    labels = sorted({cell for cell in cells if isinstance(cell, str)})
    if len(labels) > strata:
        first = next(part[0] for part in raw if len(part))
        raise SourceError(
            f"source {source!r}: {first.file}: column {column!r} holds {len(labels)} labels "
            f"(first: {first.where}, {cells[0]!r}) for {strata} strata; raise data.strata or "
            "give a numeric column"
        )
    return ColumnScorer(column, source, tuple(labels))


def _as_number(cell: object) -> float | None:
    if not isinstance(cell, str | int | float):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def equal_groups(scores: Scores, strata: int, *, drop: bool = False) -> IntArray:
    """The stratum of each train row: G groups of equal count by (score, order).

    Args:
        scores: float64[n].
        strata: G.
        drop: give the hardest n mod G rows no stratum, if there are at least G.

    Returns:
        int64[n], 0 the easiest; -1 for what is dropped.

    Example:
        >>> equal_groups(np.array([5.0, 1.0, 3.0, 3.0, 2.0]), 2)
        array([1, 0, 0, 1, 0])
        >>> equal_groups(np.array([5.0, 1.0, 3.0, 3.0, 2.0]), 2, drop=True)
        array([-1,  0,  1,  1,  0])
    """
    order = np.argsort(scores, kind="stable")
    if drop and len(order) >= strata:
        order = order[: len(order) - len(order) % strata]
    groups = np.full(len(scores), DROPPED, dtype=np.int64)
    for stratum, part in enumerate(np.array_split(order, strata)):
        groups[part] = stratum
    return groups


def bin_rows(scores: Scores, train: Scores, groups: IntArray) -> IntArray:
    """The stratum of each held-out row, by the edges of the train strata.

    Args:
        scores: float64[n] of the held-out rows.
        train: float64[m] of the train rows, m > 0.
        groups: int64[m], strata of the train rows, see :func:`equal_groups`.

    Returns:
        int64[n].

    Example:
        >>> train = np.array([1.0, 2.0, 2.0, 2.0, 2.0, 9.0])
        >>> bin_rows(np.array([0.0, 2.0, 2.0, 5.0, 99.0]), train, np.array([0, 0, 0, 1, 1, 1]))
        array([0, 0, 1, 1, 1])
    """
    order = np.argsort(train, kind="stable")
    first = np.searchsorted(train[order], scores, side="left")
    ties = np.searchsorted(train[order], scores, side="right") - first
    rank, equals = _ranks_among_equals(scores)
    place = first + (2 * rank + 1) * ties // (2 * equals)
    return groups[order][np.minimum(place, len(train) - 1)]


def _ranks_among_equals(scores: Scores) -> tuple[IntArray, IntArray]:
    """For each score, how many equal ones stand before it, and how many there are in all."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(len(scores)) - np.repeat(starts[: len(counts)], counts)
    return rank, counts[inverse]


def stratify(
    parts: Mapping[str, Encoding], scorer: Scorer, strata: int, *, drop: bool = False
) -> dict[str, IntArray]:
    """The strata of all splits of a source.

    Args:
        parts: by split, the encoded rows.
        scorer: see :class:`Scorer`.
        strata: G.
        drop: see :func:`equal_groups`.

    Returns:
        By split int64[n], each in 0 .. G - 1; -1 for train rows that are dropped.
    """
    scores = {name: scorer.score(parts[name]) for name in SPLITS}
    return strata_of(scores, scorer.is_stratum, strata, drop=drop)


def strata_of(
    scores: Mapping[str, Scores], is_stratum: bool, strata: int, *, drop: bool = False
) -> dict[str, IntArray]:
    """The strata of all splits of a source, from their scores.

    Args:
        scores: by split float64[n].
        is_stratum: whether a score is a stratum already.
        strata: G.
        drop: see :func:`equal_groups`.

    Returns:
        As :func:`stratify` does.
    """
    if is_stratum:
        return {name: part.astype(np.int64) for name, part in scores.items()}
    train = scores["train"]
    held_out = np.concatenate([scores[name] for name in SPLITS[1:]])
    basis = train if len(train) else held_out
    groups = equal_groups(basis, strata, drop=drop and len(train) > 0)
    kept = groups != DROPPED
    binned = {name: bin_rows(scores[name], basis[kept], groups[kept]) for name in SPLITS[1:]}
    return {"train": groups[: len(train)], **binned}


def cap_rows(
    supervised: IntArray, strata: IntArray, cap: int, rng: np.random.Generator, least: int = 1
) -> IntArray:
    """The rows of a held-out split that are kept so that measuring stays cheap.

    Rows are taken in an order drawn by ``rng``: first one of each stratum that has any (even over
    the cap, so that no stratum goes unmeasured), then all until the first that does not fit;
    skipping that one for a shorter one would measure short rows only.

    Args:
        supervised: int64[n], supervised tokens of each row.
        strata: int64[n], the stratum of each row.
        cap: supervised tokens that the split should not exceed.
        rng: the stream of this split's cap.
        least: rows that are kept even over the cap, as far as there are so many.

    Returns:
        int64[m], the kept rows, rising.
    """
    if int(supervised.sum()) <= cap:
        return np.arange(len(supervised), dtype=np.int64)
    order = rng.permutation(len(supervised))
    _, firsts = np.unique(strata[order], return_index=True)
    firsts.sort()
    order = np.concatenate([order[firsts], np.delete(order, firsts)])
    within = int(np.searchsorted(np.cumsum(supervised[order]), cap, side="right"))
    return np.sort(order[: max(within, len(firsts), least)]).astype(np.int64)
