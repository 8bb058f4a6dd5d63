r"""The formats of rows: which columns are recognised, and what they become.

=============  ==============================  ==============================================
format         columns                         becomes
=============  ==============================  ==============================================
messages       messages                        the turns, ``[{"role", "content"}, ...]``
prompt         prompt, completion              a user turn and an assistant turn
instruction    instruction, output             likewise
question       question, answer                likewise
conversations  conversations                   ShareGPT's turns, ``[{"from", "value"}, ...]``
chosen         chosen, prompt                  the better answer of two, behind its prompt
text           text                            plain text without turns
=============  ==============================  ==============================================

``response`` stands for completion, output and answer where these are missing. See
:mod:`mixgym.envs.sources.rows.sharegpt` and :mod:`mixgym.envs.sources.rows.preferences` for the
formats of these names. Further columns:

- ``system`` (or ``system_prompt``): a system turn in front. Messages that begin with one of their
  own have to say the same.
- ``history``: earlier turns, a list of [user, assistant] pairs or of turns. They are context: their
  answers are not learnt.
- ``input``, ``context`` (pairs only): follow the user's text after an empty line.
- ``tools``: a list, or a text that holds one in JSON, for the chat template.
- a flag of :mod:`mixgym.envs.sources.rows.turns`, such as ``weight`` or ``train``: a row for which
  it is false or 0 is left out, and counted.

Every other column is named in a warning, with the number of rows that fill it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins.outside import check_signature
from mixgym.envs.plugins.registry import Registry
from mixgym.envs.sources.rows.preferences import is_system, preferred
from mixgym.envs.sources.rows.row import NO_EXTRAS, Extras, Messages
from mixgym.envs.sources.rows.sharegpt import as_messages
from mixgym.envs.sources.rows.turns import (
    IGNORE,
    LEARN,
    Conversation,
    MalformedError,
    encodable,
    kind,
    list_of_turns,
    plain_yes,
    text_of,
    tools_of,
)

_SYSTEM = ("system", "system_prompt")
_MEASURED = ("loss", "loss_scale")
_FLAGS = frozenset((*LEARN, *IGNORE))
AUTO = "auto"  # the word for: whichever fits most rows
SHARED = (*_SYSTEM, "history", "tools")
"""Columns that every format with turns takes."""


@dataclass(frozen=True)
class Parsed:
    """What a row says.

    Attributes:
        messages: its turns; empty for a plain text.
        text: its text, or None.
        extras: what the chat template gets beside the messages.
        muted: assistant turns that are not learnt.
        unused: what was seen and has no use, once for each time.
    """

    messages: Messages
    text: str | None
    extras: Extras = NO_EXTRAS
    muted: frozenset[int] = frozenset()
    unused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RowFormat:
    """How the rows of one format are recognised and taken apart.

    Attributes:
        required: for each part of a row the columns that it may stand in, the usual one first.
        parse: takes the row and the columns found, in the order of ``required``.
        optional: columns that are used where they are there.
        example: of a plug-in, a row that `mixgym check-plugin` reads; None: made up of texts.
    """

    required: tuple[tuple[str, ...], ...]
    parse: Callable[[Mapping[str, Any], tuple[str, ...]], Parsed]
    optional: tuple[str, ...] = ()
    example: Mapping[str, Any] | None = None

    @property
    def columns(self) -> str:
        """The usual columns, as errors name them."""
        return ", ".join(names[0] for names in self.required)

    @property
    def summary(self) -> str:
        """What marks the format, for ``mixgym list row-formats``."""
        parts = [" or ".join(names) for names in self.required]
        also = f"; also {', '.join(self.optional)}" if self.optional else ""
        return f"columns {', '.join(parts)}{also}"

    @cached_property
    def fields(self) -> frozenset[str]:
        """Every column that may hold a part of the row."""
        return frozenset(name for names in self.required for name in names) | {*self.optional}

    def find(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns of a row that hold its parts.

        Raises:
            MalformedError: one is missing.
        """
        found = []
        for names in self.required:
            there = [name for name in names if name in row]
            name = next((n for n in there if row[n] is not None), there[0] if there else None)
            if name is None:
                raise MalformedError(
                    f"no {names[0]!r} (columns {', '.join(map(repr, row)) or '(none)'})"
                )
            found.append(name)
        return tuple(found)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has every part; a null is none, as tables write it in every row."""
        return all(any(row.get(n) is not None for n in names) for names in self.required)


def parse_row(row: Mapping[str, Any], form: RowFormat, names: tuple[str, ...]) -> Parsed:
    """A row in its format, with the columns that have no use counted in ``unused``.

    Args:
        row: a JSON object.
        form: its format.
        names: the columns of its parts, see :meth:`RowFormat.find`.

    Raises:
        MalformedError: the row cannot be used.
    """
    parsed = form.parse(row, names)
    for key, value in row.items():
        if key in names or key in form.optional or value in (None, "", [], {}):
            continue
        if not _followed(key, value):
            parsed.unused.append(key)
    return parsed


def is_left_out(row: Mapping[str, Any]) -> bool:
    """Whether a row as a whole says that it is not to be learnt.

    Only what leaves no doubt counts: a ``loss`` or ``loss_scale`` may be a figure, so that a 0 in
    it says nothing.

    >>> is_left_out({"text": "a", "weight": "0"}), is_left_out({"text": "a", "loss": 0.0})
    (True, False)
    """
    return any(_said(key, row[key]) is False for key in row.keys() & _FLAGS)


def _said(key: str, value: object) -> bool | None:
    """Whether a flag of a row says that it is learnt; None where it says neither."""
    if key in _MEASURED and not isinstance(value, bool):
        return None
    said = plain_yes(value)
    return not said if key in IGNORE and said is not None else said


def _followed(key: str, value: object) -> bool:
    """Whether a flag of a row asks for what is done anyway."""
    return key in _FLAGS and _said(key, value) is True


def _parse_messages(row: Mapping[str, Any], names: tuple[str, ...]) -> Parsed:
    return _parse_turns(row, names[0], list_of_turns(row.get(names[0]), names[0]))


def _parse_sharegpt(row: Mapping[str, Any], names: tuple[str, ...]) -> Parsed:
    return _parse_turns(row, names[0], as_messages(list_of_turns(row.get(names[0]), names[0])))


def _parse_chosen(row: Mapping[str, Any], names: tuple[str, ...]) -> Parsed:
    context, learnt = preferred(row)
    talk = Conversation()
    system = _system(row)
    if system is not None and not is_system((*context, *learnt)):
        talk.say("system", system)
    for index, turn in enumerate(context):
        talk.add(turn, f"prompt[{index}]", context=True)
    for index, turn in enumerate(learnt):
        talk.add(turn, f"chosen[{len(context) + index}]")
    return _parsed(talk, row)


def _parse_turns(row: Mapping[str, Any], name: str, turns: list[Any]) -> Parsed:
    talk = Conversation()
    first = turns[0] if isinstance(turns[0], dict) else {}
    own = _text(first.get("content")) if first.get("role") == "system" else None
    system = _system(row)
    if own is not None and system is not None and own.strip() != system.strip():
        raise MalformedError(
            "the system column and the first turn are different system texts; keep one"
        )
    if own is not None:
        talk.add(turns[0], f"{name}[0]")
    elif system is not None:
        talk.say("system", system)
    _add_history(talk, row)
    begin = int(own is not None)
    for index, turn in enumerate(turns[begin:], start=begin):
        talk.add(turn, f"{name}[{index}]")
    if all(role != "assistant" for role, _ in talk.messages):
        raise MalformedError(f"{name!r} has no assistant turn, so nothing to train on")
    return _parsed(talk, row)


def _parse_pair(row: Mapping[str, Any], names: tuple[str, ...]) -> Parsed:
    talk = Conversation()
    system = _system(row)
    if system is not None:
        talk.say("system", system)
    _add_history(talk, row)
    parts = [text_of(row, names[0]), *(_optional(row, key) for key in ("input", "context"))]
    talk.say("user", "\n\n".join(part for part in parts if part is not None))
    talk.say("assistant", text_of(row, names[1]))
    return _parsed(talk, row)


def _text(content: object) -> str | None:
    """What a first turn says; what is no text is refused when the turn is added."""
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return None if content is None else str(content)


def _parsed(talk: Conversation, row: Mapping[str, Any]) -> Parsed:
    extras = talk.as_extras(tools_of(row.get("tools")))
    return Parsed(talk.as_messages(), None, extras, frozenset(talk.muted), talk.unused)


def _optional(row: Mapping[str, Any], name: str) -> str | None:
    """The text of a column that may be missing or empty."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise MalformedError(f"{name!r} is {kind(value)}; it must be a text or absent")
    return encodable(value, name) if value and value.strip() else None


