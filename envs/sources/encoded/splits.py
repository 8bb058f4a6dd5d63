"""The encoding of a source's splits: every row once, from the cache where it was encoded before."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.options import DataOptions
from mixgym.envs.sources.cached.keys import key_of, own_folder, tokenizer_digest, versions
from mixgym.envs.sources.cached.shelf import Entry, Shelf
from mixgym.envs.sources.encoded.outcome import ARRAYS, Encoded, Encoding, join_encoded
from mixgym.envs.sources.encoded.workers import LEAST_ROWS, Job, encode_shares, processes_for
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.tables.table import FileTable, Rows, Table

_OPTIONS = ("template", "labels", "max_length", "over_long", "malformed")
"""Options of the data that the encoding of a row depends on."""
_MAPPED = ("tokens", "labels")


def encode_splits(
    splits: Mapping[str, Sequence[Row]],
    tokenizer: Any,
    data: DataOptions,
    source: str,
    cache_folder: Path | None = None,
) -> dict[str, Encoding]:
    """Tokenise, label and truncate the rows of all splits.

    Args:
        splits: by name.
        tokenizer: a fast tokenizer with an eos token.
        data: the options of the encoding.
        source: name of the source, for errors.
        cache_folder: where encoded rows are kept; None: nowhere.

    Raises:
        SourceError: see :func:`mixgym.envs.sources.encoding.encode_rows`.
    """
    rows = {name: Rows.of(part) for name, part in splits.items()}
    tables = {id(part.table): part.table for part in rows.values()}
    encoded = {}
    for number, table in tables.items():
        used = [part.places for part in rows.values() if part.table is table]
        encoded[number] = _encode(
            table, np.concatenate(used), tokenizer, data, source, cache_folder
        )
    return {
        name: whole.select(part, np.searchsorted(places, part.places))
        for name, part in rows.items()
        for whole, places in [encoded[id(part.table)]]
    }


def _encode(
    table: Table, used: Any, tokenizer: Any, data: DataOptions, source: str, folder: Path | None
) -> tuple[Encoded, Any]:
    """Encoded rows, and the places in the table that they stand at, rising."""
    key = table.key if isinstance(table, FileTable) else None
    if key is None or folder is None:
        places = np.unique(used)
        job = Job(Rows(table, places), tokenizer, data, source)
        if len(places) >= 2 * LEAST_ROWS:
            return _kept(Shelf(own_folder()), f"encoded-{secrets.token_hex(8)}", job), places
        return join_encoded(list(job.parts())), places
    # all rows of the table, whatever is used now: the next run may draw other splits
    job = Job(Rows(table, np.arange(len(table))), tokenizer, data, source)
    options = data.model_dump(include=set(_OPTIONS))
    made_of = [key, tokenizer_digest(tokenizer), options, versions()]
    return _kept(Shelf(folder / "rows"), key_of("encoded", made_of), job), job.rows.places


def _kept(shelf: Shelf, key: str, job: Job) -> Encoded:
    found = shelf.find(key, _MAPPED)
    if found is None:
        with shelf.making(key):
            found = shelf.find(key, _MAPPED)  # by another process, meanwhile
            if found is None:
                with shelf.filling(key) as writer:
                    encode_shares(job, processes_for(len(job.rows), job.data.processes), writer)
                found = shelf.find(key, _MAPPED)
    assert found is not None  # it was written a moment ago
    return _as_encoded(found)


def _as_encoded(entry: Entry) -> Encoded:
    left_out = tuple((row, name, times) for row, name, times in entry.note["left_out"])
    return Encoded(**{name: entry.arrays[name] for name in ARRAYS}, left_out=left_out)
