"""A row of a source: its turns or its text, and what else it holds for the model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | bool
Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Extras:
    """What a row gives to a chat template beside roles and contents.

    Attributes:
        turns: (index of the turn, JSON object of its further keys), rising.
        tools: JSON list of the tools that the row's assistant may call, or None.
    """

    turns: tuple[tuple[int, str], ...] = ()
    tools: str | None = None

    def __bool__(self) -> bool:
        return bool(self.turns) or self.tools is not None


NO_EXTRAS = Extras()


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
        extras: what the chat template gets beside the messages.
        muted: indices of assistant turns that the row says not to learn.
    """

    messages: Messages
    text: str | None
    columns: Mapping[str, Scalar]
    file: str
    line: int
    unit: str = "line"
    extras: Extras = NO_EXTRAS
    muted: frozenset[int] = frozenset()

    @property
    def where(self) -> str:
        """The row's place, as errors name it."""
        return f"{self.file} {self.unit} {self.line}"

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two rows exact duplicates: all that is read, whether learnt or not."""
        plain = (self.messages, self.text)
        return (*plain, self.extras) if self.extras else plain

    def turns(self) -> list[dict[str, Any]]:
        """The turns as a chat template takes them, with their further keys."""
        turns: list[dict[str, Any]] = [{"role": r, "content": c} for r, c in self.messages]
        for index, keys in self.extras.turns:
            turns[index] |= json.loads(keys)
        return turns

    def tools(self) -> list[Any] | None:
        """The tools as a chat template takes them."""
        return None if self.extras.tools is None else list(json.loads(self.extras.tools))
