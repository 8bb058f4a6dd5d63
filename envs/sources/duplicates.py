"""Rows that stand in two splits, in one source or in two: counted, dropped or refused.

A row of an earlier split (train < reward < select < test) is a duplicate if the same messages or
text stand in a later one, of its own source or of any other; it is counted once per later split.
``drop`` removes it from the earlier split, so that test stays whole and train gives way to all.
Duplicates inside train are counted and kept: a row written twice counts twice. The same row in one
split of two sources leaks nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS
from mixgym.envs.sources.rows.row import Row

Policy = Literal["report", "drop", "error"]
Splits = dict[str, tuple[Row, ...]]
Home = tuple[str, str, Row]  # (source, split, row) where a content stands first


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
    # train rows are looked up and never kept here: it may be most of the memory otherwise
    homes = _held_out_homes(sources)
    found: dict[str, tuple[Splits, dict[str, int]]] = {}
    for source, splits in sources.items():
        counts = Counter({"duplicates: within train": _repeated(splits["train"])})
        kept = {name: _keep(splits[name], source, name, homes, counts, policy) for name in SPLITS}
        if policy == "drop":
            counts["rows dropped: duplicates"] = sum(
                len(splits[name]) - len(kept[name]) for name in SPLITS
            )
        found[source] = kept, {name: n for name, n in counts.items() if n}
    return found


def _repeated(rows: Sequence[Row]) -> int:
    return len(rows) - len({row.content for row in rows})


def _held_out_homes(
    sources: Mapping[str, Mapping[str, Sequence[Row]]],
) -> dict[tuple[object, ...], dict[tuple[str, str], Row]]:
    """By content, a row for each (source, split) that holds it out."""
    homes: dict[tuple[object, ...], dict[tuple[str, str], Row]] = {}
    for source, splits in sources.items():
        for name in SPLITS[1:]:
            for row in splits[name]:
                homes.setdefault(row.content, {}).setdefault((source, name), row)
    return homes


def _keep(
    rows: Sequence[Row],
    source: str,
    split: str,
    homes: Mapping[tuple[object, ...], Mapping[tuple[str, str], Row]],
    counts: Counter[str],
    policy: Policy,
) -> tuple[Row, ...]:
    kept = []
    for row in rows:
        later = [
            home
            for home in homes.get(row.content, ())
            if SPLITS.index(home[1]) > SPLITS.index(split)
        ]
        for other, name in later:
            counts[f"duplicates: {split} in {name}{'' if other == source else f' of {other}'}"] += 1
        if later and policy == "error":
            _refuse(row, source, split, later[0], homes[row.content][later[0]])
        if not later or policy != "drop":
            kept.append(row)
    return tuple(kept)


def _refuse(row: Row, source: str, split: str, home: tuple[str, str], twin: Row) -> None:
    of = "" if home[0] == source else f" of source {home[0]!r}"
    raise SourceError(
        f"source {source!r}: the {split} row {row.where} stands again in {home[1]}{of}, "
        f"{twin.where}; remove one, or set data.duplicates to drop"
    )
