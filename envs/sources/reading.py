r"""Rows of text from JSONL and JSON files, in whichever of the common formats they are written.

A source has one format, the one that most of its rows are in (ties: the earlier in the table):

=============  ================================  ==============================================
format         columns                           becomes
=============  ================================  ==============================================
messages       messages                          the turns, ``[{"role", "content"}, ...]``
prompt         prompt, completion                a user turn and an assistant turn
instruction    instruction, output, (input)      the user turn is instruction + "\n\n" + input
question       question, answer                  a user turn and an assistant turn
text           text                              plain text without turns
=============  ================================  ==============================================

A row is malformed if it is not a JSON object in UTF-8, is in another format than its source, has
an empty or wrongly typed field, a role other than system, user and assistant, or no assistant
turn. Blank lines are not rows. Whether a malformed row stops the reading or is skipped with a
count is ``data.malformed``. Nothing here splits, tokenises or grades.
"""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from mixgym.envs.errors import SourceError

Scalar = str | int | float | bool
Messages = tuple[tuple[str, str], ...]
Policy = Literal["error", "skip"]

ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        messages: (role, content) of each turn; empty for a plain text.
        text: the plain text, or None where there are messages.
        columns: the row's other scalar columns.
        file: where it was read.
        line: line of a JSONL file, or number of the row in a JSON list; both count from 1.
        unit: ``line`` or ``row``, what ``line`` counts.
    """

    messages: Messages
    text: str | None
    columns: Mapping[str, Scalar]
    file: str
    line: int
    unit: str = "line"

    @property
    def where(self) -> str:
        """The row's place, as errors name it."""
        return f"{self.file} {self.unit} {self.line}"

    @property
    def content(self) -> tuple[Messages, str | None]:
        """What makes two rows exact duplicates."""
        return self.messages, self.text


@dataclass(frozen=True)
class ReadRows:
    """All rows of a source, by the role of the file they stand in."""

    rows: Mapping[str, tuple[Row, ...]]
    row_format: str
    skipped: int = 0


class _MalformedError(Exception):
    """Why a row cannot be used."""


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


@dataclass(frozen=True)
class _RowFormat:
    """How the rows of one format are recognised and taken apart."""

    required: tuple[str, ...]
    parse: Callable[[Mapping[str, Any]], tuple[Messages, str | None]]
    optional: tuple[str, ...] = field(default=())

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.required + self.optional)


def read_rows(files: Mapping[str, Path], source: str, malformed: Policy = "error") -> ReadRows:
    """Read the files of a source.

    Args:
        files: for each role (``train``, ``valid``, ...) the file that plays it.
        source: the source's name, for errors.
        malformed: what to do with a row that cannot be used.

    Raises:
        SourceError: a file is missing or empty, no row is in a known format, a row is malformed
            (under the policy ``error``), or nothing is left after skipping.
    """
    records = {role: _read_file(path, source) for role, path in files.items()}
    row_format = _detect([record for part in records.values() for record in part], source)
    rows: dict[str, tuple[Row, ...]] = {}
    skipped = 0
    for role, part in records.items():
        rows[role], flaws = _parse_all(part, row_format, source, malformed)
        skipped += flaws
        if not rows[role]:
            _fail(source, f"every row of {files[role]} is malformed; correct the file")
    return ReadRows(rows, row_format, skipped)


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


# --- files ----------------------------------------------------------------------------------


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


def _text_of(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise _MalformedError(f"{name!r} is {_kind(value)}; it must be a text")
    if not value.strip():
        raise _MalformedError(f"{name!r} is empty")
    return _encodable(value, name)


def _encodable(value: str, name: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _MalformedError(f"{name!r} holds half of a surrogate pair") from None
    return value


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _parse_messages(row: Mapping[str, Any]) -> tuple[Messages, None]:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise _MalformedError(
            "'messages' is not a list of turns" if turns else "'messages' is empty"
        )
    messages = tuple(_parse_turn(turn, i) for i, turn in enumerate(turns))
    if all(role != "assistant" for role, _ in messages):
        raise _MalformedError("'messages' has no assistant turn, so nothing to train on")
    return messages, None


def _parse_turn(turn: object, index: int) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise _MalformedError(f"messages[{index}] is {_kind(turn)}; it must be an object")
    role = turn.get("role")
    if role not in ROLES:
        raise _MalformedError(f"messages[{index}] has the role {role!r}; known: {', '.join(ROLES)}")
    try:
        return role, _text_of(turn, "content")
    except _MalformedError as flaw:
        raise _MalformedError(f"messages[{index}]: {flaw}") from None


def _pair(prompt: str, completion: str) -> tuple[Messages, None]:
    return (("user", prompt), ("assistant", completion)), None


def _parse_instruction(row: Mapping[str, Any]) -> tuple[Messages, None]:
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise _MalformedError(f"'input' is {_kind(extra)}; it must be a text or absent")
    parts = [_text_of(row, "instruction")]
    if extra and extra.strip():
        parts.append(_encodable(extra, "input"))
    return _pair("\n\n".join(parts), _text_of(row, "output"))


FORMATS: Mapping[str, _RowFormat] = {
    "messages": _RowFormat(("messages",), _parse_messages),
    "prompt": _RowFormat(
        ("prompt", "completion"), lambda r: _pair(_text_of(r, "prompt"), _text_of(r, "completion"))
    ),
    "instruction": _RowFormat(("instruction", "output"), _parse_instruction, ("input",)),
    "question": _RowFormat(
        ("question", "answer"), lambda r: _pair(_text_of(r, "question"), _text_of(r, "answer"))
    ),
    "text": _RowFormat(("text",), lambda r: ((), _text_of(r, "text"))),
}


def _format_of(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    return next((n for n, f in FORMATS.items() if all(key in value for key in f.required)), None)


def _detect(records: Sequence[_Record], source: str) -> str:
    found = Counter(_format_of(record.value) for record in records if record.flaw is None)
    best = max(FORMATS, key=lambda name: found[name])
    if not found[best]:
        first = records[0]
        known = "; ".join(", ".join(f.required) for f in FORMATS.values())
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
    records: Sequence[_Record], row_format: str, source: str, malformed: Policy
) -> tuple[tuple[Row, ...], int]:
    rows = []
    for record in records:
        try:
            rows.append(_parse(record, row_format))
        except _MalformedError as flaw:
            _stop(record, source, malformed, str(flaw))
    return tuple(rows), len(records) - len(rows)


def _parse(record: _Record, row_format: str) -> Row:
    if record.flaw is not None:
        raise _MalformedError(record.flaw)
    value, form = record.value, FORMATS[row_format]
    if not isinstance(value, dict):
        raise _MalformedError(_no_object(value))
    missing = [key for key in form.required if key not in value]
    if missing:
        raise _MalformedError(
            f"no {missing[0]!r} (columns {', '.join(map(repr, value)) or '(none)'}), "
            f"but the source's rows are in the format {row_format!r}"
        )
    messages, text = form.parse(value)
    columns = {
        key: cell
        for key, cell in value.items()
        if key not in form.fields and isinstance(cell, str | int | float)
    }
    return Row(messages, text, columns, record.file, record.line, record.unit)


def _stop(record: _Record, source: str, malformed: Policy, flaw: str | None = None) -> None:
    if malformed == "error":
        _fail(
            source,
            f"{record.where}: {flaw or record.flaw}; "
            "correct the row, or set data.malformed to skip",
        )
