"""Records: the rows of one file before anything is known of their format.

A file is opened when its first record is asked for, and its rows become Python values only while
they are looked at. JSON lines are found in the bytes of the file, which are mapped into memory and
not read; a record is named by its line, or by the number of its row.
"""

import codecs
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import SourceError

_WINDOW = 1 << 24  # bytes in which line ends are looked for at a time
_BLANK = np.isin(np.arange(256), list(b" \t\n\r\x0b\x0c"))
BATCH = 512
"""Records that are made Python values at a time."""


@dataclass(frozen=True)
class Record:
    """A row before its format is known: a JSON value, or the reason why there is none."""

    file: str
    line: int
    unit: str
    value: Any = None
    flaw: str | None = None

    @property
    def where(self) -> str:
        """Its place, as errors name it."""
        return f"{self.file} {self.unit} {self.line}"


class Records(Protocol):
    """The records of one file."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def pick(self, places: Sequence[int]) -> list[Record]:
        """The records at some places, in that order."""
        ...


def fail(source: str, problem: str) -> NoReturn:
    """Raise the error of a source."""
    raise SourceError(f"source {source!r}: {problem}")


def batches(records: Records) -> Iterator[list[Record]]:
    """All records, a batch at a time."""
    for start in range(0, len(records), BATCH):
        yield records.pick(range(start, min(start + BATCH, len(records))))


class JsonLines:
    """An object per line.

    Args:
        path: the file.
        source: name of the source, for errors.
        data: its content, where it is not what stands in the file.
    """

    def __init__(self, path: Path, source: str, data: bytes | None = None) -> None:
        self._path = path
        self._source = source
        self._given = data

    def __getstate__(self) -> dict[str, Any]:
        """What a process needs to open the file itself."""
        return {"_path": self._path, "_source": self._source, "_given": self._given}

    def _content(self) -> "bytes | mmap.mmap":
        if self._given is not None:
            return self._given
        with self._path.open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                return b""

    @cached_property
    def _data(self) -> "bytes | mmap.mmap":
        return self._content()

    @cached_property
    def _begin(self) -> int:
        """Where the text begins, behind a mark of byte order."""
        mark = codecs.BOM_UTF8
        return len(mark) if self._data[: len(mark)] == mark else 0

    @cached_property
    def _lines(self) -> tuple[IntArray, IntArray, IntArray]:
        """Start, end and number of every line that is not blank."""
        if not len(self._data):
            fail(self._source, f"{self._path} is empty; give it rows or leave it out")
        text = np.frombuffer(self._data, np.uint8)
        ends = _line_ends(text)
        starts = np.concatenate([[self._begin], ends[:-1] + 1])
        kept = starts < ends
        doubtful = np.flatnonzero(kept)
        for line in doubtful[_BLANK[text[starts[doubtful]]]].tolist():
            kept[line] = bool(self._data[int(starts[line]) : int(ends[line])].strip())
        if not kept.any():
            fail(self._source, f"{self._path} is empty; give it rows or leave it out")
        return starts[kept], ends[kept], np.flatnonzero(kept) + 1

    def __len__(self) -> int:
        return len(self._lines[0])

    def pick(self, places: Sequence[int]) -> list[Record]:
        """The records at some places, in that order."""
        starts, ends, numbers = self._lines
        return [
            self._record(int(numbers[i]), int(starts[i]), self._data[int(starts[i]) : int(ends[i])])
            for i in places
        ]

    def _record(self, number: int, start: int, line: bytes) -> Record:
        try:
            return Record(str(self._path), number, "line", json.loads(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            flaw = not_utf8(line, error, start - self._begin)
        except (ValueError, RecursionError) as error:
            flaw = f"not valid JSON ({error})"
        return Record(str(self._path), number, "line", flaw=flaw)


def _line_ends(text: "np.ndarray[Any, np.dtype[np.uint8]]") -> IntArray:
    r"""Where lines end: only \n does that, and the end of the file."""
    windows = range(0, len(text), _WINDOW)
    found = [np.flatnonzero(text[w : w + _WINDOW] == 10) + w for w in windows]
    return np.concatenate([*found, [len(text)]]).astype(np.int64)


def not_utf8(data: bytes, error: UnicodeDecodeError, start: int) -> str:
    """The flaw of bytes that are no UTF-8."""
    return (
        f"not UTF-8: byte 0x{data[error.start]:02x} at offset {start + error.start} of the file; "
        "convert the file (iconv -f OLD -t UTF-8)"
    )


class JsonList:
    """A list of objects, alone or under ``data``; a file with an object per line is read as such.

    Args:
        path: the file.
        source: name of the source, for errors.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._path = path
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        """What a process needs to open the file itself."""
        return {"_path": self._path, "_source": self._source}

    @cached_property
    def _values(self) -> "list[Any] | JsonLines":
        data = self._path.read_bytes().removeprefix(codecs.BOM_UTF8)
        if not data.strip():
            fail(self._source, f"{self._path} is empty; give it rows or leave it out")
        values = _json_list(self._path, data, self._source)
        if values is None:
            return JsonLines(self._path, self._source, data)
        if not values:
            fail(self._source, f"{self._path} holds no rows; give it rows or leave it out")
        return values

    def __len__(self) -> int:
        return len(self._values)

    def pick(self, places: Sequence[int]) -> list[Record]:
        """The records at some places, in that order."""
        values = self._values
        if isinstance(values, JsonLines):
            return values.pick(places)
        return [Record(str(self._path), i + 1, "row", values[i]) for i in places]


def _json_list(path: Path, data: bytes, source: str) -> list[Any] | None:
    """The rows of a JSON file; None if it is no single value, but perhaps one per line."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fail(source, f"{path} line {line}: {not_utf8(data, error, 0)}")
    except (ValueError, RecursionError) as error:
        if not data.lstrip().startswith(b"["):
            return None
        fail(source, f"{path} is not valid JSON ({error}); correct it there")
    if isinstance(value, dict):
        if not isinstance(value.get("data"), list):
            return None
        value = value["data"]
    if not isinstance(value, list):
        fail(
            source,
            f"{path} holds a JSON {type(value).__name__}; give a list of objects "
            'or {"data": [...]}, or name the file .jsonl if it has an object per line',
        )
    return value
