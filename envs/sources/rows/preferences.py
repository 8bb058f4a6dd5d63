"""Rows of preferences: of two answers, the one that was chosen is learnt, the other is not.

``chosen`` (and ``rejected``) is the answer as a text, as a turn or several, or the whole
conversation that ends in it; ``prompt`` is the text of the user, or the turns before. Where both
conversations are whole, they begin alike, and only what is chosen behind that is learnt; without a
``rejected`` conversation that is what the last user turn is followed by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mixgym.envs.sources.rows.sharegpt import as_messages
from mixgym.envs.sources.rows.turns import MalformedError, list_of_turns, text_of

Turns = list[Any]


def preferred(row: Mapping[str, Any]) -> tuple[Turns, Turns]:
    """The turns before the answer that was chosen, and those of the answer.

    Raises:
        MalformedError: there is no prompt, or no answer that goes on from it.
    """
    prompt = _prompt(row)
    if isinstance(row.get("chosen"), str):
        if not prompt:
            raise MalformedError("'chosen' is a text and there is no 'prompt' before it; give one")
        return prompt, [{"role": "assistant", "content": text_of(row, "chosen")}]
    turns = _turns(row, "chosen")
    start = _shared(turns, _turns(row, "rejected")) if _is_list(row.get("rejected")) else None
    if _role(turns[int(is_system(turns))] if len(turns) > 1 else turns[0]) == "assistant":
        if not prompt:
            raise MalformedError("'chosen' begins with an answer and there is no 'prompt'")
        return prompt, turns
    begin = _behind_last_user(turns) if start is None else start
    learnt = turns[begin:]
    if not any(_role(turn) == "assistant" for turn in learnt):
        raise MalformedError("'chosen' has no assistant turn of its own, so nothing to train on")
    return turns[:begin], learnt


def _prompt(row: Mapping[str, Any]) -> Turns:
    if row.get("prompt") in (None, "", []):
        return []
    if isinstance(row["prompt"], str):
        return [{"role": "user", "content": text_of(row, "prompt")}]
    return _turns(row, "prompt")


def _turns(row: Mapping[str, Any], name: str) -> Turns:
    value = row[name]
    if isinstance(value, dict) and not any(isinstance(cell, list) for cell in value.values()):
        value = [value]
    return as_messages(list_of_turns(value, name))


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _shared(turns: Sequence[Any], others: Sequence[Any]) -> int:
    """How many turns two conversations begin with alike, up to the answer at least."""
    pairs = enumerate(zip(turns, others, strict=False))
    alike = next((i for i, (a, b) in pairs if a != b), min(len(turns), len(others)))
    return min(alike, _behind_last_user(turns) if alike == len(turns) else alike)


def _behind_last_user(turns: Sequence[Any]) -> int:
    places = [index for index, turn in enumerate(turns) if _role(turn) == "user"]
    return places[-1] + 1 if places else 0


def _role(turn: object) -> object:
    return turn.get("role") if isinstance(turn, dict) else None


def is_system(turns: Sequence[Any]) -> bool:
    """Whether the first turn is the system's."""
    return bool(turns) and _role(turns[0]) == "system"
