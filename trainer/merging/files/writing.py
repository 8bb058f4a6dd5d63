"""Writing a model folder whole or not at all.

All headers are known before any data, so that each chunk goes straight to its final place in its
file. The files grow in a hidden folder beside the target, are synced, and take the target's name
at the end. What a killed run left behind is removed by the next one.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mixgym.envs.storage import sync_path
from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files.checkpoint import TensorInfo
from mixgym.trainer.merging.files.output_file import OutputFile, Sink
from mixgym.trainer.merging.methods.numerics import Array

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS.update({"KIB": 2**10, "MIB": 2**20, "GIB": 2**30})
_WEIGHT_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "*.bin.index.json",
    "adapter_config.json",
    "*.gguf",
)


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes from 5000000, "5MB" or "1GiB".

    >>> parse_bytes("500MB")
    500000000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if not found or found.group(2).upper() not in _UNITS:
        raise MergeError(f"max_shard_size {size!r} is not a size; write bytes, 500MB or 2GiB")
    count = int(float(found.group(1)) * _UNITS[found.group(2).upper()])
    if count < 1:
        raise MergeError(f"max_shard_size {size!r} is not above zero")
    return count


def plan_shards(
    tensors: Sequence[TensorInfo], limit_bytes: int, stem: str = "model"
) -> dict[str, list[TensorInfo]]:
    """Return file name -> its tensors, in order of names and none above the limit if possible."""
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in sorted(tensors, key=lambda t: t.name):
        size = info.elements * info.kind.bytes_each
        if shards[-1] and filled + size > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += size
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    total = len(shards)
    return {
        f"{stem}-{i:05d}-of-{total:05d}.safetensors": shard for i, shard in enumerate(shards, 1)
    }


class OutputFolder:
    """The folder under construction; a context manager that leaves nothing half-written.

    Args:
        target: The folder to appear.
        tensors: What it will hold.
        limit_bytes: Size of a file, at most, unless one tensor is larger.
        overwrite: Whether weights in a folder that exists may be replaced.
        stem: Beginning of the names of the weight files.
    """

    def __init__(
        self,
        target: Path,
        tensors: Sequence[TensorInfo],
        limit_bytes: int,
        overwrite: bool,
        stem: str = "model",
    ) -> None:
        self.target = Path(os.path.abspath(target.expanduser()))  # noqa: PTH100 - keeps a link a link
        self._overwrite = overwrite
        self._shards = plan_shards(tensors, limit_bytes, stem)
        self._places: dict[str, tuple[OutputFile, int]] = {}
        self._opened: list[OutputFile] = []
        self._lock = -1

    def check(self) -> None:
        """Refuse a target that is not empty, and a disk that is too small.

        Raises:
            MergeError: Naming the folder and the fix.
        """
        if self.target.exists() and not self.target.is_dir():
            raise MergeError(f"output {self.target} is a file; give the name of a folder")
        if not self._overwrite and self.target.is_dir() and any(self.target.iterdir()):
            raise MergeError(
                f"output folder {self.target} is not empty; choose another, or pass --overwrite"
            )
        parent = next(p for p in self.target.parents if p.exists())
        free = shutil.disk_usage(parent).free
        if self.total_bytes > free:
            raise MergeError(
                f"the merge needs {self.total_bytes:,} bytes and {parent} has {free:,} free; free "
                "some space, or write elsewhere"
            )

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.elements * t.kind.bytes_each for s in self._shards.values() for t in s)

    @property
    def files(self) -> list[str]:
        """Names of the weight files."""
        return list(self._shards)

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(self.target)
        self.check()
        prefix = f".{self.target.name}.partial-"
        self.temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=self.target.parent))
        import fcntl  # POSIX only, see require_posix

        self._lock = os.open(self.temporary, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self.temporary.chmod(0o755)
            for file, tensors in self._shards.items():
                self._guard(partial(self._begin, file, tensors))
        except BaseException:
            self._abandon()
            raise
        return self

    def _begin(self, file: str, tensors: list[TensorInfo]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        ends = 0
        # wide types first keeps every tensor aligned to its own size, as the library does
        for info in sorted(tensors, key=lambda t: (-t.kind.bytes_each, t.name)):
            start, ends = ends, ends + info.elements * info.kind.bytes_each
            header[info.name] = {
                "dtype": info.kind.name,
                "shape": list(info.shape),
                "data_offsets": [start, ends],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = len(text).to_bytes(8, "little") + text
        opened = OutputFile(self.temporary / file, begin, len(begin) + ends)
        self._opened.append(opened)
        for info in tensors:
            offset = len(begin) + header[info.name]["data_offsets"][0]
            self._places[info.name] = (opened, offset)

    def write(self, name: str, raw: Array) -> None:
        """Write all elements of a tensor.

        Raises:
            MergeError: When the disk is full or fails.
        """
        file, offset = self._places[name]
        self._guard(lambda: file.write(raw.view(np.uint8), offset))

    def sink(self, name: str, buffer: Array, storage: np.dtype[Any]) -> Sink:
        """Return where the chunks of a tensor go; see :class:`Sink`."""
        return Sink(*self._places[name], buffer, storage, self._guard)

    def commit(self, copies: Mapping[str, Path], texts: Mapping[str, str]) -> None:
        """Add the other files, sync everything, and give the folder its name.

        Args:
            copies: Name in the folder -> file to copy.
            texts: Name in the folder -> content.
        """
        self._guard(lambda: self._finish(copies, texts))

    def _finish(self, copies: Mapping[str, Path], texts: Mapping[str, str]) -> None:
        for name, source in copies.items():
            shutil.copyfile(source, self.temporary / name)
        index = self._index()
        for name, text in {**index, **texts}.items():
            (self.temporary / name).write_text(text, "utf-8")
        for file in self._opened:
            file.sync()
        for name in {**copies, **index, **texts}:
            sync_path(self.temporary / name)
        sync_path(self.temporary)
        self._close()
        self._take_name()
        sync_path(self.target.parent)

    def _index(self) -> dict[str, str]:
        if len(self._shards) == 1:
            return {}
        weight_map = {t.name: file for file, tensors in self._shards.items() for t in tensors}
        content = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        return {"model.safetensors.index.json": json.dumps(content, indent=2) + "\n"}

    def _take_name(self) -> None:
        if not self.target.is_dir() or not any(self.target.iterdir()):
            self.temporary.replace(self.target)
            return
        if not self._overwrite:
            raise MergeError(f"output folder {self.target} was filled meanwhile; nothing written")
        old = self.target.with_name(f".{self.target.name}.replaced")
        self.target.replace(old)
        self.temporary.replace(self.target)
        _carry_over(old, self.target)
        shutil.rmtree(old)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise MergeError(
                f"the disk under {self.target.parent} is full; free {self.total_bytes:,} bytes, or "
                "write elsewhere"
                if full
                else f"writing {self.target} failed: {error}; check the disk and the permissions"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._abandon()

    def _abandon(self) -> None:
        self._close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _close(self) -> None:
        for file in self._opened:
            file.close()
        self._opened = []


def _carry_over(old: Path, new: Path) -> None:
    """Move what is neither weights nor replaced from the old folder into the new one."""
    for entry in old.iterdir():
        is_weights = any(entry.match(pattern) for pattern in _WEIGHT_PATTERNS)
        if not is_weights and not (new / entry.name).exists():
            entry.replace(new / entry.name)


def clear_leftovers(target: Path) -> None:
    """Remove what killed runs left beside ``target``; a run that is alive keeps its lock."""
    replaced = target.with_name(f".{target.name}.replaced")
    if replaced.is_dir():
        if target.exists():
            _carry_over(replaced, target)
            shutil.rmtree(replaced)
        else:
            replaced.replace(target)
    for folder in target.parent.glob(f".{_escape(target.name)}.partial-*"):
        _remove_if_dead(folder)


def _escape(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _remove_if_dead(folder: Path) -> None:
    import fcntl

    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(handle)
