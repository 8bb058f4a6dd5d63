"""Which rows train, which are held out: four disjoint splits, and duplicates across them.

*train* is trained on, *reward* feeds rewards and observations, *select* tuning, *test* is
reported once. They come from, in this order:

1. the files that the options name for reward, select and test;
2. of a folder, its files: train; valid (or validation, dev), halved row by row by the seed into
   reward and select, or whole to the one that no file is named for; test;
3. what is still missing is cut by the seed from the train rows (a single file is all train rows):
   ``held_out_fraction`` of them for each missing split, rounded, at least one row and never so
   many that train is left empty, so that a file of four rows has all four splits. A fraction of 0
   cuts nothing.

A source that is a target only (``train: false``) has no train split: the rows of its single or
train file are dealt in equal shares to the splits that no other file fills. Inside a split, rows
keep the order of their file.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, SourceOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.reading import SUFFIXES, Row, data_file
from mixgym.envs.sources.source import EncodedRows, Source

HELD_OUT = SPLITS[1:]
VALIDATION = "validation"
"""The half of the reward split that a bilevel rule learns from, where there is such a rule."""
STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}

Splits = dict[str, tuple[Row, ...]]


def find_files(options: SourceOptions, source: str) -> dict[str, Path]:
    """The files of a source by role: train, valid, reward, select, test.

    Only files that are used are listed. A single file is ``train``, even of a target only.

    Raises:
        SourceError: a file is missing, stands there twice, or would play two roles.
    """
    files: dict[str, Path] = {}
    if options.path is not None:
        path = Path(options.path)
        if path.is_dir():
            files = _folder(path, source, options.train)
        elif path.exists():
            files = {"train": data_file(path, source)}
        else:
            raise SourceError(
                f"source {source!r}: no file or folder at {options.path!r} (looked in "
                f"{Path.cwd()}); correct the path: relative paths start at the current directory"
            )
    for role in HELD_OUT:
        named = getattr(options, role)
        if named is not None:
            files[role] = data_file(Path(named), source)
    if "reward" in files and "select" in files:
        files.pop("valid", None)
    _check_one_role(files, source)
    return files


def _folder(folder: Path, source: str, trained: bool) -> dict[str, Path]:
    files = {}
    for role, stems in STEMS.items():
        names = [stem + suffix for stem in stems for suffix in SUFFIXES]
        found = [folder / name for name in names if (folder / name).is_file()]
        if len(found) > 1:
            raise SourceError(
                f"source {source!r}: {folder} has {found[0].name} and {found[1].name}, "
                f"both its {role} file; keep one"
            )
        if found:
            files[role] = found[0]
    if not files or (trained and "train" not in files):
        raise SourceError(
            f"source {source!r}: {folder} has no train.jsonl or train.json (found: "
            f"{', '.join(p.name for p in files.values()) or 'no train, valid or test file'}); "
            "add it, or set train: false if the source is a target only"
        )
    return files


def _check_one_role(files: Mapping[str, Path], source: str) -> None:
    roles: dict[Path, str] = {}
    for role, path in files.items():
        other = roles.setdefault(path.resolve(), role)
        if other != role:
            raise SourceError(
                f"source {source!r}: {path} is both its {other} and its {role} file, and splits "
                f"are disjoint; name another file for {role}, or leave it out to have it cut"
            )


def split_rows(
    rows: Mapping[str, Sequence[Row]],
    rng: np.random.Generator,
    held_out_fraction: float,
    trained: bool = True,
) -> tuple[Splits, int]:
    """Deal the rows of a source's files to the four splits.

    Args:
        rows: by the role of their file, see :func:`find_files`.
        rng: the stream of the source's splits.
        held_out_fraction: of the train rows, for each split that no file fills.
        trained: false for a target only.

    Returns:
        The splits, disjoint, and the number of rows that no split has a use for.
    """
    splits: Splits = {name: tuple(rows.get(name, ())) for name in HELD_OUT}
    missing = [name for name in HELD_OUT if name not in rows]
    if "valid" in rows:
        waiting = [name for name in ("reward", "select") if name in missing]
        splits |= _deal(rows["valid"], waiting, rng)
        missing = [name for name in missing if name not in waiting]
    pool = rows.get("train", ())
    if not trained:
        splits |= _deal(pool, missing, rng)
        return {"train": (), **splits}, 0 if missing else len(pool)
    cut = _cut_size(len(pool), len(missing), held_out_fraction)
    return {**splits, **_cut(pool, missing, cut, rng)}, 0


def _deal(rows: Sequence[Row], names: Sequence[str], rng: np.random.Generator) -> Splits:
    """All rows to ``names``, in shares that differ by one row at most."""
    if not names:
        return {}
    order = rng.permutation(len(rows))
    parts = np.array_split(order, len(names))
    return {n: _pick(rows, part) for n, part in zip(names, parts, strict=True)}


def _cut(rows: Sequence[Row], names: Sequence[str], size: int, rng: np.random.Generator) -> Splits:
    """``size`` rows to each of ``names`` and the rest to train."""
    order = rng.permutation(len(rows))
    parts = [order[i * size : (i + 1) * size] for i in range(len(names))]
    held = {name: _pick(rows, part) for name, part in zip(names, parts, strict=True)}
    return {"train": _pick(rows, order[len(names) * size :]), **held}


def _cut_size(rows: int, splits: int, fraction: float) -> int:
    if not splits or not fraction or not rows:
        return 0
    return min(max(1, round(fraction * rows)), (rows - 1) // splits)


def _pick(rows: Sequence[Row], indices: np.ndarray) -> tuple[Row, ...]:
    return tuple(rows[int(i)] for i in np.sort(indices))


def handle_duplicates(
    splits: Mapping[str, Sequence[Row]],
    source: str,
    policy: Literal["report", "drop", "error"] = "report",
) -> tuple[Splits, dict[str, int]]:
    """Count rows that stand, word for word, in a later split too, and act on them by policy.

    A row of an earlier split (train < reward < select < test) is a duplicate if the same messages
    or text stand in a later one; it is counted once per later split. ``drop`` removes it from the
    earlier split, so that test stays whole and train gives way to all. Duplicates inside train
    are counted and kept: a row written twice counts twice.

    Returns:
        The splits and the counts, such as ``duplicates: train in test``.

    Raises:
        SourceError: under ``error``, naming both places of the first duplicate.
    """
    counts: Counter[str] = Counter()
    train = splits["train"]
    counts["duplicates: within train"] = len(train) - len({row.content for row in train})
    kept: Splits = {}
    seen: dict[str, dict[object, Row]] = {}
    for name in reversed(SPLITS):
        kept[name] = tuple(r for r in splits[name] if _is_kept(r, name, seen, counts, policy))
        if policy == "error":
            _refuse(splits[name], name, seen, source)
        seen[name] = {row.content: row for row in splits[name]}
    if policy == "drop":
        dropped = sum(len(splits[name]) - len(kept[name]) for name in SPLITS)
        counts["rows dropped: duplicates"] = dropped
    return {name: kept[name] for name in SPLITS}, {k: n for k, n in counts.items() if n}


def _is_kept(
    row: Row,
    name: str,
    seen: Mapping[str, Mapping[object, Row]],
    counts: Counter[str],
    policy: str,
) -> bool:
    homes = [other for other, rows in seen.items() if row.content in rows]
    for other in homes:
        counts[f"duplicates: {name} in {other}"] += 1
    return not homes or policy != "drop"


def _refuse(
    rows: Sequence[Row], name: str, seen: Mapping[str, Mapping[object, Row]], source: str
) -> None:
    for row in rows:
        for other, held in seen.items():
            if row.content in held:
                raise SourceError(
                    f"source {source!r}: the {name} row {row.where} stands again in {other}, "
                    f"{held[row.content].where}; remove one, or set data.duplicates to drop"
                )


def halve_reward(source: Source, seed: int) -> Source:
    """The source with its reward rows dealt by the seed to ``reward`` and ``validation``.

    Every stratum is halved. The odd row of a stratum goes to the half that has fewer so far, the
    reward split first: a single row stays there.
    """
    random = stream(seed, VALIDATION, source.name)
    rows, strata = source.splits["reward"], source.strata["reward"]
    halves: tuple[list[int], list[int]] = ([], [])
    for stratum in range(source.n_strata):
        for row in random.permutation(np.flatnonzero(strata == stratum)).tolist():
            min(halves, key=len).append(row)
    kept, given = (np.sort(np.array(half, np.int64)) for half in halves)
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