def _system(row: Mapping[str, Any]) -> str | None:
    found = {text for name in _SYSTEM if (text := _optional(row, name)) is not None}
    if len(found) > 1:
        raise MalformedError(f"{' and '.join(map(repr, _SYSTEM))} differ; keep one")
    return next(iter(found), None)


def _add_history(talk: Conversation, row: Mapping[str, Any]) -> None:
    turns = row.get("history")
    if turns is None or turns == "":
        return
    if not isinstance(turns, list):
        raise MalformedError(f"'history' is {kind(turns)}; it must be a list of pairs or turns")
    for index, turn in enumerate(turns):
        name = f"history[{index}]"
        if not isinstance(turn, list):
            talk.add(turn, name, context=True)
            continue
        if len(turn) != 2:
            raise MalformedError(f"{name} has {len(turn)} texts; give a [user, assistant] pair")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            talk.add({"role": role, "content": text}, name, context=True)


def _pair(prompt: str, answer: str) -> RowFormat:
    columns = ("input", "context", *SHARED)
    return RowFormat(((prompt,), (answer, "response")), _parse_pair, columns)


def as_format(where: str, thing: Any, **declared: Any) -> RowFormat:
    """The format that a plug-in is: a :class:`RowFormat`, or with ``required`` its ``parse``.

    Raises:
        ConfigError: for anything else, beginning with ``where``.
    """
    if isinstance(thing, RowFormat):
        form = replace(thing, **declared)
    elif "required" in declared:
        form = RowFormat(**{"parse": thing, **declared})
    else:
        raise ConfigError(f"{where}: is {thing!r}; give a RowFormat(required, parse)")
    required: Any = form.required  # of somebody who may not check types
    if not required or any(isinstance(names, str) or not names for names in required):
        raise ConfigError(
            f"{where}: required is {form.required!r}; give for each part of a row the columns that "
            'it may stand in, such as (("title",), ("body", "text"))'
        )
    check_signature(form.parse, ("row", "names"), f"{where}: parse")
    return form


BUILT_IN = {
    "messages": RowFormat((("messages",),), _parse_messages, SHARED),
    "prompt": _pair("prompt", "completion"),
    "instruction": _pair("instruction", "output"),
    "question": _pair("question", "answer"),
    "conversations": RowFormat(
        (("conversations",),),
        _parse_sharegpt,
        SHARED,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ),
    "chosen": RowFormat(
        (("chosen",),),
        _parse_chosen,
        ("prompt", "rejected", *_SYSTEM, "tools"),
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "text": RowFormat((("text",),), lambda row, _: Parsed((), text_of(row, "text"))),
}

FORMATS: Registry[RowFormat] = Registry(
    "row format", "sources.NAME.format", "mixgym.row_formats", as_format, BUILT_IN, (AUTO,)
)
