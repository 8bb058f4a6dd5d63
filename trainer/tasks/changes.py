"""What a task does to a source's rows: takes some, shuffles answers, repeats, lengthens prompts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mixgym.envs.sources.rows.row import Row

Rows = tuple[Row, ...]


def take(rows: Sequence[Row], count: int, rng: np.random.Generator) -> Rows:
    """``count`` of the rows, drawn without replacement, in their order."""
    drawn = np.sort(rng.permutation(len(rows))[:count])
    return tuple(rows[i] for i in drawn)


def repeat(rows: Sequence[Row], distinct: int, count: int, rng: np.random.Generator) -> Rows:
    """``count`` rows, ``distinct`` of them different, each as often as the next or once more.

    Rows that say the same count as one, so that there may be fewer.
    """
    different = list({row.content: row for row in rows}.values())
    few = take(different, distinct, rng)
    return tuple(few[i % len(few)] for i in range(count))


def shuffle_answers(rows: Sequence[Row], rng: np.random.Generator) -> Rows:
    """The rows, each with the last answer of another one, never with its own words.

    Rows of the same answer are put side by side, groups in random order, and answers are handed on
    by the size of the largest group: nobody gets one of his own group, unless that holds more than
    half of all rows. Those that would are left out.
    """
    answers = [_answer(row) for row in rows]
    groups: dict[str, list[int]] = {}
    for i in rng.permutation(len(rows)):
        groups.setdefault(answers[i], []).append(int(i))
    order = [i for group in groups.values() for i in group]
    step = max(map(len, groups.values()), default=0)
    given = {i: answers[order[(place + step) % len(order)]] for place, i in enumerate(order)}
    return tuple(
        _with_answer(row, given[i]) for i, row in enumerate(rows) if given[i] != answers[i]
    )


def lengthen_prompts(
    rows: Sequence[Row], donors: Sequence[Row], characters: int, rng: np.random.Generator
) -> Rows:
    """The rows, with texts of other rows before their first prompt.

    Args:
        rows: conversations.
        donors: whose texts are used, of the same split.
        characters: how many of them.
        rng: draws which.
    """
    return tuple(_with_context(row, _context(donors, characters, rng)) for row in rows)


def _answer(row: Row) -> str:
    """The last answer of a conversation."""
    return next(content for role, content in reversed(row.messages) if role == "assistant")


def _with_answer(row: Row, answer: str) -> Row:
    last = max(i for i, (role, _) in enumerate(row.messages) if role == "assistant")
    turns = row.messages
    return replace(row, messages=(*turns[:last], ("assistant", answer), *turns[last + 1 :]))


def _context(donors: Sequence[Row], characters: int, rng: np.random.Generator) -> str:
    """Texts of donors in a row, cut at their length."""
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        parts.append(_text(donors[int(rng.integers(len(donors)))]))
    return "\n\n".join(parts)[:characters].rstrip()


def _text(row: Row) -> str:
    text = row.text if row.text is not None else "\n".join(said for _, said in row.messages)
    return text if text.strip() else "..."


def _with_context(row: Row, context: str) -> Row:
    """The row with a text before what its first user says, or as such a turn if nobody does."""
    turns = row.messages
    first = next((i for i, (role, _) in enumerate(turns) if role == "user"), None)
    if first is None:
        return row
    said = f"{context}\n\n{turns[first][1]}"
    return replace(row, messages=(*turns[:first], ("user", said), *turns[first + 1 :]))
