"""Turns of ShareGPT's kind: ``from`` says who speaks, and ``value`` what.

=======================================  =============================================
from                                     turn
=======================================  =============================================
human, user                              user
gpt, chatgpt, bot, model, assistant      assistant
system                                   system
tool, observation, function_response     tool: never learnt
function_call, tool_call                 assistant, who calls: a JSON object, or several
=======================================  =============================================

Turns with a role and a content are taken as they are, and so are further keys of a turn.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixgym.envs.sources.rows.turns import MalformedError

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "assistant"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
_CALLS = ("function_call", "tool_call")


def as_messages(turns: Sequence[Any]) -> list[Any]:
    """The turns with role and content.

    Raises:
        MalformedError: nobody knows who speaks, or a call is no JSON object.
    """
    return [_as_message(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]


def _as_message(turn: Any, name: str) -> Any:
    if not isinstance(turn, dict) or turn.get("from") is None:
        return turn
    if turn.get("role") is not None and turn["role"] != turn["from"]:
        raise MalformedError(f"{name} has 'from' and 'role', and they differ; keep one")
    speaker, value = turn["from"], turn.get("value", turn.get("content"))
    rest = {k: v for k, v in turn.items() if k not in ("from", "value", "role", "content")}
    if speaker in _CALLS:
        return {**rest, "role": "assistant", "content": "", "tool_calls": _calls(value, name)}
    if not isinstance(speaker, str) or speaker.lower() not in _ROLES:
        known = ", ".join((*_ROLES, *_CALLS))
        raise MalformedError(f"{name} is from {speaker!r}; known: {known}")
    return {**rest, "role": _ROLES[speaker.lower()], "content": value}


def _calls(value: object, name: str) -> list[Mapping[str, Any]]:
    """Tool calls as chat templates take them."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and call.get("name") for call in calls):
        raise MalformedError(
            f'{name} calls a function, and its value is no JSON {{"name": ..., "arguments": ...}}'
        )
    return [{"type": "function", "function": call} for call in calls]
