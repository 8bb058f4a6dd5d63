"""From records to rows: the format of a source, its own names of columns, and what is malformed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from mixgym.envs.errors import did_you_mean
from mixgym.envs.sources.rows.formats import AUTO, FORMATS, is_left_out, parse_row
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.rows.turns import MalformedError
from mixgym.envs.sources.tables.records import Record, Records, batches, fail

Policy = Literal["error", "skip"]


@dataclass(frozen=True)
class Columns:
    """A source's own names of columns.

    Attributes:
        names: column of the file -> the name that formats know.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, record: Record) -> Record:
        """The record with the names that formats know."""
        value = record.value
        if not self.names or not isinstance(value, dict):
            return record
        found = {self.names.get(key, key): cell for key, cell in value.items()}
        flaw = None
        if len(found) < len(value):
            flaw = self._doubled(value)
        return Record(record.file, record.line, record.unit, found, flaw)

    def _doubled(self, value: Mapping[str, Any]) -> str:
        own = next(
            own
            for own, name in self.names.items()
            if own in value and own != name and (name in value or self._others(value, own))
        )
        return f"columns calls {own!r} {self.names[own]!r}, and the row has that column too"

    def _others(self, value: Mapping[str, Any], own: str) -> bool:
        return any(o in value and n == self.names[own] and o != own for o, n in self.names.items())

    def check(self, seen: Mapping[str, int], source: str) -> None:
        """Refuse a name that no row has."""
        for own in self.names:
            if own not in seen:
                fail(source, f"columns: no row has a column {own!r}; {did_you_mean(own, seen)}")


def detect(parts: Sequence[Records], columns: Columns, source: str, wanted: str = AUTO) -> str:
    """The format that is wanted, or that most rows are in (ties: the earlier in the table)."""
    if wanted != AUTO and not columns.names:
        return wanted
    found: Counter[str | None] = Counter()
    seen: Counter[str] = Counter()
    first: Record | None = None
    for record in _all(parts):
        renamed = columns.renamed(record)
        first = first or renamed
        if columns.names and isinstance(record.value, dict):
            seen.update(record.value.keys())
        if renamed.flaw is None:
            found[_format_of(renamed.value)] += 1
    columns.check(seen, source)
    if wanted != AUTO:
        return wanted
    best = max(FORMATS, key=lambda name: found[name])
    if not found[best]:
        assert first is not None  # a file without records is refused when it is opened
        known = "; ".join(form.columns for form in FORMATS.values())
        fail(
            source,
            f"{first.where}: {first.flaw or _unknown(first.value)}; no row of the source is in a "
            f"known format: rename the columns to one of: {known}",
        )
    return best


def _all(parts: Sequence[Records]) -> Iterator[Record]:
    return chain.from_iterable(batch for part in parts for batch in batches(part))


def _format_of(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    return next((name for name, form in FORMATS.items() if form.fits(value)), None)


def _no_object(value: object) -> str:
    return f"the row is a JSON {'null' if value is None else type(value).__name__}, not an object"


def _unknown(value: object) -> str:
    if not isinstance(value, dict):
        return _no_object(value)
    return f"columns {', '.join(map(repr, value)) or '(none)'} are no known format"


def parse(record: Record, row_format: str, unused: Counter[str]) -> Row | None:
    """The row of a record; None if it says that it is not to be learnt.

    Args:
        record: with the names that formats know.
        row_format: of its source.
        unused: gets what the row fills without a use.

    Raises:
        MalformedError: it cannot be used.
    """
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


def stop(record: Record, source: str, malformed: Policy, flaw: str) -> None:
    """Raise the error of a malformed row, unless such rows are skipped."""
    if malformed == "error":
        fail(
            source,
            f"{record.where}: {flaw}; correct the row, or set data.malformed to skip",
        )
