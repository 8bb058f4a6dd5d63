r"""The plain template, for tokenizers without one of their own and under ``data.template: plain``.

Turns are joined by a newline; ``<bos>`` stands for what the tokenizer begins a text with, if it
does, and ``<eos>`` for its end token::

    <bos>System: You are brief.
    User: What is 2+3?
    Assistant:
    5<eos>

It knows system, user and assistant, and no tools. :func:`as_jinja` is the same as a chat template,
which is saved with the model, so that prompts are formed at inference as rows were.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixgym.envs.sources.rendering.rendered import (
    RefusedRowError,
    Rendered,
    Span,
    by_learning,
    plain_text,
)
from mixgym.envs.sources.rows.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HEADERS = {"system": "System: ", "user": "User: ", "assistant": "Assistant:\n"}
_SHOWN_CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class PlainTemplate:
    r"""The template of the module's docstring.

    Attributes:
        eos: the text of the end token.
        bos: what the tokenizer begins a text with, or nothing.

    Example:
        >>> row = Row((("user", "2+3"), ("assistant", "5")), None, {}, "rows.jsonl", 1)
        >>> PlainTemplate("<eos>").render(row).text
        'User: 2+3\nAssistant:\n5<eos>'
        >>> PlainTemplate("<eos>").render(row).spans
        ((21, 27),)
    """

    eos: str
    bos: str = ""

    def render(self, row: Row) -> Rendered:
        """The text of a row and the spans of its completions.

        Raises:
            RefusedRowError: it holds turns of tools, or calls.
        """
        if row.text is not None:
            return plain_text(row.text, self.eos)
        text, spans = self.bos, dict[int, Span]()
        for index, (role, content) in enumerate(row.messages):
            if role not in _HEADERS:
                raise RefusedRowError(
                    f"{row.where}: messages[{index}] has the role {role!r}, which the plain "
                    f"template does not know ({', '.join(_HEADERS)}); use a tokenizer whose chat "
                    "template does"
                )
            text += ("\n" if index else "") + _HEADERS[role]
            start = len(text)
            text += content
            if role == "assistant":
                text += self.eos
                spans[index] = (start, len(text))
        return Rendered(text, *by_learning(row, spans), left_out=_left_out(row))


def _left_out(row: Row) -> Counter[str]:
    """Further keys of turns, none of which is shown; a row with calls is refused."""
    found: Counter[str] = Counter()
    if not row.extras:
        return found
    for index, turn in enumerate(row.turns()):
        keys = set(turn) - {"role", "content"}
        calls = sorted(keys & {*_SHOWN_CALLS})
        if calls:
            raise RefusedRowError(
                f"{row.where}: messages[{index}] has {calls[0]}, which the plain template cannot "
                "show; use a tokenizer whose chat template can, or remove the turn"
            )
        found.update(keys)
    if row.extras.tools is not None:
        found["tools"] += 1
    return found


def as_jinja(tokenizer: "PreTrainedTokenizerFast", bos: str) -> str:
    """The plain template as a chat template of ``tokenizer``, which has an end token."""
    begin = "{{- bos_token }}" if bos and bos == tokenizer.bos_token else _literal(bos)
    branches = "".join(
        f"{{%- {'elif' if i else 'if'} message['role'] == '{role}' %}}"
        f"{{{{- {_quoted(header)} + message['content']{end} }}}}"
        for i, (role, header) in enumerate(_HEADERS.items())
        for end in [" + eos_token" if role == "assistant" else ""]
    )
    return (
        f"{begin}{{%- for message in messages %}}"
        "{%- if not loop.first %}{{- '\\n' }}{%- endif %}"
        f"{branches}"
        "{%- else %}{{- raise_exception('roles are system, user and assistant, not ' "
        "+ message['role']) }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '\\n' if messages }}"
        f"{{{{- {_quoted(_HEADERS['assistant'])} }}}}{{%- endif %}}"
    )


def _literal(text: str) -> str:
    return f"{{{{- {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    """A Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
