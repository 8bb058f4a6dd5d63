"""Encoding in several processes: each encodes a share of the rows of a table into files.

Processes are started as programs of their own and not forked: this one may have threads of the
tokenizer's or torch's running, and a script that calls us may have no guard around its main part.
A process that dies without a word leaves its share to this one.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.errors import MixgymError
from mixgym.envs.options import DataOptions
from mixgym.envs.plugins.registry import import_plugins, modules_behind
from mixgym.envs.sources.cached.shelf import Shelf, Writer
from mixgym.envs.sources.encoded.outcome import ARRAYS, Encoded, join_encoded
from mixgym.envs.sources.encoding import BATCH_ROWS, Encoder
from mixgym.envs.sources.tables.table import FileTable, Rows

LEAST_ROWS = 10_000
"""Rows that are worth a process: it takes seconds to start."""
_PART = 16  # batches that are joined before they are written
_LEFT_OUT = "left_out"
_RESULT = "share"


@dataclass(frozen=True)
class Job:
    """What is to be encoded.

    Attributes:
        rows: of one table.
        tokenizer: a fast tokenizer.
        data: the options of the encoding.
        source: name of the source, for errors.
    """

    rows: Rows
    tokenizer: Any
    data: DataOptions
    source: str

    def parts(self) -> Iterator[Encoded]:
        """The rows, some thousand at a time."""
        encoder = Encoder(self.tokenizer, self.data, self.source)
        size = BATCH_ROWS * _PART
        for start in range(0, max(len(self.rows), 1), size):
            rows = self.rows[start : start + size]
            batches = [rows[i : i + BATCH_ROWS] for i in range(0, max(len(rows), 1), BATCH_ROWS)]
            yield join_encoded([encoder.encode(list(batch)) for batch in batches])

    def write(self, writer: Writer) -> None:
        """Encode into the files of an entry."""
        place, left_out = 0, []
        for part in self.parts():
            for name in ARRAYS:
                writer.append(name, getattr(part, name))
            left_out += [[place + row, name, times] for row, name, times in part.left_out]
            place += len(part.sizes)
        writer.note = {_LEFT_OUT: left_out}


def processes_for(rows: int, wanted: int | None) -> int:
    """How many processes encode some rows.

    Args:
        rows: to encode.
        wanted: ``data.processes``; None: one per core, shared with the ranks on this machine.
    """
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        wanted = (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(wanted, rows // LEAST_ROWS))


def encode_shares(job: Job, processes: int, writer: Writer) -> None:
    """Encode into the files of an entry, in several processes.

    Args:
        job: what to encode.
        processes: how many, this one included.
        writer: of the entry.

    Raises:
        SourceError: for whatever encoding in one process would refuse.
    """
    bounds = np.linspace(0, len(job.rows), processes + 1).astype(int).tolist()
    shares = [Job(job.rows[a:b], job.tokenizer, job.data, job.source) for a, b in pairwise(bounds)]
    with tempfile.TemporaryDirectory(prefix="mixgym-") as name, contextlib.ExitStack() as stack:
        helpers = [_Helper(Path(name) / str(i), share) for i, share in enumerate(shares[1:])]
        for helper in helpers:
            stack.callback(helper.stop)
        shares[0].write(writer)
        left_out = writer.note[_LEFT_OUT]
        for start, helper in zip(bounds[1:], helpers, strict=False):
            entry = helper.result()
            for array in ARRAYS:
                writer.append(array, entry.arrays[array])
            left_out += [[start + row, what, n] for row, what, n in entry.note[_LEFT_OUT]]


class _Helper:
    """A process with a share."""

    def __init__(self, folder: Path, job: Job) -> None:
        folder.mkdir()
        self._folder = folder
        self._job = job
        table = job.rows.table
        words = [table.index.row_format] if isinstance(table, FileTable) else []
        data = {"plugins": modules_behind(words), "job": pickle.dumps(job)}
        (folder / "job").write_bytes(pickle.dumps(data))
        program = f"from {__name__} import run; run({str(folder)!r})"
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)  # noqa: PTH109
        own = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **own},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def result(self) -> Any:
        """What it made, or raise what it raised."""
        self._process.wait()
        shelf = Shelf(self._folder)
        if (entry := shelf.find(_RESULT, ARRAYS)) is not None:
            return entry
        refusal = self._folder / "refusal"
        if refusal.exists():
            raise pickle.loads(refusal.read_bytes())
        with shelf.filling(_RESULT) as writer:
            self._job.write(writer)
        return shelf.find(_RESULT, ARRAYS)

    def stop(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.wait()


def run(folder: str) -> None:
    """What a helper's process does."""
    home = Path(folder)
    data = pickle.loads((home / "job").read_bytes())
    import_plugins(data["plugins"])
    job: Job = pickle.loads(data["job"])
    try:
        with Shelf(home).filling(_RESULT) as writer:
            job.write(writer)
    except MixgymError as refusal:
        (home / "refusal").write_bytes(pickle.dumps(refusal))
