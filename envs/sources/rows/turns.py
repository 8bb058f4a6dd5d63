"""Turns of a conversation: what is theirs to say, and whether they are to be learnt.

Of a turn, ``role`` and ``content`` are text; a content may be a list of parts, all of them text. A
key of :data:`LEARN` or :data:`IGNORE` says whether an assistant turn is learnt; only a plain yes or
no is understood, and anything else is refused. Every other key (``reasoning_content``,
``tool_calls``, ...) is kept for the chat template, and what the template does not show is counted
there. Only assistant turns are learnt: what they say, and the calls of tools that they make, but
never a turn of a tool.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixgym.envs.sources.rows.row import NO_EXTRAS, Extras, Messages

_ROLES = ("system", "user", "assistant", "tool", "function")
LEARN = (
    "weight",
    "loss",
    "train",
    "training",
    "trainable",
    "is_trainable",
    "should_train",
    "do_train",
    "train_turn",
    "learn",
    "learnable",
    "loss_mask",
    "loss_weight",
    "loss_scale",
    "sample_weight",
    "train_on_turn",
    "compute_loss",
    "calculate_loss",
    "use_loss",
    "supervised",
)
"""Keys whose 0 or false says that a turn is not learnt."""
IGNORE = (
    "masked",
    "is_masked",
    "ignore",
    "ignore_loss",
    "no_loss",
    "skip_loss",
    "mask_loss",
    "no_train",
    "skip_train",
)
"""Keys whose 1 or true says so."""
_UNCLEAR = ("mask", "masking")
"""Keys that some write for the one and some for the other."""
_DETAILS = ("train_detail", "training_detail", "loss_detail", "token_weights")
"""Keys that would have parts of a turn learnt."""
_SPEAKING = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Keys that say something where an assistant's content is empty."""
_WORDS = {
    **dict.fromkeys(("true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}
_USUAL = {"role", "content"}
_KNOWN = {*_USUAL, *LEARN, *IGNORE}


class MalformedError(Exception):
    """Why a row cannot be used."""


@dataclass
class Conversation:
    """The turns of a row while they are gathered.

    Attributes:
        messages: (role, content) of each.
        extras: index -> further keys, for the chat template.
        muted: assistant turns that are not learnt.
        unused: what was seen and has no use, once for each time.
    """

    messages: list[tuple[str, str]] = field(default_factory=list)
    extras: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    muted: set[int] = field(default_factory=set)
    unused: list[str] = field(default_factory=list)

    def say(self, role: str, content: str, *, muted: bool = False) -> None:
        """Add a turn that has a content and nothing else."""
        if muted:
            self.muted.add(len(self.messages))
        self.messages.append((role, content))

    def add(self, turn: object, name: str, *, context: bool = False) -> None:
        """Add a turn as a row holds it.

        Args:
            turn: an object with role and content.
            name: how errors call it.
            context: whether it comes before what the row is about and is not learnt.

        Raises:
            MalformedError: it is no turn, or says something that is not understood.
        """
        if not isinstance(turn, dict):
            raise MalformedError(f"{name} is {kind(turn)}; it must be an object")
        role = turn.get("role")
        if role not in _ROLES:
            raise MalformedError(f"{name} has the role {role!r}; known: {', '.join(_ROLES)}")
        try:
            extra = _further(turn)
            content = _content(turn, role, extra)
            learnt = self._learnt(turn, role)
        except MalformedError as flaw:
            raise MalformedError(f"{name}: {flaw}") from None
        if extra:
            self.extras[len(self.messages)] = extra
        self.say(role, content, muted=role == "assistant" and (context or learnt is False))

    def _learnt(self, turn: Mapping[str, Any], role: str) -> bool | None:
        """Whether the turn says that it is to be learnt; None where it says nothing."""
        said = _learning_flags(turn)
        if not said:
            return None
        if len(set(said.values())) > 1:
            raise MalformedError(
                f"{' and '.join(map(repr, said))} contradict each other on whether the turn is "
                "learnt; keep one"
            )
        if role != "assistant":
            asked = [key for key, value in said.items() if value]
            self.unused += [f"{key} of {role} turns (never learnt)" for key in asked]
        return next(iter(said.values()), None)

    def as_messages(self) -> Messages:
        """The messages of a row."""
        return tuple(self.messages)

    def as_extras(self, tools: str | None) -> Extras:
        """The extras of a row."""
        if not self.extras and tools is None:
            return NO_EXTRAS
        turns = ((i, json.dumps(keys, ensure_ascii=False)) for i, keys in self.extras.items())
        return Extras(tuple(turns), tools)


def _learning_flags(turn: Mapping[str, Any]) -> dict[str, bool]:
    """By key, whether the turn says that it is to be learnt.

    Raises:
        MalformedError: a value that is neither yes nor no, or a key that can be read both ways.
    """
    said: dict[str, bool] = {}
    if turn.keys() == _USUAL:
        return said
    for key, value in turn.items():
        if value is None or key in _USUAL:
            continue
        if key in _UNCLEAR:
            raise MalformedError(
                f"{key!r} is read in two ways; write train: false for a turn that is not learnt"
            )
        if key in _DETAILS:
            raise MalformedError(f"{key!r}: parts of a turn cannot be chosen; remove the key")
        if key in LEARN:
            said[key] = _yes(key, value)
        elif key in IGNORE:
            said[key] = not _yes(key, value)
    return said


def _yes(key: str, value: object) -> bool:
    said = plain_yes(value)
    if said is None:
        raise MalformedError(
            f"{key!r} is {value!r}; a turn is learnt whole (1, true) or not at all (0, false): "
            "write one of these"
        )
    return said


def plain_yes(value: object) -> bool | None:
    """What a plain yes or no says, as a truth value, a number or a text; None for anything else.

    >>> plain_yes(0.0), plain_yes("False"), plain_yes("1.0"), plain_yes(0.5)
    (False, False, True, None)
    """
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


def _further(turn: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are left to the chat template, without empty ones."""
    if turn.keys() == _USUAL:
        return {}
    found = {k: v for k, v in turn.items() if k not in _KNOWN and v not in (None, "", [], {})}
    if "tool_calls" in found:
        found["tool_calls"] = [_call(call) for call in _list(found["tool_calls"], "tool_calls")]
    for key in ("reasoning_content", "reasoning", "thinking"):
        if key in found and not isinstance(found[key], str):
            raise MalformedError(f"{key!r} is {kind(found[key])}; it must be a text")
    for key, value in found.items():
        _check_unicode(value, key)
    return found


def _call(call: object) -> object:
    """A tool call whose arguments are an object, which is what chat templates write out."""
    if not isinstance(call, dict):
        raise MalformedError(f"'tool_calls' holds {kind(call)}; each call must be an object")
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": _call(function)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "arguments": value} if isinstance(value, dict) else call


def tools_of(value: object) -> str | None:
    """The JSON of a row's tools, which are a list, or a text that holds one.

    Raises:
        MalformedError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise MalformedError("'tools' is a text that holds no JSON list") from None
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    _check_unicode(value, "tools")
    return json.dumps(_list(value, "tools"), ensure_ascii=False)


def _list(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedError(f"{key!r} is {kind(value)}; it must be a list")
    return value


def _content(turn: Mapping[str, Any], role: str, extra: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, list):
        content = _joined(content)
    if content in (None, "") and role == "assistant" and any(key in extra for key in _SPEAKING):
        return ""
    return text_of({"content": content}, "content")


def _joined(parts: list[Any]) -> str:
    """The text of a content that is a list of parts, ``{"type": "text", "text": ...}`` each.

    >>> _joined([{"type": "text", "text": "What is "}, {"text": "this?", "type": "text"}, "!"])
    'What is this?!'
    """
    found = []
    for index, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) else part
        sort = part.get("type") or "text" if isinstance(part, dict) else "text"
        if sort != "text" or not isinstance(text, str):
            what = repr(sort) if sort != "text" else f"without a text ({kind(text)})"
            raise MalformedError(f"part {index} of 'content' is {what}; only texts are read")
        found.append(text)
    return "".join(found)


def list_of_turns(value: object, name: str) -> list[Any]:
    """The turns in a column: a list, or what some tables make of one, an object of lists.

    >>> list_of_turns({"role": ["user", "assistant"], "content": ["q", "a"]}, "messages")
    [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]

    Raises:
        MalformedError: it is neither, or empty.
    """
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        sizes = {len(cells) for cells in value.values()}
        if len(sizes) > 1:
            raise MalformedError(f"{name!r} holds lists of different lengths")
        value = [
            dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)
        ]
    if not isinstance(value, list) or not value:
        raise MalformedError(f"{name!r} is not a list of turns" if value else f"{name!r} is empty")
    return value


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The text in a column.

    Raises:
        MalformedError: it is missing, empty, or no text.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise MalformedError(f"{name!r} is {kind(value)}; it must be a text")
    if not value.strip():
        raise MalformedError(f"{name!r} is empty")
    return encodable(value, name)


def encodable(value: str, name: str) -> str:
    """``value``, if it can be written in UTF-8.

    Raises:
        MalformedError: it cannot.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedError(f"{name!r} holds half of a surrogate pair") from None
    return value


def _check_unicode(value: object, name: str) -> None:
    """Refuse texts anywhere inside a JSON value that cannot be written in UTF-8.

    Raises:
        MalformedError: there is one.
    """
    encodable(json.dumps(value, ensure_ascii=False), name)


def kind(value: object) -> str:
    """What a value is, as errors name it."""
    return "missing" if value is None else f"of type {type(value).__name__}"
