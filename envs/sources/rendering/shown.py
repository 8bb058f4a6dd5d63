"""What a row holds and the text of a chat template does not show.

A key of a turn, or the row's tools, is shown if the text changes without it. Calls of tools, and
turns of tools, users and assistants, have to be shown; what else is left out is counted.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from mixgym.envs.sources.rendering.conversation import Writer
from mixgym.envs.sources.rendering.rendered import RefusedRowError, Span
from mixgym.envs.sources.rows.row import Row

_CALLS = ("tool_calls", "function_call")
TOOLS = ("tool", "function")
_OF_TOOLS = (
    "give the tokenizer a chat template that knows tools, or set data.malformed to skip such rows"
)
_THOUGHT = ("<think>", "</think>")


class Shown:
    """Looks for what is left out of a row's text.

    Args:
        template: that wrote it.
        row: that has turns.
        text: of all turns.

    Attributes:
        left_out: what is not shown -> how often.
    """

    def __init__(self, template: Writer, row: Row, text: str) -> None:
        self._template = template
        self._row = row
        self._text = text
        self.left_out: Counter[str] = Counter()

    def check_turns(self, spans: Mapping[int, Span]) -> None:
        """See that the content of every turn is there.

        Args:
            spans: of the assistant turns, by index.

        Raises:
            RefusedRowError: a turn that is no system turn is not there, or is changed.
        """
        for index, (role, content) in enumerate(self._row.messages):
            if role == "assistant":
                self._check_answer(index, content.strip(), self._text[slice(*spans[index])])
            elif role in TOOLS:
                if self._is_same_without(index):
                    self._refuse(f"leaves out messages[{index}] ({role})")
            elif not self._has(content):
                if role != "system":
                    self._template.refuse(
                        self._row, f"leaves out the text of messages[{index}], or changes it"
                    )
                self.left_out["text of system turns"] += 1

    def _refuse(self, problem: str) -> NoReturn:
        """Refuse what the plain template could not show either."""
        self._template.refuse(self._row, problem, advice=_OF_TOOLS)

    def _has(self, content: str) -> bool:
        if content in self._text or content.strip() in self._text:
            return True
        return "".join(content.split()) in "".join(self._text.split())

    def _is_same_without(self, index: int) -> bool:
        turns = self._row.turns()
        del turns[index]
        return self._writes(turns)

    def _writes(self, turns: list[dict[str, Any]], *, tools: bool = True) -> bool:
        """Whether other turns have the same text."""
        try:
            return self._template.write(self._row, turns, tools=tools) == self._text
        except RefusedRowError:  # it cannot do without, so it looks at it
            return False

    def _check_answer(self, index: int, content: str, found: str) -> None:
        if not content:
            return
        if content not in found:
            thought, marked, answer = content.rpartition(_THOUGHT[1])
            if not marked or answer.strip() not in found:
                self._template.refuse(self._row, f"changes the text of messages[{index}]")
            if thought.removeprefix(_THOUGHT[0]).strip() not in found:
                self.left_out["reasoning inside the content of earlier turns"] += 1

    def check_extras(self) -> None:
        """See that further keys of turns and the tools are there.

        Raises:
            RefusedRowError: calls are not.
        """
        turns = self._row.turns()
        for index, turn in enumerate(turns):
            for key in sorted(set(turn) - {"role", "content"}):
                less = {k: value for k, value in turn.items() if k != key}
                if not self._writes([*turns[:index], less, *turns[index + 1 :]]):
                    self._check_parts(key, turn[key])
                elif key in _CALLS:
                    self._refuse(f"leaves out the {key} of messages[{index}]")
                else:
                    self.left_out[key] += 1
        if self._row.extras.tools is not None and self._writes(turns, tools=False):
            self.left_out["tools"] += 1

    def _check_parts(self, key: str, value: Any) -> None:
        """Count calls whose names or arguments are not all in the text."""
        if key not in _CALLS:
            return
        calls = value if isinstance(value, list) else [value]
        if not all(_stands_in(leaf, self._text) for call in calls for leaf in _said(call)):
            self.left_out[f"parts of {key}"] += 1


def _said(call: Mapping[str, Any]) -> Iterator[Any]:
    """The name and the arguments of a call, down to single values."""
    function = call.get("function", call)
    if isinstance(function, Mapping):
        yield function.get("name", "")
        yield from _leaves(function.get("arguments", ""))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield value


def _stands_in(leaf: Any, text: str) -> bool:
    plain = str(leaf)
    forms = (plain, json.dumps(leaf), json.dumps(leaf, ensure_ascii=False))
    return any(form.strip('"') in text for form in forms)
