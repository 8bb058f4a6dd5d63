"""The sources that real tasks are drawn from: all that lies in a folder.

A source is a folder, at most two levels down, that holds a train file (``train.jsonl``, beside it
perhaps ``valid.jsonl`` and ``test.jsonl``), or a JSONL file of its own in the pool's folder. It is
called by its path with hyphens: ``multitask/math`` is ``multitask-math``. What has no valid or test
rows gets some cut from its train rows, the same for every task, and a train row whose twin is held
out anywhere in the pool is left out: whatever tasks are drawn, they never train on it. A source
whose own name is ``noise`` (or begins so) is a pool only: tasks give it the target 0.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mixgym.envs.errors import ConfigError
from mixgym.envs.options import SourceOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.files import find_files
from mixgym.envs.sources.reading import read_rows
from mixgym.envs.sources.rows.row import Row

VARIABLE = "MIXGYM_DATA"
"""Environment variable that names the pool where nothing else does."""

ROLES = ("train", "valid", "test")
NOISE = "noise"
_DEPTH = 2
_CUT, _LEAST_CUT, _MOST_CUT = 0.1, 8, 200  # of the train rows, for a split that has no file

Splits = dict[str, tuple[Row, ...]]


@dataclass(frozen=True)
class PoolSource:
    """A source of the pool.

    Attributes:
        name: that tasks call it by.
        splits: its rows, by :data:`ROLES`; disjoint.
        origin: where it lies.
        stamp: sizes and times of its files, by which a change is noticed.
    """

    name: str
    splits: Mapping[str, tuple[Row, ...]]
    origin: str
    stamp: tuple[tuple[str, int, int], ...]

    @property
    def is_noise(self) -> bool:
        """Whether its name says that nothing in it is to be learnt."""
        return Path(self.origin).stem.startswith(NOISE)

    @cached_property
    def answers(self) -> bool:
        """Whether every row is a conversation: plain texts have no prompt and no answer."""
        return all(row.text is None for rows in self.splits.values() for row in rows)


@dataclass(frozen=True)
class Pool:
    """Sources by name, in the order of their names."""

    folder: str
    sources: Mapping[str, PoolSource]

    @cached_property
    def held_out(self) -> frozenset[tuple[object, ...]]:
        """What stands in a valid or test row of any source."""
        return frozenset(_held_out(source.splits for source in self.sources.values()))


def find_pool(folder: str | Path | None = None) -> Pool:
    """Read the sources in a folder.

    Args:
        folder: the pool; None: the one that the environment variable ``MIXGYM_DATA`` names.

    Raises:
        ConfigError: there is no such folder, or nothing in it.
        SourceError: a file cannot be read.
    """
    root = _root(folder)
    paths = list(_places(root))
    if not paths:
        raise ConfigError(
            f"--pool {root}: holds no source; give a folder with SOURCE/train.jsonl in it, or with "
            "JSONL files"
        )
    read = sorted((_read(root, path) for path in paths), key=lambda source: source.name)
    held = _held_out(source.splits for source in read)
    return Pool(str(root), {source.name: _without(source, held) for source in read})


def _root(folder: str | Path | None) -> Path:
    named = os.environ.get(VARIABLE) if folder is None else folder
    if not named:
        raise ConfigError(
            f"real tasks are drawn from a folder of sources: give --pool FOLDER, or set {VARIABLE}"
        )
    root = Path(named).expanduser()
    if not root.is_dir():
        where = VARIABLE if folder is None else "--pool"
        raise ConfigError(f"{where}={named}: there is no such folder (looked in {Path.cwd()})")
    return root


def _places(root: Path) -> Iterator[Path]:
    """Folders and files that are sources."""
    yield from sorted(path for path in root.glob("*.jsonl") if path.is_file())
    for depth in range(1, _DEPTH + 1):
        trains = sorted(root.glob("/".join(["*"] * depth) + "/train*.json*"))
        yield from dict.fromkeys(path.parent for path in trains if path.is_file())


def _read(root: Path, place: Path) -> PoolSource:
    name = re.sub(r"[\s./=]+", "-", str(place.relative_to(root).with_suffix("")))
    files = find_files(SourceOptions(path=str(place)), name).roles
    rows = read_rows(files, name).rows
    stats = [(path, path.stat()) for paths in files.values() for path in paths]
    stamp = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    return PoolSource(name, _split(name, rows), str(place), stamp)


def _split(name: str, rows: Mapping[str, Sequence[Row]]) -> Splits:
    """All three splits, those without a file cut from the train rows."""
    train = tuple(rows["train"])
    order = stream(0, "pool", name).permutation(len(train))
    size = min(_MOST_CUT, max(_LEAST_CUT, round(_CUT * len(train))), len(train) // 4)
    splits: Splits = {}
    for role in ROLES[1:]:
        if role in rows:
            splits[role] = tuple(rows[role])
        else:
            cut, order = order[:size], order[size:]
            splits[role] = tuple(train[i] for i in sorted(cut))
    return {"train": tuple(train[i] for i in sorted(order)), **splits}


def _held_out(splits: Iterator[Mapping[str, Sequence[Row]]]) -> set[tuple[object, ...]]:
    return {row.content for own in splits for role in ROLES[1:] for row in own[role]}


def _without(source: PoolSource, held: set[tuple[object, ...]]) -> PoolSource:
    """The source without train rows that are held out, and valid rows that are tested."""
    own = source.splits
    test = {row.content for row in own["test"]}
    splits = {
        "train": tuple(row for row in own["train"] if row.content not in held),
        "valid": tuple(row for row in own["valid"] if row.content not in test),
        "test": own["test"],
    }
    for role, rows in splits.items():
        if not rows:
            raise ConfigError(
                f"{source.origin}: no {role} rows are left that stand nowhere else; give it more, "
                "or take it out of the pool"
            )
    return PoolSource(source.name, splits, source.origin, source.stamp)
