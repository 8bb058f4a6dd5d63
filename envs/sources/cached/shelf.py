"""A folder of entries, each of arrays and a note, found by what they are made of.

An entry is complete or not there: it is filled under a temporary name and renamed, and of two
processes that make the same entry, the first wins. Everything read is checked against its sum, so
that a damaged entry is removed and made anew. Arrays that are asked for as such stay on disk,
mapped into memory. Entries are never changed; those that were not used for the longest time go when
all together grow too large.
"""

import contextlib
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.storage import TEMPORARY_PREFIX

Array = "np.ndarray[Any, np.dtype[Any]]"

_NOTE = "note.json"
_CHUNK = 1 << 22  # bytes that are summed at a time
MOST_BYTES = 50_000_000_000
"""Entries are removed, the longest unused first, when they take more than this together."""
_STALE = 86_400.0  # seconds after which what a killed process left is removed


@dataclass(frozen=True)
class Entry:
    """What was kept.

    Attributes:
        arrays: by name.
        note: plain data.
    """

    arrays: Mapping[str, Any]
    note: Any


class Shelf:
    """The folder.

    Args:
        folder: made when something is kept in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str, mapped: Collection[str] = ()) -> Entry | None:
        """The entry of a key, or None; a damaged one is removed.

        Args:
            key: see :meth:`keep`.
            mapped: arrays that are not read but mapped into memory.
        """
        place = self.folder / key
        if not place.is_dir():
            return None
        try:
            entry = _read(place, mapped)
        except (OSError, ValueError, KeyError, TypeError):
            _discard(place)
            return None
        with contextlib.suppress(OSError):
            os.utime(place)  # it was used
        return entry

    @contextlib.contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Let others wait while this process makes an entry, where the file system knows locks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".lock-{key}").open("wb") as file:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield  # a process that dies lets go of the lock

    def keep(self, key: str, arrays: Mapping[str, Any], note: Any) -> None:
        """Keep an entry; nothing happens where another process was faster.

        Args:
            key: a name for a file that stands for all that the entry is made of.
            arrays: of any type and shape.
            note: plain data, as JSON has it.
        """
        with self.filling(key) as writer:
            for name, array in arrays.items():
                writer.append(name, array)
            writer.note = note

    @contextlib.contextmanager
    def filling(self, key: str) -> Iterator["Writer"]:
        """Fill an entry part by part; it is there when the block ends without an error."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{TEMPORARY_PREFIX}{key}-{os.getpid()}-{secrets.token_hex(4)}"
        temporary.mkdir()
        writer = Writer(temporary)
        try:
            yield writer
            writer.end()
            with contextlib.suppress(OSError):  # another process was faster
                temporary.rename(self.folder / key)
        finally:
            writer.close()
            shutil.rmtree(temporary, ignore_errors=True)
        self._tidy(key)

    def _tidy(self, key: str) -> None:
        """Remove what killed processes left, and the longest unused entries of a full shelf."""
        with contextlib.suppress(OSError):  # others may tidy at the same time
            places = sorted(self.folder.iterdir(), key=lambda p: p.stat().st_mtime)
            now = time.time()
            for place in places:
                if place.name.startswith(".") and now - place.stat().st_mtime > _STALE:
                    _discard(place)
            total = sum(_size(place) for place in places)
            for place in places:
                if total <= MOST_BYTES:
                    break
                if place.name != key and not place.name.startswith("."):
                    total -= _size(place)
                    _discard(place)


class Writer:
    """Fills the arrays of an entry, each from its beginning to its end.

    Attributes:
        note: plain data, to be set before the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, dict[str, Any]] = {}
        self._files: dict[str, Any] = {}
        self.note: Any = None

    def append(self, name: str, array: Any) -> None:
        """Put rows behind those that an array has, a part at a time."""
        rows = max(1, _CHUNK // max(1, array[:1].nbytes))
        for start in range(0, max(len(array), 1), rows):
            self._append(name, np.ascontiguousarray(array[start : start + rows]))

    def _append(self, name: str, values: Any) -> None:
        about = self._arrays.setdefault(
            name, {"dtype": values.dtype.str, "shape": [0, *values.shape[1:]], "sum": 0}
        )
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.bin").open("wb")
        data = values.tobytes()
        self._files[name].write(data)
        about["shape"][0] += len(values)
        about["sum"] = zlib.crc32(data, about["sum"])

    def close(self) -> None:
        """Let go of all files."""
        for file in self._files.values():
            file.close()

    def end(self) -> None:
        """Write the note, when all else is written."""
        self.close()
        text = json.dumps({"arrays": self._arrays, "note": self.note})
        data = json.dumps({"sum": zlib.crc32(text.encode()), "text": text})
        (self._folder / _NOTE).write_text(data, encoding="utf-8")


def _read(place: Path, mapped: Collection[str]) -> Entry:
    """An entry.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is damaged.
    """
    data = json.loads((place / _NOTE).read_text(encoding="utf-8"))
    text = data["text"]
    if zlib.crc32(text.encode()) != data["sum"]:
        raise ValueError("the note is not what was written")
    whole = json.loads(text)
    arrays = {
        name: _array(place / f"{name}.bin", about, name in mapped)
        for name, about in whole["arrays"].items()
    }
    return Entry(arrays, whole["note"])


def _array(path: Path, about: Mapping[str, Any], mapped: bool) -> Any:
    dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
    if path.stat().st_size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError("the array is not as long as it was")
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    if total != about["sum"]:
        raise ValueError("the array is not what was written")
    if mapped and path.stat().st_size:
        # a plain array over the map: selections of a memmap would be memmaps, and slower
        return np.asarray(np.memmap(path, dtype, "r", shape=shape)).view(np.ndarray)
    return np.fromfile(path, dtype).reshape(shape)


def _size(place: Path) -> int:
    return sum(file.stat().st_size for file in place.glob("*"))


def _discard(place: Path) -> None:
    """Remove an entry at once by name, then its files; another process may be doing so too."""
    doomed = place.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        if place.is_dir():
            place.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            place.unlink()
