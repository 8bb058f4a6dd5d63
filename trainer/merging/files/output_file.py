"""One weight file under construction, and the collection of chunks into large writes.

Copying a merge into the page cache would cost a third of the CPU time of an average, and push the
inputs out of it. Large files are therefore written past the cache (``O_DIRECT``), where the file
system allows that: whole blocks at block boundaries from memory that lies alike. What is left over
at the edges of a tensor takes the ordinary way; both meet in the same file.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.trainer.merging.methods.numerics import Array

BLOCK_BYTES = 4096
"""Alignment of direct writes in file and memory: a multiple of every device's block."""
DIRECT_FROM_BYTES = 1 << 26
"""Files up to this size are left in the page cache: they will be read soon."""
_COLLECT_BYTES = 1 << 22

_Guard = Callable[[Callable[[], None]], None]


class OutputFile:
    """A new file of a known size.

    Args:
        path: Must not exist.
        header: The first bytes.
        size_bytes: Of the whole file.

    Raises:
        OSError: When it cannot be made.
    """

    def __init__(self, path: Path, header: bytes, size_bytes: int) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._direct = -1
        self._refuses = False  # direct writes, although it opened for them
        try:
            self._plainly(memoryview(header), 0)
            os.ftruncate(self._handle, size_bytes)
            if size_bytes >= DIRECT_FROM_BYTES and hasattr(os, "O_DIRECT"):
                with suppress(OSError):  # not on this file system
                    self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except BaseException:
            self.close()
            raise

    def write(self, data: Array, offset: int) -> None:
        """Write uint8 ``data`` at a byte offset.

        Raises:
            OSError: When the disk is full or fails.
        """
        head = min(-offset % BLOCK_BYTES, data.size)
        body = (data.size - head) // BLOCK_BYTES * BLOCK_BYTES
        view = memoryview(data.data)
        lies_alike = (data.ctypes.data - offset) % BLOCK_BYTES == 0
        if not body or self._direct < 0 or self._refuses or not lies_alike:
            self._plainly(view, offset)
            return
        self._plainly(view[:head], offset)
        done = head + self._directly(view[head : head + body], offset + head)
        self._plainly(view[done:], offset + done)

    def _directly(self, left: memoryview, offset: int) -> int:
        """Write whole blocks past the cache; return how many bytes were taken."""
        done = 0
        while done < left.nbytes:
            try:
                written = os.pwrite(self._direct, left[done:], offset + done)
            except OSError:  # refused here, or a full disk, which the ordinary way will tell
                self._refuses = True
                break
            done += written
            if written % BLOCK_BYTES:
                break
        return done

    def _plainly(self, left: memoryview, offset: int) -> None:
        while left.nbytes:
            done = os.pwrite(self._handle, left, offset)
            left, offset = left[done:], offset + done

    def sync(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        for handle in (self._direct, self._handle):
            if handle >= 0:
                os.close(handle)
        self._direct = self._handle = -1


class Sink:
    """Collects a tensor's chunks, in order, into writes of a few megabytes.

    In its memory every byte lies as far behind a block boundary as in the file, so that whole
    blocks can be written directly; what does not fill a block waits for the next write.

    Args:
        file: Where to write.
        offset: First byte of the tensor in the file.
        buffer: uint8 memory at a block boundary, with room for a chunk and two blocks.
        storage: Type of the raw elements.
        guard: Calls what it is given, and words its OSErrors.
    """

    def __init__(
        self,
        file: OutputFile,
        offset: int,
        buffer: Array,
        storage: np.dtype[Any],
        guard: _Guard,
    ) -> None:
        self._file = file
        self._guard = guard
        self._buffer = buffer
        self._storage = storage
        self._begin = self._end = offset % BLOCK_BYTES  # of what is collected
        self._offset = offset - self._begin  # in the file, of the buffer's first byte

    def room(self, elements: int) -> Array:
        """Return the place of the next elements, raw and uninitialised."""
        size = elements * self._storage.itemsize
        if self._end + size > self._buffer.size:
            self._spill()
        return self._buffer[self._end : self._end + size].view(self._storage)

    def advance(self, elements: int) -> None:
        """Count the next elements as there."""
        self._end += elements * self._storage.itemsize

    def _spill(self) -> None:
        """Write whole blocks; what is left over moves to the front."""
        whole = self._end // BLOCK_BYTES * BLOCK_BYTES
        if not whole:
            return
        self._write(whole)
        left = self._end - whole
        self._buffer[:left] = self._buffer[whole : self._end]
        self._offset += whole
        self._begin, self._end = 0, left

    def flush(self) -> None:
        """Write everything that was collected."""
        self._write(self._end)
        self._begin = self._end

    def _write(self, end: int) -> None:
        part = self._buffer[self._begin : end]
        self._guard(lambda: self._file.write(part, self._offset + self._begin))


def collection_bytes(chunk_bytes: int) -> int:
    """Return how much memory :func:`at_block_boundary` needs for chunks of that size at most."""
    return max(_COLLECT_BYTES, chunk_bytes) + 3 * BLOCK_BYTES


def at_block_boundary(memory: Array) -> Array:
    """Return uint8 ``memory`` from its first block boundary on: the buffer of a sink."""
    return memory[-memory.ctypes.data % BLOCK_BYTES :]
