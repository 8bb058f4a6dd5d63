"""Data sets of the library ``datasets``: folders of ``save_to_disk``, and names of the hub.

Both end as Arrow files, which are mapped into memory. What the hub gives is kept by the library in
its own cache; without network (or with ``HF_HUB_OFFLINE=1``) it is taken from there. A folder that
is laid out like a data set of the hub does as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mixgym.envs.sources.tables.arrow import quiet_datasets
from mixgym.envs.sources.tables.records import fail

_STATE, _DICT = "state.json", "dataset_dict.json"


def is_saved(path: Path) -> bool:
    """Whether a folder holds one data set of ``save_to_disk``."""
    return (path / _STATE).is_file() and not is_saved_dict(path)


def is_saved_dict(path: Path) -> bool:
    """Whether a folder holds data sets of ``save_to_disk`` by split."""
    return (path / _DICT).is_file()


def saved_files(path: Path, source: str) -> tuple[Path, ...]:
    """The Arrow files of a data set that was saved to disk, in order."""
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        files = tuple(path / file["filename"] for file in state["_data_files"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        fail(source, f"{path / _STATE} cannot be read ({error}); save the data set anew")
    if state.get("_indices_files"):
        fail(source, f"{path}: its rows are chosen by an index; save it with flatten_indices()")
    for file in files:
        if not file.is_file():
            fail(source, f"{path} is incomplete: {file.name} is missing; save the data set anew")
    return files


def saved_splits(path: Path, source: str) -> dict[str, tuple[Path, ...]]:
    """By split, the Arrow files of data sets that were saved to disk together."""
    try:
        splits = json.loads((path / _DICT).read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        fail(source, f"{path / _DICT} cannot be read ({error}); save the data sets anew")
    return {split: saved_files(path / split, source) for split in splits}


def hub_splits(
    name: str, config: str | None, split: str | None, revision: str | None, source: str
) -> dict[str, tuple[Path, ...]]:
    """By split, the Arrow files of a data set of the hub.

    Args:
        name: on the hub, or a folder that is laid out like one of its data sets.
        config: one of its configurations; None: the only one.
        split: the split that is wanted; None: all.
        revision: branch, tag or commit; None: the main branch.
        source: name of the source, for errors.

    Raises:
        SourceError: it cannot be had, or has no such configuration or split.
    """
    import datasets

    if split is not None and not split.replace("_", "").replace("-", "").replace(".", "").isalnum():
        fail(source, f"split={split}: give the name of a split; parts of one are not known here")
    where = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        with quiet_datasets():
            found: Mapping[str, Any] = datasets.load_dataset(where, config, revision=revision)
    except Exception as error:  # the library raises of every kind, each with its own words
        _refuse(name, error, source)
    return {
        str(part): tuple(Path(file["filename"]) for file in data.cache_files)
        for part, data in found.items()
    }


def _refuse(name: str, error: Exception, source: str) -> NoReturn:
    """Say in one line why a data set of the hub cannot be had."""
    said = " ".join(str(error).split())
    what = f"hub={name}"
    if isinstance(error, ConnectionError):
        fail(
            source,
            f"{what}: cannot be reached, and is not in the cache of datasets; connect, or fetch it "
            "before where there is a network (datasets.load_dataset), or give a folder",
        )
    if "Config name is missing" in said or "BuilderConfig" in said:
        fail(source, f"{what}: {said.partition(' Example of usage')[0]}; give config")
    fail(source, f"{what}: {said or type(error).__name__}; correct hub, config or revision")
