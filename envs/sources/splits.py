"""Which rows train, which are held out: four disjoint splits.

*train* is trained on, *reward* feeds rewards and observations, *select* tuning, *test* is
reported once. They come from, in this order:

1. the files that the options name for reward, select and test;
2. of a folder, its files: train; valid (or validation, dev), halved row by row by the seed into
   reward and select, or whole to the one that no file is named for; test;
3. what is still missing is cut by the seed from the train rows (a single file is all train rows):
   ``held_out_fraction`` of them for each missing split, rounded, at least one row and never so
   many that train is left empty, so that a file of four rows has all four splits. A fraction of 0
   cuts nothing. That is the most that is cut: what measuring has no use for is given back, see
   :mod:`mixgym.envs.sources.held_out`.

A source that is a target only (``train: false``) has no train split: the rows of its single or
train file are dealt in equal shares to the splits that no other file fills. Inside a split, rows
keep the order of their file.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.source import EncodedRows, Source
from mixgym.envs.sources.tables.table import Rows

HELD_OUT = SPLITS[1:]
VALIDATION = "validation"
"""The half of the reward split that a bilevel rule learns from, where there is such a rule."""

Splits = dict[str, Rows]


def split_rows(
    rows: Mapping[str, Sequence[Row]],
    rng: np.random.Generator,
    held_out_fraction: float,
    trained: bool = True,
) -> tuple[Splits, int]:
    """Deal the rows of a source's files to the four splits.

    Args:
        rows: by the role of their file, see :func:`mixgym.envs.sources.files.find_files`.
        rng: the stream of the source's splits.
        held_out_fraction: of the train rows, for each split that no file fills.
        trained: false for a target only.

    Returns:
        The splits, disjoint, and the number of rows that no split has a use for.
    """
    splits: Splits = {name: Rows.of(rows.get(name, ())) for name in HELD_OUT}
    missing = [name for name in HELD_OUT if name not in rows]
    if "valid" in rows:
        waiting = [name for name in ("reward", "select") if name in missing]
        splits |= _deal(Rows.of(rows["valid"]), waiting, rng)
        missing = [name for name in missing if name not in waiting]
    pool = Rows.of(rows.get("train", ()))
    if not trained:
        splits |= _deal(pool, missing, rng)
        return {"train": Rows.of(()), **splits}, 0 if missing else len(pool)
    cut = _cut_size(len(pool), len(missing), held_out_fraction)
    return {**splits, **_cut(pool, missing, cut, rng)}, 0


def cut_splits(roles: Collection[str], trained: bool) -> tuple[str, ...]:
    """The held-out splits that :func:`split_rows` cuts from train rows.

    >>> cut_splits(["train", "valid"], trained=True)
    ('test',)
    """
    if not trained or "train" not in roles:
        return ()
    dealt = ("reward", "select") if "valid" in roles else ()
    return tuple(name for name in HELD_OUT if name not in roles and name not in dealt)


def _deal(rows: Rows, names: Sequence[str], rng: np.random.Generator) -> Splits:
    """All rows to ``names``, in shares that differ by one row at most."""
    if not names:
        return {}
    order = rng.permutation(len(rows))
    parts = np.array_split(order, len(names))
    return {n: rows.pick(np.sort(part)) for n, part in zip(names, parts, strict=True)}


def _cut(rows: Rows, names: Sequence[str], size: int, rng: np.random.Generator) -> Splits:
    """``size`` rows to each of ``names`` and the rest to train."""
    order = rng.permutation(len(rows))
    parts = [order[i * size : (i + 1) * size] for i in range(len(names))]
    held = {name: rows.pick(np.sort(part)) for name, part in zip(names, parts, strict=True)}
    return {"train": rows.pick(np.sort(order[len(names) * size :])), **held}


def _cut_size(rows: int, splits: int, fraction: float) -> int:
    if not splits or not fraction or not rows:
        return 0
    return min(max(1, round(fraction * rows)), (rows - 1) // splits)


def halves(strata: IntArray, n_strata: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Places of the rows that stay, and of those that are given away; both rising.

    Every stratum is halved. The odd row of a stratum goes to the half that has fewer so far, the
    first one first: a single row stays.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for stratum in range(n_strata):
        for row in rng.permutation(np.flatnonzero(strata == stratum)).tolist():
            min(parts, key=len).append(row)
    kept, given = (np.sort(np.array(half, np.int64)) for half in parts)
    return kept, given


def halve_reward(source: Source, seed: int) -> Source:
    """The source with its reward rows dealt by the seed to ``reward`` and ``validation``."""
    rows, strata = source.splits["reward"], source.strata["reward"]
    kept, given = halves(strata, source.n_strata, stream(seed, VALIDATION, source.name))
    return replace(
        source,
        splits={**source.splits, "reward": rows.take(kept), VALIDATION: rows.take(given)},
        strata={**source.strata, "reward": strata[kept], VALIDATION: strata[given]},
    )


def check_validation(sources: Sequence[Source]) -> None:
    """Refuse sources of which no target has a row in its validation half.

    Raises:
        SourceError: saying what to do.
    """
    targets = [source for source in sources if source.target > 0]
    if not any(len(source.splits.get(VALIDATION, ())) for source in targets):
        raise SourceError(
            "the validation half of the reward split is empty "
            f"({', '.join(source.name for source in targets) or 'no source is a target'}): give a "
            "target source more rows to hold out (data.held_out_fraction, or a reward file of two "
            "rows or more)"
        )


def training_subset(source: Source, rows: int, seed: int) -> Source:
    """The source with at most ``rows`` training rows, drawn by the seed, in their order."""
    train = source.splits["train"]
    if len(train) <= rows:
        return source
    drawn = stream(seed, "subset", source.name).permutation(len(train))[:rows]
    kept = np.sort(drawn)
    return replace(
        source,
        splits={**source.splits, "train": train.take(kept)},
        strata={**source.strata, "train": source.strata["train"][kept]},
    )


def without_validation(source: Source) -> Source:
    """The source with an empty validation half: it is no target, so nothing is learnt from it."""
    return replace(
        source,
        splits={**source.splits, VALIDATION: EncodedRows.from_lists([])},
        strata={**source.strata, VALIDATION: np.zeros(0, np.int64)},
    )
