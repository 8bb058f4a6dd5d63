"""From a row to the text that is tokenised, and the spans of it that are completions.

Plain template, for tokenizers without a chat template and under ``data.template: plain``; turns
are joined by a newline and ``<eos>`` stands for the tokenizer's own::

    System: You are brief.
    User: What is 2+3?
    Assistant:
    5<eos>

A row of plain text is the text and ``<eos>``, all of it a completion.

The completion of an assistant turn is its content and what ends the turn (``<|im_end|>``, ...) up
to white space that the template adds behind it. With a chat template it is found by rendering
prefixes of the conversation: from where the assistant is prompted to where its turn ends. That
needs a template that leaves earlier turns as they were when later ones come; one that does not
(some cut the reasoning out of earlier turns) is refused. Nothing here counts tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.reading import Messages, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADVICE = "set data.template to plain, or give the tokenizer another chat template"
HEADERS = {"system": "System: ", "user": "User: ", "assistant": "Assistant:\n"}


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        text: what is tokenised.
        spans: (start, end) in characters of each completion, in order and apart.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class Template(Protocol):
    """Turns rows into text."""

    def render(self, row: Row) -> Rendered:
        """The text of a row and the spans of its completions."""
        ...


@dataclass(frozen=True)
class PlainTemplate:
    r"""The template of the module's docstring.

    Example:
        >>> row = Row((("user", "2+3"), ("assistant", "5")), None, {}, "rows.jsonl", 1)
        >>> PlainTemplate("<eos>").render(row)
        Rendered(text='User: 2+3\nAssistant:\n5<eos>', spans=((21, 27),))
    """

    eos: str

    def render(self, row: Row) -> Rendered:
        """The text of a row and the spans of its completions."""
        if row.text is not None:
            return _whole(row.text + self.eos)
        text, spans = "", []
        for role, content in row.messages:
            text += ("\n" if text else "") + HEADERS[role]
            start = len(text)
            text += content
            if role == "assistant":
                text += self.eos
                spans.append((start, len(text)))
        return Rendered(text, tuple(spans))


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template that a tokenizer brings along."""

    tokenizer: "PreTrainedTokenizerFast"
    source: str

    def render(self, row: Row) -> Rendered:
        """The text of a row and the spans of its completions.

        Raises:
            SourceError: the template refuses the row or rewrites earlier turns.
        """
        if row.text is not None:
            return _whole(row.text + eos_of(self.tokenizer))
        text = self._text(row, row.messages)
        spans = [
            self._span(row, text, index)
            for index, (role, _) in enumerate(row.messages)
            if role == "assistant"
        ]
        return Rendered(text, tuple(spans))

    def _span(self, row: Row, text: str, index: int) -> tuple[int, int]:
        """Where the turn ``index`` stands in ``text``."""
        before = self._prefix(row, text, index, prompt=False)
        prompted = self._prefix(row, text, index, prompt=True)
        end = self._prefix(row, text, index + 1, prompt=False)
        content = row.messages[index][1]
        start = text.find(content, prompted, end)
        if start < 0:
            content = content.strip()
            start = text.find(content, prompted, end)
        if start < 0:
            raise SourceError(
                f"source {self.source!r}: {row.where}: the chat template changes the text of "
                f"messages[{index}]; {ADVICE}"
            )
        tail = text[start + len(content) : end]
        closing = len(tail.rstrip()) or len(tail)
        # a template without a generation prompt puts the header inside the turn: leave it out
        return prompted if prompted > before else start, start + len(content) + closing

    def _prefix(self, row: Row, text: str, turns: int, prompt: bool) -> int:
        """Characters of ``text`` that the first turns take, with the assistant's prompt or not."""
        if turns == 0:
            return 0
        if turns == len(row.messages) and not prompt:
            return len(text)
        part = self._text(row, row.messages[:turns], prompt)
        if not text.startswith(part):
            raise SourceError(
                f"source {self.source!r}: {row.where}: the chat template renders the first "
                f"{turns} turns in another way once more follow, so the completions cannot be "
                f"told apart; {ADVICE}"
            )
        return len(part)

    def _text(self, row: Row, messages: Messages, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=prompt
                )
            )
        except (TemplateError, ValueError, TypeError, LookupError) as error:
            raise SourceError(
                f"source {self.source!r}: {row.where}: the chat template refuses the row "
                f"({error}); {ADVICE}"
            ) from error


def _whole(text: str) -> Rendered:
    return Rendered(text, ((0, len(text)),))


def choose_template(
    tokenizer: "PreTrainedTokenizerFast", template: Literal["auto", "plain"], source: str
) -> Template:
    """The tokenizer's chat template if it has one and it is wanted, else the plain one."""
    if template == "auto" and tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer, source)
    return PlainTemplate(eos_of(tokenizer))


def eos_of(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The text of the end-of-sequence token.

    Raises:
        SourceError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise SourceError(
            "the tokenizer has no eos token, so completions would never end; "
            "set tokenizer.eos_token before encoding"
        )
    return str(tokenizer.eos_token)
