"""Rows of text from files, in whichever of the known formats they are written.

A source has one format, the one that it names, or that most of its rows are in (ties: the earlier
in the table of :mod:`mixgym.envs.sources.rows.formats`). A role may be played by several files,
shards that are read in order. Types of files: see :mod:`mixgym.envs.sources.tables.opening`.

A row is malformed if it is not a JSON object in UTF-8, is in another format than its source, has
an empty or wrongly typed field, an unknown role, or no assistant turn. Blank lines are not rows.
Whether a malformed row stops the reading or is skipped with a count is ``data.malformed``. Nothing
here splits, tokenises or grades.

Every row is looked at once, and then left where it is: it is made anew when it is asked for. What
was seen of the rows of large files is kept in the cache.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixgym.envs.sources.cached.keys import file_digest, key_of, shelf_for
from mixgym.envs.sources.cached.shelf import Entry, Shelf
from mixgym.envs.sources.rows.formats import AUTO, BUILT_IN
from mixgym.envs.sources.rows.row import Messages as Messages  # where it was before
from mixgym.envs.sources.rows.row import Row as Row
from mixgym.envs.sources.tables.opening import SUFFIXES as SUFFIXES
from mixgym.envs.sources.tables.opening import Opening, suffix_of
from mixgym.envs.sources.tables.opening import data_file as data_file
from mixgym.envs.sources.tables.parsing import Columns, Policy, detect
from mixgym.envs.sources.tables.records import Records, fail
from mixgym.envs.sources.tables.table import FileTable, RowIndex, Rows, index_rows


@dataclass(frozen=True)
class ReadRows:
    """All rows of a source, by the role of the file they stand in.

    Attributes:
        rows: by role.
        row_format: a name in :data:`mixgym.envs.sources.rows.formats.FORMATS`.
        skipped: malformed rows.
        left_out: rows that say themselves that they are not to be learnt.
        unused: columns and keys that have no use -> rows that fill them.
    """

    rows: Mapping[str, Sequence[Row]]
    row_format: str
    skipped: int = 0
    left_out: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How the files of a source are read.

    Attributes:
        malformed: what to do with a row that cannot be used.
        row_format: that the rows are in; ``auto``: the one that most fit.
        columns: the source's own names of columns -> those that formats know.
        cells: columns whose values are needed for every row.
        cache: folder of what is kept between starts; None: nothing is.
        names: files that errors call by another name than their path.
    """

    malformed: Policy = "error"
    row_format: str = AUTO
    columns: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[str, ...] = ()
    cache: Path | None = None
    names: Mapping[Path, str] = field(default_factory=dict)


def read_rows(
    files: Mapping[str, Path | Sequence[Path]],
    source: str,
    malformed: Policy = "error",
    how: Reading | None = None,
) -> ReadRows:
    """Read the files of a source.

    Args:
        files: for each role (``train``, ``valid``, ...) the file that plays it, or its shards.
        source: the source's name, for errors.
        malformed: what to do with a row that cannot be used.
        how: more on how to read, ``malformed`` included.

    Raises:
        SourceError: a file is missing or empty, no row is in a known format, a row is malformed
            (under the policy ``error``), or nothing is left after skipping.
    """
    how = how or Reading(malformed)
    shards = {role: [p] if isinstance(p, Path) else list(p) for role, p in files.items()}
    opening = Opening(source, how.cache, dict(how.names))
    parts = {role: [opening.records(path) for path in paths] for role, paths in shards.items()}
    every = [path for paths in shards.values() for path in paths]
    shelf = shelf_for(how.cache, every)
    key = None if shelf is None else _key(shards, how)
    found = None if shelf is None or key is None else shelf.find(key)
    indices = _look(parts, source, how) if found is None else _kept(found)
    if next(iter(indices.values())).row_format not in BUILT_IN:
        key = None  # what a plug-in makes of rows may change while the files do not
    if shelf is not None and key is not None and found is None:
        _keep(shelf, key, indices)
    counts: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    rows: dict[str, Rows] = {}
    for role, index in indices.items():
        counts.update(index.counts)
        unused.update(index.unused)
        if not len(index.records):
            fate = "left out by its weight" if counts["left out"] else "malformed"
            names = ", ".join(map(str, shards[role]))
            fail(source, f"every row of {names} is {fate}; correct the file")
        rows[role] = FileTable(parts[role], Columns(how.columns), index, _of_role(key, role)).all()
    row_format = next(iter(indices.values())).row_format
    return ReadRows(rows, row_format, counts["skipped"], counts["left out"], unused)


def _of_role(key: str | None, role: str) -> str | None:
    return None if key is None else f"{key} {role}"


def _look(parts: Mapping[str, list[Records]], source: str, how: Reading) -> dict[str, RowIndex]:
    """Read every row."""
    columns = Columns(how.columns)
    every = [part for role in parts.values() for part in role]
    row_format = detect(every, columns, source, how.row_format)
    return {
        role: index_rows(mine, row_format, columns, source, how.malformed, how.cells)
        for role, mine in parts.items()
    }


def _key(files: Mapping[str, list[Path]], how: Reading) -> str:
    contents = {
        role: [(suffix_of(path), file_digest(path)) for path in paths]
        for role, paths in files.items()
    }
    order = list(files)
    about = [how.malformed, how.row_format, dict(how.columns), how.cells]
    return key_of("read", [contents, order, *about])


def _keep(shelf: Shelf, key: str, indices: Mapping[str, RowIndex]) -> None:
    arrays: dict[str, Any] = {}
    note: dict[str, Any] = {}
    for role, index in indices.items():
        arrays[f"{role}-records"], arrays[f"{role}-digests"] = index.records, index.digests
        note[role] = {
            "sizes": index.sizes,
            "row_format": index.row_format,
            "counts": dict(index.counts),
            "unused": dict(index.unused),
            "cells": {column: list(values) for column, values in index.cells.items()},
        }
    shelf.keep(key, arrays, note)


def _kept(entry: Entry) -> dict[str, RowIndex]:
    found = {}
    for role, note in entry.note.items():
        records, digests = (entry.arrays[f"{role}-{name}"] for name in ("records", "digests"))
        about = {name: note[name] for name in ("row_format", "counts", "unused", "cells")}
        found[role] = RowIndex(records, tuple(note["sizes"]), digests, **about)
    return found
