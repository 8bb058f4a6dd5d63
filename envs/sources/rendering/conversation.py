"""Where the completions of one conversation are in the text of a chat template.

Two ways, see :mod:`mixgym.envs.sources.rendering.chat`: by the text of the first turns, where the
template writes them alike whether more follow or not; and by words that stand for contents in the
text of all turns.
"""

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from mixgym.envs.sources.rendering.rendered import RefusedRowError, Span
from mixgym.envs.sources.rows.row import Row


class Writer(Protocol):
    """What a chat template does for a conversation, see ``ChatTemplate``."""

    def write(self, row: Row, turns: Any, *, tools: bool = True, prompt: bool = False) -> str:
        """The text of some turns."""
        ...

    def prompts_after(self, role: str, ask: Any) -> bool:
        """Whether the assistant is prompted behind a turn of a role."""
        ...

    def refuse(
        self, row: Row, problem: str, cause: Exception | None = None, advice: str = ""
    ) -> NoReturn:
        """Raise the error that a row calls for."""
        ...


class ConversationText:
    """A row's turns, their text, and the places of its completions.

    Args:
        template: that writes turns.
        row: that has turns.

    Attributes:
        text: of all turns.
        unended: completions without anything behind their content that could end them.

    Raises:
        RefusedRowError: the template refuses the row.
    """

    def __init__(self, template: Writer, row: Row) -> None:
        self._template = template
        self._row = row
        self._turns = row.turns()
        self.text = template.write(row, self._turns)
        self.unended = 0
        self._content, self._earlier = _absent_words(self.text)

    def span(self, index: int) -> Span:
        """Where the completion of an assistant turn is, white space behind its end left out.

        Raises:
            RefusedRowError: the template rewrites the turn, so that nobody can tell.
        """
        begin, end = self._by_prefixes(index) or self._by_words(index)
        content = self._row.messages[index][1].strip()
        closed = begin + len(self.text[begin:end].rstrip())
        if content and self.text.endswith(content, begin, closed) and self._is_open(index, closed):
            self.unended += 1
            # a line's end can be learnt; a space would take the header of the next turn along
            return begin, closed + self.text[closed:end].rfind("\n") + 1
        return begin, closed

    def _is_open(self, index: int, end: int) -> bool:
        """Whether what ends in ``end`` is the turn's content itself."""
        tail = self._around(self._with_words({index: self._content}), index)[1]
        return self.text.endswith(tail) and len(self.text) - len(tail) >= end

    # --- by the text of the first turns ---

    def _by_prefixes(self, index: int) -> Span | None:
        last = index + 1 == len(self._turns)
        end = len(self.text) if last else self._prefix(index + 1)
        if end is None:
            return None
        prompted = index > 0 and self._template.prompts_after(
            self._row.messages[index - 1][0], lambda: bool(self._prompt(index))
        )
        begin = self._prefix(index, prompt=True) if prompted else self._behind_header(index)
        return None if begin is None or begin > end else (begin, end)

    def _prefix(self, turns: int, *, prompt: bool = False) -> int | None:
        """Characters of the text that the first turns take; None if they are written otherwise."""
        part = self._first(turns, prompt=prompt)
        return len(part) if part is not None and self.text.startswith(part) else None

    def _first(self, turns: int, *, prompt: bool = False) -> str | None:
        """The text of the first turns alone; None if the template refuses them."""
        if turns == 0:
            return ""
        try:
            return self._template.write(self._row, self._turns[:turns], prompt=prompt)
        except RefusedRowError:  # some want a user turn at the end, or pairs
            return None

    def _prompt(self, index: int) -> str:
        """What the template writes to prompt the assistant before a turn, or nothing."""
        before = self._first(index)
        prompted = self._first(index, prompt=True)
        if not index or before is None or prompted is None or not prompted.startswith(before):
            return ""
        return prompted[len(before) :]

    def _behind_header(self, index: int) -> int | None:
        """Where the turn's header ends, if the turns before it are written as ever."""
        head = self._as_last(index)[0]
        if self.text.startswith(head):
            return len(head)
        shared = _shared(self.text, head)
        before = self._prefix(index)
        return shared if before is not None and shared >= before else None

    def _as_last(self, index: int) -> tuple[str, str]:
        """Text before and behind the content of a turn, if it were the last and said only that."""
        turns = [*self._turns[:index], {"role": "assistant", "content": self._content}]
        return self._around(self._template.write(self._row, turns), index)

    def _around(self, text: str, index: int) -> tuple[str, str]:
        head, found, tail = text.partition(self._content)
        if not found or self._content in tail:
            self._template.refuse(self._row, f"changes the text of messages[{index}]")
        return head, tail

    # --- by words for contents ---

    def _by_words(self, index: int) -> Span:
        head, tail = self._around(self._with_words({index: self._content}), index)
        if not self.text.endswith(tail):
            self._template.refuse(
                self._row,
                f"renders the turns behind messages[{index}] in another way for another text of "
                "that turn, so the completions cannot be told apart",
            )
        content_end = len(self.text) - len(tail)
        end = content_end + self._closing(index, tail)
        return min(self._behind_prompt(index, head), content_end), end

    def _with_words(self, words: Mapping[int, str]) -> str:
        """The text of all turns with other contents; assistant turns say nothing else then."""
        turns: list[dict[str, Any]] = list(self._turns)
        for index, word in words.items():
            role = self._row.messages[index][0]
            kept = {"role": role} if role == "assistant" else self._turns[index]
            turns[index] = {**kept, "content": word}
        return self._template.write(self._row, turns)

    def _closing(self, index: int, tail: str) -> int:
        """Characters behind the content that end the turn; 0 if nothing does."""
        try:
            closing = self._as_last(index)[1].rstrip()
        except RefusedRowError:
            return 0
        return len(closing) if tail.startswith(closing) else 0

    def _behind_prompt(self, index: int, head: str) -> int:
        """Where the completion begins, given all that stands before the turn's content."""
        begin, prompt, gap = len(head), self._prompt(index), self._gap(index)
        if prompt and prompt in gap and head.endswith(gap):
            begin += gap.rfind(prompt) + len(prompt) - len(gap)
        if self.text.startswith(head[:begin]):
            return begin
        return _shared(self.text, head[:begin])

    def _gap(self, index: int) -> str:
        """What stands between the content of the turn before and that of the turn."""
        if not index:
            return ""
        text = self._with_words({index - 1: self._earlier, index: self._content})
        return text.partition(self._earlier)[2].partition(self._content)[0]


def _absent_words(text: str) -> tuple[str, str]:
    """Two words that a text does not hold."""
    number = 0
    while f"qxv{number}q" in text:
        number += 1
    return f"qxv{number}qcontent", f"qxv{number}qearlier"


def _shared(first: str, second: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
