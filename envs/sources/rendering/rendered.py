"""What a template makes of a row."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.rows.row import Row

Span = tuple[int, int]


class RefusedRowError(SourceError):
    """A template cannot show what a row says: the row is at fault as much as the template."""


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        text: what is tokenised.
        spans: (start, end) in characters of each completion that is learnt, in order and apart.
        muted: likewise, of each completion that the row says not to learn.
        bare: whether the tokens that the tokenizer begins a text with are still to be put in front.
        left_out: what the row holds and the text does not -> how often.
    """

    text: str
    spans: tuple[Span, ...]
    muted: tuple[Span, ...] = ()
    bare: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


class Template(Protocol):
    """Turns rows into text."""

    def render(self, row: Row) -> Rendered:
        """The text of a row and the spans of its completions."""
        ...


def plain_text(text: str, eos: str) -> Rendered:
    """A row of plain text: all of it is a completion, and it ends once."""
    whole = text if text.endswith(eos) else text + eos
    return Rendered(whole, ((0, len(whole)),), bare=True)


def by_learning(row: Row, spans: dict[int, Span]) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Spans of assistant turns by index, as (learnt, muted)."""
    learnt = tuple(span for index, span in spans.items() if index not in row.muted)
    return learnt, tuple(span for index, span in spans.items() if index in row.muted)
