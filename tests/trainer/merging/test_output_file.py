"""Chunks of any size, at any offset, by either way of writing: the file holds the same bytes."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixgym.trainer.merging import merge
from mixgym.trainer.merging.files import output_file
from mixgym.trainer.merging.files.output_file import (
    BLOCK_BYTES,
    OutputFile,
    Sink,
    at_block_boundary,
    collection_bytes,
)


def call(action):
    action()


def block_memory(size):
    return at_block_boundary(np.zeros(size + BLOCK_BYTES, np.uint8))


@pytest.fixture(params=["direct", "cached", "refused"])
def way(request, monkeypatch):
    """Direct writes where the file system has them; none; and ones that fail when tried."""
    monkeypatch.setattr(
        output_file, "DIRECT_FROM_BYTES", 10**18 if request.param == "cached" else 0
    )
    if request.param == "refused":
        monkeypatch.setattr(OutputFile, "_directly", refuse(OutputFile._directly))
    return request.param


def refuse(real):
    def failing(self, left, offset):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", unwilling)
            return real(self, left, offset)

    return failing


def unwilling(*args):
    raise OSError(errno.EINVAL, "Invalid argument")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    header=st.integers(0, 3 * BLOCK_BYTES),
    tensors=st.lists(
        st.lists(st.integers(1, 3 * BLOCK_BYTES), min_size=1, max_size=8), min_size=1, max_size=4
    ),
)
def test_the_file_holds_what_was_written(way, tmp_path_factory, header, tensors):
    path = tmp_path_factory.mktemp("file") / "weights"
    header *= 8
    data = np.random.default_rng(0).integers(0, 2**16, sum(map(sum, tensors)), dtype=np.uint16)
    file = OutputFile(path, b"h" * header, header + data.nbytes)
    buffer = block_memory(6 * BLOCK_BYTES + 2 * BLOCK_BYTES)
    done = 0
    for chunks in tensors:
        sink = Sink(file, header + 2 * done, buffer, np.dtype(np.uint16), call)
        for size in chunks:
            room = sink.room(size)
            assert room.shape == (size,)
            room[:] = data[done : done + size]
            sink.advance(size)
            done += size
        sink.flush()
    file.sync()
    file.close()
    assert path.read_bytes() == b"h" * header + data.tobytes()


def test_whole_blocks_go_past_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(output_file, "DIRECT_FROM_BYTES", 0)
    size = 5 * BLOCK_BYTES
    file = OutputFile(tmp_path / "weights", b"12345678", 8 + size)
    if file._direct < 0:
        file.close()
        with pytest.raises(OSError, match=""):  # so it is the file system that has no such writes
            os.close(os.open(tmp_path / "weights", os.O_WRONLY | os.O_DIRECT))
        return
    lengths = []
    real = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda h, d, o: lengths.append((h == file._direct, len(d))) or real(h, d, o)
    )
    sink = Sink(file, 8, block_memory(8 * BLOCK_BYTES), np.dtype(np.uint8), call)
    sink.room(size)[:] = 7
    sink.advance(size)
    sink.flush()
    assert lengths == [(False, BLOCK_BYTES - 8), (True, 4 * BLOCK_BYTES), (False, 8)]
    file.close()
    assert (tmp_path / "weights").read_bytes() == b"12345678" + b"\7" * size


def test_memory_that_lies_otherwise_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(output_file, "DIRECT_FROM_BYTES", 0)
    file = OutputFile(tmp_path / "weights", b"", 3 * BLOCK_BYTES)
    data = np.arange(3 * BLOCK_BYTES + 1, dtype=np.uint16).view(np.uint8)[1 : 1 + 3 * BLOCK_BYTES]
    file.write(data, 0)
    file.close()
    assert (tmp_path / "weights").read_bytes() == data.tobytes()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(output_file, "DIRECT_FROM_BYTES", 0)
    file = OutputFile(tmp_path / "weights", b"", 2 * BLOCK_BYTES)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(block_memory(2 * BLOCK_BYTES)[: 2 * BLOCK_BYTES], 0)
    file.close()


def test_buffers_hold_a_chunk_and_lie_at_a_boundary():
    for chunk in (1, 1 << 18, 1 << 23):
        memory = at_block_boundary(np.empty(collection_bytes(chunk), np.uint8))
        assert memory.ctypes.data % BLOCK_BYTES == 0
        assert memory.size >= chunk + 2 * BLOCK_BYTES


@pytest.mark.parametrize("method", ["linear", "select", "ties"])
def test_a_merge_is_the_same_by_either_way(bench, family, monkeypatch, method):
    base, paths, _, _ = family
    files = []
    for least in (0, 10**18):
        monkeypatch.setattr(output_file, "DIRECT_FROM_BYTES", least)
        recipe = bench.recipe(method, paths, base, chunk_elements=4096)
        merge(recipe)
        files.append((Path(recipe.out) / "model.safetensors").read_bytes())
    assert files[0] == files[1]
