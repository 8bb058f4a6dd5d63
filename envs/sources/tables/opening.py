"""Which types of files are read, and how each is opened."""

from dataclasses import dataclass, field
from pathlib import Path

from mixgym.envs.sources.tables.arrow import CONVERTED, ArrowRecords
from mixgym.envs.sources.tables.compressed import CompressedLines, is_compressed
from mixgym.envs.sources.tables.records import JsonLines, JsonList, Records, fail

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", *CONVERTED, ".arrow")
"""Endings of files that are read."""


@dataclass(frozen=True)
class Opening:
    """How the files of a source are opened.

    Attributes:
        source: its name, for errors.
        folder: where converted files are kept; None: for this process only.
        names: files that errors call by another name than their path.
    """

    source: str
    folder: Path | None = None
    names: dict[Path, str] = field(default_factory=dict)

    def records(self, path: Path) -> Records:
        """The records of a file; nothing is read before they are asked for.

        Raises:
            SourceError: there is no such file, or its name does not tell its type.
        """
        ending = suffix_of(data_file(path, self.source))
        if is_compressed(path):
            return CompressedLines(path, self.source)
        if ending == ".jsonl":
            return JsonLines(path, self.source)
        if ending == ".json":
            return JsonList(path, self.source)
        return ArrowRecords(path, self.source, self.folder, self.names.get(path))


def suffix_of(path: Path) -> str:
    """The ending by which a file is read; empty if it is not.

    >>> suffix_of(Path("a/train-00000-of-00001.jsonl.gz")), suffix_of(Path("notes.txt"))
    ('.jsonl.gz', '')
    """
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The name of a file without its ending.

    >>> stem_of(Path("train.jsonl.gz")), stem_of(Path("train.v2.txt"))
    ('train', 'train.v2')
    """
    ending = suffix_of(path)
    return path.name.removesuffix(ending) if ending else path.stem


def data_file(path: Path, source: str) -> Path:
    """``path`` if it is a file of a type that can be read.

    Raises:
        SourceError: there is no such file, or its name does not tell its type.
    """
    if not path.is_file():
        fail(
            source,
            f"no file at {str(path)!r} (looked in {Path.cwd()}); correct the path: "
            "relative paths start at the current directory",
        )
    if not suffix_of(path):
        fail(
            source,
            f"{path} is of unknown type {path.suffix!r}; give a .jsonl file "
            "(a JSON object per line), a .json file (a list of objects), or one of "
            f"{', '.join(SUFFIXES[2:])}",
        )
    return path
