"""Which files a source is read from, by the role that each plays.

A path is a file, a folder, a glob, or a list of these. In a folder, a file plays the role that its
name begins with:
``train``, ``valid`` (or ``validation``, ``dev``) and ``test``, alone or as numbered shards
(``train-00000-of-00002.jsonl``, ``train_1.json``), which are read in the order of their numbers and
have to be complete where their names tell how many there are. A folder without a train file is a
folder of shards: its other files, in the order of their names, are what is trained on. A folder of
``save_to_disk`` and a data set of the hub have splits by these names instead. The files of a glob,
in the order of their names, and of a list, in its order, are all trained on. ``~`` is the user's
home. Nothing here reads a row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from mixgym.envs.errors import SourceError, did_you_mean
from mixgym.envs.options import SPLITS, SourceOptions
from mixgym.envs.sources.tables.opening import SUFFIXES, data_file, stem_of, suffix_of
from mixgym.envs.sources.tables.saved import (
    hub_splits,
    is_saved,
    is_saved_dict,
    saved_files,
    saved_splits,
)

_STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}
_DESCRIPTIONS = ("dataset_info", "dataset_infos", "dataset_dict", "state")
"""Stems of JSON files that tools write beside the rows."""
_UNREADABLE = (".ndjson", ".gz", ".zst", ".bz2", ".xz", ".zip", ".feather", ".xlsx")
"""Endings of files that are told of, as they hold rows or may do so."""
_SHARD = re.compile(r"(?P<stem>.*?)(?:[-_.](?P<number>\d+)(?:-of-(?P<count>\d+))?)?")

Files = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        roles: train, valid, reward, select, test -> their files, in the order of reading.
        unread: files of the folder, or shards, that play no role.
        names: files that errors call by another name than their path.
    """

    roles: Files = field(default_factory=dict)
    unread: tuple[Path, ...] = ()
    names: Mapping[Path, str] = field(default_factory=dict)


def find_files(options: SourceOptions, source: str) -> SourceFiles:
    """The files of a source.

    Only roles that are used are listed. A single file is ``train``, even of a target only.

    Raises:
        SourceError: a file is missing, stands there twice, or would play two roles.
    """
    found = SourceFiles()
    if options.hub is not None:
        parts = hub_splits(options.hub, options.config, options.split, options.revision, source)
        names = {path: f"{options.hub} {split}" for split, paths in parts.items() for path in paths}
        where = f"data set {options.hub!r}"
        roles = _roles_of_splits(parts, options.split, where, source, options.train)
        found = SourceFiles(roles, (), names)
    elif options.path is not None:
        found = _path(options, source)
    roles = dict(found.roles)
    for role in SPLITS[1:]:
        named = getattr(options, role)
        if named is not None:
            roles[role] = _held_out(named, source)
    if "reward" in roles and "select" in roles:
        roles.pop("valid", None)
    _check_one_role(roles, source)
    return SourceFiles(roles, found.unread, found.names)


def _path(options: SourceOptions, source: str) -> SourceFiles:
    written = options.path
    if not isinstance(written, str) or _is_glob(written):
        if options.split is not None:
            _fail(source, f"split={options.split} is for a single folder of save_to_disk")
        return SourceFiles({"train": _several(written or [], source)})
    path = Path(written).expanduser()
    if is_saved_dict(path):
        parts = saved_splits(path, source)
        roles = _roles_of_splits(parts, options.split, str(path), source, options.train)
        return SourceFiles(roles)
    if options.split is not None:
        _fail(source, f"split={options.split}: {written} is no data set with splits; leave it out")
    if is_saved(path):
        return SourceFiles({"train": saved_files(path, source)})
    if path.is_dir():
        return SourceFiles(*_folder(path, source, options.train))
    return SourceFiles({"train": (_one_file(path, written, source),)}, tuple(_siblings(path)))


