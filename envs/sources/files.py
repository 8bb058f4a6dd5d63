"""Which files a source is read from, by the role that each plays.

A path is a file, or a folder. In a folder, a file plays the role that its name begins with:
``train``, ``valid`` (or ``validation``, ``dev``) and ``test``, alone or as numbered shards
(``train-00000-of-00002.jsonl``, ``train_1.json``), which are read in the order of their numbers and
have to be complete where their names tell how many there are. A folder without a train file is a
folder of shards: its other files, in the order of their names, are what is trained on. ``~`` is the
user's home. Nothing here reads a row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, SourceOptions
from mixgym.envs.sources.reading import SUFFIXES, data_file

_STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}
_DESCRIPTIONS = ("dataset_info", "dataset_infos", "dataset_dict", "state")
"""Stems of JSON files that tools write beside the rows."""
_UNREADABLE = (
    ".parquet",
    ".arrow",
    ".csv",
    ".tsv",
    ".ndjson",
    ".gz",
    ".zst",
    ".bz2",
    ".xz",
    ".zip",
)
"""Endings of files that are told of, as they hold rows or may do so."""
_SHARD = re.compile(r"(?P<stem>.*?)(?:[-_.](?P<number>\d+)(?:-of-(?P<count>\d+))?)?")

Files = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        roles: train, valid, reward, select, test -> their files, in the order of reading.
        unread: files of the folder, or shards, that play no role.
    """

    roles: Files = field(default_factory=dict)
    unread: tuple[Path, ...] = ()


def find_files(options: SourceOptions, source: str) -> SourceFiles:
    """The files of a source.

    Only roles that are used are listed. A single file is ``train``, even of a target only.

    Raises:
        SourceError: a file is missing, stands there twice, or would play two roles.
    """
    roles: Files = {}
    unread: tuple[Path, ...] = ()
    if options.path is not None:
        roles, unread = _path(options.path, source, options.train)
    for role in SPLITS[1:]:
        named = getattr(options, role)
        if named is not None:
            roles[role] = _held_out(Path(named).expanduser(), source)
    if "reward" in roles and "select" in roles:
        roles.pop("valid", None)
    _check_one_role(roles, source)
    return SourceFiles(roles, unread)


def _path(written: str, source: str, trained: bool) -> tuple[Files, tuple[Path, ...]]:
    path = Path(written).expanduser()
    if path.is_dir():
        return _folder(path, source, trained)
    if not path.exists():
        _fail(
            source,
            f"no file or folder at {written!r} (looked in {Path.cwd()}); correct the path: "
            "relative paths start at the current directory",
        )
    return {"train": (data_file(path, source),)}, tuple(_siblings(path))


def _siblings(path: Path) -> list[Path]:
    """The other shards of a file that is one of several by its name."""
    part = _shard(path)
    if part.count is None:
        return []
    others = (p for p in _data_files(path.parent) if p != path)
    return [p for p in others if (q := _shard(p)).stem == part.stem and q.count == part.count]


def _held_out(path: Path, source: str) -> tuple[Path, ...]:
    """A file, or all files of a folder, as they are one split already."""
    if not path.is_dir():
        return (data_file(path, source),)
    found = _in_order(_data_files(path), source)
    if not found:
        _fail(source, f"{path} has no .jsonl or .json file; add one, or name another folder")
    return found


def _folder(folder: Path, source: str, trained: bool) -> tuple[Files, tuple[Path, ...]]:
    files = _data_files(folder)
    roles: Files = {}
    for role, stems in _STEMS.items():
        found = [path for path in files if _shard(path).stem in stems]
        if found:
            _check_one_name(found, folder, role, source)
            roles[role] = _in_order(found, source)
    named = {path for paths in roles.values() for path in paths}
    others = [path for path in files if path not in named]
    if "train" not in roles and others and (trained or not roles):
        roles = {"train": _in_order(others, source), **roles}
        others = []
    if not roles or (trained and "train" not in roles):
        found_names = ", ".join(p.name for paths in roles.values() for p in paths)
        _fail(
            source,
            f"{folder} has no train.jsonl or train.json (found: "
            f"{found_names or 'no train, valid or test file'}); "
            "add it, or set train: false if the source is a target only",
        )
    return roles, (*others, *_other_data(folder))


def _other_data(folder: Path) -> list[Path]:
    """Files that hold rows in a way that is not read."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return sorted(path for path in files if path.suffix in _UNREADABLE)


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES
        and not path.name.startswith(".")
        and path.stem not in _DESCRIPTIONS
        and path.is_file()
    )


@dataclass(frozen=True)
class _Shard:
    stem: str
    number: int | None
    count: int | None


def _shard(path: Path) -> _Shard:
    match = _SHARD.fullmatch(path.stem)
    assert match is not None  # the pattern takes any text
    number, count = match["number"], match["count"]
    return _Shard(
        match["stem"],
        None if number is None else int(number),
        None if count is None else int(count),
    )


def _in_order(paths: Iterable[Path], source: str) -> tuple[Path, ...]:
    """Files by stem and number; of shards that know how many they are, all have to be there."""
    found = sorted(paths, key=lambda path: ((s := _shard(path)).stem, s.number or 0, path.name))
    counted: dict[tuple[str, int], list[int]] = {}
    for path in found:
        part = _shard(path)
        if part.count is not None and part.number is not None:
            counted.setdefault((part.stem, part.count), []).append(part.number)
    for (stem, count), numbers in counted.items():
        missing = sorted(set(range(count)) - set(numbers))
        if missing:
            _fail(
                source,
                f"{found[0].parent} has {len(numbers)} of {count} shards of {stem!r}: number "
                f"{missing[0]} is missing; add it, or rename the files",
            )
    return tuple(found)


def _check_one_name(paths: Sequence[Path], folder: Path, role: str, source: str) -> None:
    """Refuse two files, or two sets of shards, that would both be a role's."""
    stems = _STEMS[role]
    first, *rest = sorted(paths, key=lambda p: (stems.index(_shard(p).stem), p.suffix != ".jsonl"))
    for other in rest:
        if _kin(other) != _kin(first) or _shard(other).number is None:
            _fail(
                source,
                f"{folder} has {first.name} and {other.name}, both its {role} file; keep one",
            )


def _kin(path: Path) -> tuple[str, int | None, bool]:
    part = _shard(path)
    return part.stem, part.count, part.number is None


def _check_one_role(files: Mapping[str, Sequence[Path]], source: str) -> None:
    roles: dict[Path, str] = {}
    for role, paths in files.items():
        for path in paths:
            other = roles.setdefault(path.resolve(), role)
            if other != role:
                _fail(
                    source,
                    f"{path} is both its {other} and its {role} file, and splits are disjoint; "
                    f"name another file for {role}, or leave it out to have it cut",
                )


def _fail(source: str, problem: str) -> NoReturn:
    raise SourceError(f"source {source!r}: {problem}")
