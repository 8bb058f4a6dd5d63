"""Atomic writes: a file or folder is seen complete or not at all, whenever the process dies.

Every write of a run goes through this module, so that one place knows about temporary names,
``fsync`` and what a killed process leaves behind. It does not know what the files mean.

A write has named *failpoints*. They do nothing, unless a test sets :data:`on_failpoint`, or the
environment variable ``MIXGYM_FAILPOINT_KILL=N`` asks for a SIGKILL of the process at the N-th
failpoint that it reaches (1 is the first): that is how crash tests die at each instant that counts.
"""

import contextlib
import itertools
import json
import math
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

KILL_VARIABLE = "MIXGYM_FAILPOINT_KILL"
TEMPORARY_PREFIX = ".tmp-"
_REPLACED_PREFIX = ".old-"

on_failpoint: Callable[[str], None] | None = None
"""Called with the name of every failpoint that is reached; set by tests only."""

_reached = itertools.count(1)


def failpoint(name: str) -> None:
    """Mark an instant at which a test may fail or kill the process.

    Args:
        name: what is about to happen, or has just happened, such as ``write:before``.
    """
    if on_failpoint is not None:
        on_failpoint(name)
    kill_at = os.environ.get(KILL_VARIABLE)
    if kill_at and next(_reached) == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)


def plain(value: Any) -> Any:
    """Turn ``value`` into what JSON can hold.

    Floats keep every bit (their ``repr`` reads back exactly). NaN and the infinities have no JSON
    form and become ``null``; arrays, tensors and NumPy scalars become lists and numbers, paths and
    keys become text.

    Raises:
        TypeError: for any other type, by name.
    """
    if isinstance(value, float):  # np.float64 is one as well
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}; convert it first")


def json_text(data: Any, indent: int | None = None) -> str:
    """JSON of ``data`` after :func:`plain`, on one line unless ``indent`` is given."""
    return json.dumps(plain(data), indent=indent, ensure_ascii=False, allow_nan=False)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably; an older file of that name is replaced.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
    """
    temporary = _temporary_beside(path)
    try:
        failpoint("write:before")
        with temporary.open("wb") as file:
            file.write(data)
            failpoint("write:middle")
            file.flush()
            os.fsync(file.fileno())
        failpoint("write:after")
        failpoint("rename:before")
        temporary.replace(path)
        failpoint("rename:after")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, as :func:`write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON of :func:`plain` data, as :func:`write_bytes` does."""
    write_text(path, json_text(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, text: str, *, sync: bool = True) -> None:
    """Append one line with a single write call.

    A kill can tear the line: whoever reads the file must distrust a last line without its end.

    Args:
        path: the file, made when it is not there.
        text: the line without its end.
        sync: wait until the disk has it.

    Raises:
        ValueError: if ``text`` holds a line end.
        OSError: if the disk took only a part of the line.
    """
    if "\n" in text:
        raise ValueError(f"a line must not hold a line end, got {text!r}")
    data = (text + "\n").encode("utf-8")
    is_new = not path.exists()
    failpoint("append:before")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            raise OSError(f"{path}: only {written} of {len(data)} bytes were written; disk full?")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    failpoint("append:after")
    if is_new and sync:
        sync_path(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it gets its own name when it is complete.

    An older folder of that name is set aside first and removed last. A process killed between
    these two leaves no folder under ``path``: :func:`clean` puts the older one back.

    Args:
        path: the folder to make; its parent must exist.

    Yields:
        The temporary folder, empty, beside ``path``. It is removed if the body raises.
    """
    temporary = _temporary_beside(path)
    temporary.mkdir()
    try:
        failpoint("folder:before")
        yield temporary
        failpoint("folder:filled")
        _sync_tree(temporary)
        failpoint("folder:synced")
        _put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that nobody ever sees a half of it under its name."""
    failpoint("remove:before")
    doomed = _temporary_beside(path)
    path.rename(doomed)
    failpoint("remove:renamed")
    sync_path(path.parent)
    shutil.rmtree(doomed)
    failpoint("remove:after")


def clean(folder: Path) -> None:
    """Tidy a folder after a killed process: finish or undo what it left half done.

    Temporary files and folders are removed. A folder that was set aside for its replacement gets
    its name back if the replacement never arrived, and is removed otherwise. Call it before
    reading, and while nobody else writes there.

    Args:
        folder: looked at itself, not the folders in it; need not exist.
    """
    if not folder.is_dir():
        return
    for leftover in sorted(folder.glob(f"{_REPLACED_PREFIX}*")):
        _restore_or_remove(leftover)
    for leftover in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
        _remove(leftover)
    sync_path(folder)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a complete folder to its name, over an older one if there is one."""
    replaced = path.with_name(_REPLACED_PREFIX + path.name)
    if replaced.exists():
        _restore_or_remove(replaced)
    failpoint("folder-rename:before")
    try:
        if path.exists():
            path.rename(replaced)
            failpoint("folder-rename:aside")
        temporary.rename(path)
    except BaseException:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        raise
    sync_path(path.parent)
    failpoint("folder-rename:after")
    if replaced.exists():
        shutil.rmtree(replaced)
        failpoint("folder-rename:removed")


def _restore_or_remove(replaced: Path) -> None:
    """Give a set-aside folder its name back, or remove it if its replacement is there."""
    original = replaced.with_name(replaced.name.removeprefix(_REPLACED_PREFIX))
    if original.exists():
        _remove(replaced)
    else:
        replaced.rename(original)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _temporary_beside(path: Path) -> Path:
    """A fresh name in the folder of ``path``; a rename stays within one file system."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _sync_tree(folder: Path) -> None:
    """Make every file and folder below ``folder``, and itself, durable."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(root, name))
        sync_path(Path(root))


def sync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
