"""Reading safetensors by stretches of elements, without a map of the file.

The safetensors library reads whole tensors or slices along their axes; a merge needs flat
stretches at known offsets, in buffers of its own. Format: eight bytes of header length, a JSON
header, the data.
"""

import hashlib
import json
import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files.checkpoint import TensorInfo
from mixgym.trainer.merging.methods.numerics import Array, storage_type

_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 100_000_000


class SafetensorsFile:
    """One open safetensors file.

    Args:
        path: The file.
        label: The model it belongs to, for messages.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self._label = label
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise MergeError(f"model {label}: cannot open {path.name}: {error.strerror}") from error
        try:
            self._size_bytes = os.fstat(self._handle).st_size
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        length = int.from_bytes(os.pread(self._handle, _LENGTH_BYTES, 0), "little")
        self._data_start = _LENGTH_BYTES + length
        if not 2 <= length <= _HEADER_LIMIT_BYTES or self._data_start > self._size_bytes:
            raise self._broken(f"its header claims {length} bytes of {self._size_bytes}")
        text = os.pread(self._handle, length, _LENGTH_BYTES)
        self.header_hash = hashlib.sha256(text).hexdigest()
        try:
            header: dict[str, Any] = json.loads(text)
            header.pop("__metadata__", None)
            spans = {name: self._entry(name, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, MergeError):
                raise
            raise self._broken(f"its header cannot be read ({error})") from error
        self.tensors = {name: info for name, (info, _, _) in spans.items()}
        self._offsets = {name: start for name, (_, start, _) in spans.items()}
        self._check_spans([(start, stop) for _, start, stop in spans.values()])

    def _entry(self, name: str, entry: dict[str, Any]) -> tuple[TensorInfo, int, int]:
        kind = storage_type(entry["dtype"], f"model {self._label}, tensor {name}")
        shape = tuple(int(size) for size in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
        if stop - start != prod(shape) * kind.bytes_each:
            raise self._broken(
                f"tensor {name} of shape {list(shape)} spans {stop - start} bytes, not "
                f"{prod(shape) * kind.bytes_each}"
            )
        return TensorInfo(name, shape, kind, kind), start, stop

    def _check_spans(self, spans: list[tuple[int, int]]) -> None:
        reached = 0
        for start, stop in sorted(spans):
            if start != reached:
                raise self._broken(
                    f"its data has a gap or an overlap at byte {min(start, reached)}"
                )
            reached = stop
        held = self._size_bytes - self._data_start
        if reached != held:
            word = "is truncated" if held < reached else "has bytes left over"
            raise self._broken(f"it {word}: {held} bytes of data, {reached} expected")

    def _broken(self, what: str) -> MergeError:
        return MergeError(
            f"model {self._label}: {self.path.name} is not a sound safetensors file: {what}; "
            "copy or download it again"
        )

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with elements from flat index ``start`` on."""
        offset = self._data_start + self._offsets[name] + start * out.itemsize
        left = memoryview(out.view(np.uint8).data)
        while left.nbytes:
            try:
                got = os.preadv(self._handle, [left], offset)
            except OSError as error:
                raise MergeError(
                    f"model {self._label}, tensor {name}: reading {self.path.name} failed: "
                    f"{error.strerror}; check the disk"
                ) from error
            if got == 0:
                raise self._broken(f"it ended inside tensor {name}")
            left, offset = left[got:], offset + got

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