def _one_file(path: Path, written: str, source: str) -> Path:
    if not path.exists():
        _fail(
            source,
            f"no file or folder at {written!r} (looked in {Path.cwd()}); correct the path: "
            "relative paths start at the current directory",
        )
    return data_file(path, source)


def _is_glob(written: str) -> bool:
    return any(sign in written for sign in "*?[") and not Path(written).expanduser().exists()


def _several(written: str | Sequence[str], source: str) -> tuple[Path, ...]:
    """The files of a list, or of a glob."""
    if isinstance(written, str):
        return _matched(written, source)
    if not written:
        _fail(source, "path is an empty list; give it files")
    found = [path for one in written for path in _all_of(one, source)]
    twice = [path for path in found if found.count(path) > 1] if len(found) < 1000 else []
    if twice:
        _fail(source, f"{twice[0]} stands in path twice; name it once")
    return tuple(found)


def _matched(pattern: str, source: str) -> tuple[Path, ...]:
    import glob

    places = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207
    found = [path for path in map(Path, places) if path.is_file() and suffix_of(path)]
    if not found:
        _fail(
            source,
            f"no file that can be read matches {pattern!r} (looked in {Path.cwd()}; types: "
            f"{', '.join(SUFFIXES)}); correct the pattern",
        )
    return tuple(sorted(found))


def _all_of(written: str, source: str) -> tuple[Path, ...]:
    """All files of a path, whatever their names."""
    if _is_glob(written):
        return _matched(written, source)
    path = Path(written).expanduser()
    if is_saved(path):
        return saved_files(path, source)
    if not path.is_dir():
        return (_one_file(path, written, source),)
    found = _in_order(_data_files(path), source)
    if not found:
        _fail(source, f"{path} has no .jsonl or .json file; add one, or name another folder")
    return found


def _held_out(written: str | Sequence[str], source: str) -> tuple[Path, ...]:
    """All files of a path, or of several, as they are one split already."""
    if not isinstance(written, str):
        return _several(written, source)
    path = Path(written).expanduser()
    if not path.is_dir() and not _is_glob(written):
        return (data_file(path, source),)
    return _all_of(written, source)


def _roles_of_splits(
    parts: Mapping[str, Sequence[Path]], split: str | None, where: str, source: str, trained: bool
) -> Files:
    """The role of each split of a data set by its name; a split that is asked for is train."""
    if split is not None:
        if split not in parts:
            _fail(source, f"split={split}: {where} has no such split; {did_you_mean(split, parts)}")
        return {"train": tuple(parts[split])}
    named = {
        role: next((tuple(parts[stem]) for stem in stems if stem in parts), ())
        for role, stems in _STEMS.items()
    }
    roles = {role: files for role, files in named.items() if files}
    if "train" not in roles and len(parts) == 1:
        return {"train": tuple(next(iter(parts.values())))}
    if not roles or (trained and "train" not in roles):
        _fail(source, f"{where} has no split train (found: {', '.join(parts)}); give split")
    return roles


def _siblings(path: Path) -> list[Path]:
    """The other shards of a file that is one of several by its name."""
    part = _shard(path)
    if part.count is None:
        return []
    others = (p for p in _data_files(path.parent) if p != path)
    return [p for p in others if (q := _shard(p)).stem == part.stem and q.count == part.count]


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
    return sorted(path for path in files if path.suffix in _UNREADABLE and not suffix_of(path))


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if suffix_of(path)
        and not path.name.startswith(".")
        and stem_of(path) not in _DESCRIPTIONS
        and path.is_file()
    )


@dataclass(frozen=True)
class _Shard:
    stem: str
    number: int | None
    count: int | None


def _shard(path: Path) -> _Shard:
    match = _SHARD.fullmatch(stem_of(path))
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
    ranks = {p: (stems.index(_shard(p).stem), suffix_of(p) != ".jsonl") for p in paths}
    first, *rest = sorted(paths, key=lambda p: ranks[p])
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
