"""Rows of text from JSONL and JSON files, in whichever of the known formats they are written.

A source has one format, the one that it names, or that most of its rows are in (ties: the earlier
in the table of :mod:`mixgym.envs.sources.rows.formats`). A role may be played by several files,
shards that are read in order.

A row is malformed if it is not a JSON object in UTF-8, is in another format than its source, has
an empty or wrongly typed field, an unknown role, or no assistant turn. Blank lines are not rows.
Whether a malformed row stops the reading or is skipped with a count is ``data.malformed``. Nothing
here splits, tokenises or grades.
"""

import codecs
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.rows.formats import AUTO, FORMATS, is_left_out, parse_row
from mixgym.envs.sources.rows.row import Messages as Messages  # where it was before
from mixgym.envs.sources.rows.row import Row as Row
from mixgym.envs.sources.rows.turns import MalformedError

Policy = Literal["error", "skip"]

SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class ReadRows:
    """All rows of a source, by the role of the file they stand in.

    Attributes:
        rows: by role.
        row_format: a name in :data:`mixgym.envs.sources.rows.formats.FORMATS`.
        skipped: malformed rows.
        left_out: rows that say themselves that they are not to be learnt.
        unused: columns and keys that have no use -> rows that fill them.
    """

    rows: Mapping[str, tuple[Row, ...]]
    row_format: str
    skipped: int = 0
    left_out: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Record:
    """A row before its format is known: a JSON value, or the reason why there is none."""

    file: str
    line: int
    unit: str
    value: Any = None
    flaw: str | None = None

    @property
    def where(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


def read_rows(
    files: Mapping[str, Path | Sequence[Path]],
    source: str,
    malformed: Policy = "error",
    row_format: str = AUTO,
) -> ReadRows:
    """Read the files of a source.

    Args:
        files: for each role (``train``, ``valid``, ...) the file that plays it, or its shards.
        source: the source's name, for errors.
        malformed: what to do with a row that cannot be used.
        row_format: the format that the rows are in; ``auto``: the one that most fit.

    Raises:
        SourceError: a file is missing or empty, no row is in a known format, a row is malformed
            (under the policy ``error``), or nothing is left after skipping.
    """
    records = {role: _read_files(paths, source) for role, paths in files.items()}
    if row_format == AUTO:
        row_format = _detect([record for part in records.values() for record in part], source)
    counts: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    rows: dict[str, tuple[Row, ...]] = {}
    for role, part in records.items():
        rows[role] = tuple(_parse_all(part, row_format, source, malformed, counts, unused))
        if not rows[role]:
            fate = "left out by its weight" if counts["left out"] else "malformed"
            _fail(source, f"every row of {_names(files[role])} is {fate}; correct the file")
    return ReadRows(rows, row_format, counts["skipped"], counts["left out"], unused)


def _names(paths: Path | Sequence[Path]) -> str:
    return str(paths) if isinstance(paths, Path) else ", ".join(map(str, paths))


def data_file(path: Path, source: str) -> Path:
    """``path`` if it is a file of a type that can be read.

    Raises:
        SourceError: there is no such file, or its name does not tell its type.
    """
    if not path.is_file():
        _fail(
            source,
            f"no file at {str(path)!r} (looked in {Path.cwd()}); correct the path: "
            "relative paths start at the current directory",
        )
    if path.suffix not in SUFFIXES:
        _fail(
            source,
            f"{path} is of unknown type {path.suffix!r}; give a .jsonl file "
            "(a JSON object per line) or a .json file (a list of objects)",
        )
    return path


def _fail(source: str, problem: str) -> NoReturn:
    raise SourceError(f"source {source!r}: {problem}")


def _read_files(paths: Path | Sequence[Path], source: str) -> list[_Record]:
    shards = [paths] if isinstance(paths, Path) else paths
    return [record for path in shards for record in _read_file(path, source)]


def _read_file(path: Path, source: str) -> list[_Record]:
    data = data_file(path, source).read_bytes().removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        _fail(source, f"{path} is empty; give it rows or leave it out")
    records = _json_list(path, data, source) if path.suffix == ".json" else None
    if records is None:
        records = _json_lines(path, data)
    if not records:
        _fail(source, f"{path} holds no rows; give it rows or leave it out")
    return records


def _json_lines(path: Path, data: bytes) -> list[_Record]:
    records = []
    start = 0
    # only \n ends a line: str.splitlines would cut texts at U+2028 and its like
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            records.append(_json_line(str(path), number, start, line))
        start += len(line) + 1
    return records


def _json_line(file: str, number: int, start: int, line: bytes) -> _Record:
    try:
        return _Record(file, number, "line", json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        flaw = _not_utf8(line, error, start)
    except (ValueError, RecursionError) as error:
        flaw = f"not valid JSON ({error})"
    return _Record(file, number, "line", flaw=flaw)


def _json_list(path: Path, data: bytes, source: str) -> list[_Record] | None:
    """The rows of a JSON file; None if it holds one object per line after all."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(source, f"{path} line {line}: {_not_utf8(data, error, 0)}")
    except (ValueError, RecursionError) as error:
        if not data.lstrip().startswith(b"["):
            return None
        _fail(source, f"{path} is not valid JSON ({error}); correct it there")
    if isinstance(value, dict):
        if not isinstance(value.get("data"), list):
            return None
        value = value["data"]
    if not isinstance(value, list):
        _fail(
            source,
            f"{path} holds a JSON {type(value).__name__}; give a list of objects "
            'or {"data": [...]}, or name the file .jsonl if it has an object per line',
        )
    return [_Record(str(path), i, "row", row) for i, row in enumerate(value, start=1)]


def _not_utf8(data: bytes, error: UnicodeDecodeError, start: int) -> str:
    return (
        f"not UTF-8: byte 0x{data[error.start]:02x} at offset {start + error.start} of the file; "
        "convert the file (iconv -f OLD -t UTF-8)"
    )


# --- formats --------------------------------------------------------------------------------


def _format_of(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    return next((name for name, form in FORMATS.items() if form.fits(value)), None)


def _detect(records: Sequence[_Record], source: str) -> str:
    found = Counter(_format_of(record.value) for record in records if record.flaw is None)
    best = max(FORMATS, key=lambda name: found[name])
    if not found[best]:
        first = records[0]
        known = "; ".join(form.columns for form in FORMATS.values())
        _fail(
            source,
            f"{first.where}: {first.flaw or _unknown(first.value)}; no row of the source is in a "
            f"known format: rename the columns to one of: {known}",
        )
    return best


def _no_object(value: object) -> str:
    return f"the row is a JSON {'null' if value is None else type(value).__name__}, not an object"


def _unknown(value: object) -> str:
    if not isinstance(value, dict):
        return _no_object(value)
    return f"columns {', '.join(map(repr, value)) or '(none)'} are no known format"


def _parse_all(
    records: Sequence[_Record],
    row_format: str,
    source: str,
    malformed: Policy,
    counts: Counter[str],
    unused: Counter[str],
) -> list[Row]:
    """The rows that can be used; the others, and what is not used of these, are counted."""
    rows = []
    for record in records:
        try:
            row = _parse(record, row_format, unused)
        except MalformedError as flaw:
            _stop(record, source, malformed, str(flaw))
            counts["skipped"] += 1
            continue
        if row is None:
            counts["left out"] += 1
        else:
            rows.append(row)
    return rows


def _parse(record: _Record, row_format: str, unused: Counter[str]) -> Row | None:
    """The row of a record; None if it says that it is not to be learnt."""
    if record.flaw is not None:
        raise MalformedError(record.flaw)
    value, form = record.value, FORMATS[row_format]
    if not isinstance(value, dict):
        raise MalformedError(_no_object(value))
    try:
        names = form.find(value)
    except MalformedError as flaw:
        raise MalformedError(
            f"{flaw}, but the source's rows are in the format {row_format!r}"
        ) from None
    parsed = parse_row(value, form, names)
    if is_left_out(value):
        return None
    if parsed.unused:
        unused.update(parsed.unused)
    columns = {
        key: cell
        for key, cell in value.items()
        if key not in form.fields and isinstance(cell, str | int | float)
    }
    return Row(
        parsed.messages,
        parsed.text,
        columns,
        record.file,
        record.line,
        record.unit,
        parsed.extras,
        parsed.muted,
    )


def _stop(record: _Record, source: str, malformed: Policy, flaw: str) -> None:
    if malformed == "error":
        _fail(
            source,
            f"{record.where}: {flaw}; correct the row, or set data.malformed to skip",
        )
