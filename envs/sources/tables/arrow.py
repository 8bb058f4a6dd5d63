"""Tables of columns: Arrow files, mapped into memory, and what ``datasets`` turns into such files.

Parquet, CSV and TSV files are converted once by :mod:`datasets`, into Arrow files in the folder of
the cache, and mapped from there: rows are never in memory all together. Texts of CSV files stay
texts, whatever they look like. A record is named by the number of its row, from 1.
"""

import contextlib
import csv
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.cached.keys import file_digest, own_folder
from mixgym.envs.sources.tables.records import Record, fail

CONVERTED = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
"""Endings of files that :mod:`datasets` converts -> its word for them."""


class ArrowRecords:
    """The rows of a table.

    Args:
        path: an Arrow file, of a stream or with a footer, or a file that is converted to one.
        source: name of the source, for errors.
        folder: where converted files are kept; None: for this process only.
        name: how errors call the file; None: by its path.
    """

    def __init__(
        self, path: Path, source: str, folder: Path | None = None, name: str | None = None
    ) -> None:
        self._path = path
        self._source = source
        self._folder = folder
        self._name = str(path) if name is None else name

    def __getstate__(self) -> dict[str, Any]:
        """What a process needs to open the file itself."""
        return {k: v for k, v in vars(self).items() if k != "_batches"}

    @cached_property
    def _batches(self) -> tuple[list[Any], "np.ndarray[Any, np.dtype[np.int64]]"]:
        """Record batches, and the first row of each, the number of all rows behind."""
        found = self._converted() if self._path.suffix in CONVERTED else self._opened([self._path])
        starts = np.cumsum([0, *(batch.num_rows for batch in found)])
        if not starts[-1]:
            fail(self._source, f"{self._name} holds no rows; give it rows or leave it out")
        return found, starts.astype(np.int64)

    def _opened(self, paths: Sequence[Path]) -> list[Any]:
        return [b for path in paths for b in open_arrow(path, self._name, self._source)]

    def _converted(self) -> list[Any]:
        """The batches of what the file was converted to, now or before."""
        content = file_digest(self._path)[:32]
        kept = (self._folder or own_folder()) / "datasets" / content
        try:
            return self._opened(converted(self._path, self._source, kept))
        except SourceError:
            if not kept.is_dir():
                raise
            shutil.rmtree(kept, ignore_errors=True)  # it may be damaged: convert it anew
        return self._opened(converted(self._path, self._source, kept))

    def __len__(self) -> int:
        return int(self._batches[1][-1])

    def pick(self, places: Sequence[int]) -> list[Record]:
        """The records at some places, in that order."""
        batches, starts = self._batches
        wanted = np.asarray(places, np.int64)
        home = np.searchsorted(starts, wanted, side="right") - 1
        values: dict[int, Any] = {}
        for index in np.unique(home).tolist():
            mine = wanted[home == index]
            rows = batches[index].take(mine - starts[index]).to_pylist()
            values.update(zip(mine.tolist(), rows, strict=True))
        return [Record(self._name, i + 1, "row", values[i]) for i in wanted.tolist()]


def open_arrow(path: Path, name: str, source: str) -> list[Any]:
    """The record batches of an Arrow file, mapped into memory."""
    import pyarrow as pa

    try:
        mapped = pa.memory_map(str(path))
        with path.open("rb") as file:
            has_footer = file.read(6) == b"ARROW1"
        reader = pa.ipc.open_file(mapped) if has_footer else pa.ipc.open_stream(mapped)
        return [batch for batch in reader.read_all().to_batches() if batch.num_rows]
    except (OSError, pa.ArrowException) as error:
        fail(source, f"{name} is no Arrow file that can be read ({_line(error)}); write it anew")


def converted(path: Path, source: str, folder: Path) -> list[Path]:
    """The Arrow files that a table was converted to.

    Args:
        path: a file whose ending is in :data:`CONVERTED`.
        source: name of the source, for errors.
        folder: where they are kept.
    """
    import datasets
    import pyarrow as pa

    options = _csv_options(path, source) if CONVERTED[path.suffix] == "csv" else {}
    try:
        with quiet_datasets():
            table = datasets.load_dataset(
                CONVERTED[path.suffix],
                data_files={"train": [str(path.resolve())]},
                split="train",
                cache_dir=str(folder),
                **options,
            )
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        if "corresponds to no data" in str(error):
            fail(source, f"{path} holds no rows; give it rows or leave it out")
        reason = _line(error.__cause__ or error)
        kind = path.suffix.removeprefix(".")
        fail(source, f"{path} cannot be read as {kind} ({reason}); correct the file")
    return [Path(file["filename"]) for file in table.cache_files]


def _csv_options(path: Path, source: str) -> dict[str, Any]:
    """All columns as texts: a column of numbers may be answers."""
    from datasets import Features, Value

    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=separator), [])
    except UnicodeDecodeError as error:
        fail(source, f"{path} is not UTF-8 ({error}); convert the file (iconv -f OLD -t UTF-8)")
    if not names:
        fail(source, f"{path} is empty; give it rows or leave it out")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        fail(source, f"{path} line 1: two columns are called {twice!r}; rename one")
    return {
        "features": Features({name: Value("string") for name in names}),
        "sep": separator,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
    }


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no log of :mod:`datasets` meanwhile; errors are worded by us."""
    import logging

    import datasets

    had_bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not had_bars:
            datasets.enable_progress_bars()


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
