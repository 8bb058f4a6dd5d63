"""A first configuration for the data files in a folder, with a comment on each of them.

A folder that has a train file, or that ``datasets`` saved, is one source. Of any other folder,
every file, every set of numbered shards and every folder with files is one. What cannot be read is
written as a comment that says why.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.options import SourceOptions
from mixgym.envs.sources.cached.keys import folder_of
from mixgym.envs.sources.files import find_files
from mixgym.envs.sources.reading import Reading, read_rows
from mixgym.envs.sources.tables.opening import stem_of, suffix_of
from mixgym.envs.sources.tables.saved import is_saved, is_saved_dict

NAME = "mixgym.yaml"

_HEAD = """\
# Written by `mixgym init {folder}`: the sources that were found there, and the keys that are set
# most often, with their defaults. See what a run would do with:   mixgym plan {out}
# All keys: README, or `mixgym schema > mixgym.schema.json`, which editors take by the next line.
# yaml-language-server: $schema=mixgym.schema.json

sources:
"""
_TAIL = """
model:
  name: 0.1m                 # a preset of random weights (0.1m, 1m, 5m), a folder, or a hub name

data:
  # max_length: 256          # tokens in a row, at most
  # strata: 4                # difficulty strata per source
  # strata_by: length        # or column:NAME, or by a model: loss, ifd
  held_out_fraction: 0.05    # of a source without held-out files, for each of three splits

training:
  steps: 300                 # the budget; or tokens, or supervised_tokens
  interval: 10               # optimiser steps between two decisions
  # learning_rate: 1e-3      # left out: by the model

agent:
  name: uniform              # who decides: see `mixgym list algorithms`

run:
  dir: {run}
"""


@dataclass(frozen=True)
class _Found:
    """What may be a source.

    Attributes:
        name: in the configuration.
        path: as it is written.
        about: what it holds; None: it cannot be read.
        flaw: why it cannot.
    """

    name: str
    path: str
    about: str | None = None
    flaw: str = ""


def write_first_config(folder: Path, out: Path | None = None) -> Path:
    """Write a configuration for what lies in a folder.

    Args:
        folder: with data files.
        out: the file to write; None: ``mixgym.yaml`` in the folder.

    Returns:
        The file.

    Raises:
        ConfigError: there is no such folder, nothing in it can be read, or the file is there.
    """
    target = folder / NAME if out is None else out
    if not folder.expanduser().is_dir():
        raise ConfigError(f"mixgym init {folder}: there is no such folder (looked in {Path.cwd()})")
    if target.exists():
        raise ConfigError(f"{target}: is there already, and is not overwritten; give --out")
    found = _named(_look(place) for place in _places(folder.expanduser()))
    if not any(source.about for source in found):
        why = "; ".join(source.flaw for source in found) or "no file of a type that is read"
        raise ConfigError(f"mixgym init {folder}: holds no source ({why})")
    text = _HEAD.format(folder=folder, out=target) + "".join(map(_written, found))
    run = json.dumps(f"runs/{_usable(folder.resolve().name)}", ensure_ascii=False)
    text += _TAIL.format(run=run)
    try:
        with target.open("x", encoding="utf-8") as file:  # never over a file of that name
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{target}: is there already, and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error})") from None
    return target


def _places(folder: Path) -> Iterator[Path]:
    """Files and folders that may be sources; of numbered shards the first."""
    if _is_one(folder):
        yield folder
        return
    seen: set[str] = set()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if _is_one(path) or any(_is_data(inner) for inner in path.iterdir()):
                yield path
        elif _is_data(path) and (kin := _kin(path)) not in seen:
            seen.add(kin)
            yield path


def _is_one(folder: Path) -> bool:
    """Whether a folder is a single source by its names."""
    if is_saved(folder) or is_saved_dict(folder):
        return True
    return any(_is_data(p) and re.match(r"train\b|train_\d", p.name) for p in folder.iterdir())


def _is_data(path: Path) -> bool:
    return path.is_file() and bool(suffix_of(path)) and not path.name.startswith(".")


def _kin(path: Path) -> str:
    """What the shards of one set have in common."""
    return re.sub(r"[-_.]\d+-of-\d+$", "-*", stem_of(path)) + suffix_of(path)


def _look(place: Path) -> _Found:
    name, written = _usable(stem_of(place) if place.is_file() else place.name), str(place)
    if place.is_file() and "*" in (kin := _kin(place)):
        name, written = _usable(kin.partition("-*")[0]), str(place.with_name(kin))
    try:
        options = SourceOptions(path=written)
        files = find_files(options, name)
        how = Reading("skip", cache=folder_of("auto"), names=files.names)
        read = read_rows(files.roles, name, how=how)
    except SourceError as flaw:
        return _Found(name, written, flaw=str(flaw).partition(": ")[2])
    return _Found(name, written, _about(read.row_format, read.rows, read.skipped, read.unused))


def _about(
    row_format: str, rows: Mapping[str, object], skipped: int, unused: Mapping[str, int]
) -> str:
    """What a source holds, in a line."""
    sizes = ", ".join(f"{role} {len(part):,}" for role, part in rows.items())  # type: ignore[arg-type]
    words = [f"rows: {sizes}; format: {row_format}"]
    if skipped:
        words.append(f"{skipped:,} malformed (data.malformed: skip leaves them out)")
    if unused:
        words.append(f"not used: {', '.join(list(unused)[:6])}")
    return "; ".join(words)


def _named(sources: Iterator[_Found]) -> list[_Found]:
    """The sources under names of their own."""
    found: dict[str, _Found] = {}
    for source in sources:
        name, number = source.name, 2
        while name in found:
            name, number = f"{source.name}-{number}", number + 1
        found[name] = _Found(name, source.path, source.about, source.flaw)
    return list(found.values())


def _usable(name: str) -> str:
    """A name without what is kept for keys, tags and overrides."""
    return re.sub(r"[\s./=]+", "-", name).strip("-") or "data"


def _written(source: _Found) -> str:
    name, path = (json.dumps(word, ensure_ascii=False) for word in (source.name, source.path))
    if source.about is None:
        flaw = " ".join(source.flaw.split())
        return f"  # {name}: {{path: {path}}}\n  #   cannot be read: {flaw}\n"
    return (
        f"  {name}:  # {source.about}\n"
        f"    path: {path}\n"
        "    # target: 1.0          # weight in rewards and evaluation; 0: a pool only\n"
    )
