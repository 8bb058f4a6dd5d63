"""Rows to token sequences with labels.

Each text is tokenised once, whole, and a token is supervised if any of its characters belongs to
a completion (``labels: completions``) or always (``labels: all``). Padding ids play no part, so a
tokenizer whose pad is its eos does no harm. The first token of a row is never supervised: nothing
predicts it. Under ``completions``, tokens behind the last completion are dropped, as no loss
depends on them.

A row over ``max_length`` tokens is, by policy, an error, skipped with a count, or truncated:

- the start is cut, so that the last completion stays whole, with as much before it as fits;
  completions of earlier turns may go, and their supervised tokens are counted;
- if the last completion does not fit behind one token of its prompt, it keeps that token and its
  own beginning, and its end is cut; a row that is all completion (plain text) keeps its beginning.

Nothing here decides which rows are read or how hard they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import SourceError
from mixgym.envs.options import DataOptions
from mixgym.envs.sources.encoded.outcome import (
    NO_SUPERVISED,
    REFUSED,
    SKIPPED,
    TRUNCATED,
    UNANSWERED,
    Encoded,
    Outcome,
    join_encoded,
)
from mixgym.envs.sources.encoded.outcome import Encoding as Encoding  # what rows become
from mixgym.envs.sources.rendering.rendered import RefusedRowError, Rendered, Template
from mixgym.envs.sources.rendering.special_tokens import Beginning, beginning_of
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.tables.table import Rows
from mixgym.envs.sources.templates import choose_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_Bools = NDArray[np.bool_]

BATCH_ROWS = 256
"""Rows tokenised at a time: bounds the memory that offsets take as Python objects."""


def encode_rows(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerFast", data: DataOptions, source: str
) -> Encoding:
    """Tokenise, label and truncate rows.

    Args:
        rows: the rows of one split.
        tokenizer: a fast tokenizer with an eos token.
        data: the options of template, labels, max_length and over_long.
        source: the source's name, for errors.

    Raises:
        SourceError: the chat template cannot be used, or a row is over-long under ``error``.
    """
    encoder = Encoder(tokenizer, data, source)
    parts = [encoder.encode(rows[i : i + BATCH_ROWS]) for i in range(0, len(rows), BATCH_ROWS)]
    whole = join_encoded(parts or [encoder.encode([])])
    return whole.select(Rows.of(rows), np.arange(len(rows)))


class Encoder:
    """Encodes rows, a batch at a time.

    Args:
        tokenizer: a fast tokenizer with an eos token.
        data: the options of template, labels, max_length and over_long.
        source: the source's name, for errors.

    Raises:
        SourceError: the chat template cannot be used.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", data: DataOptions, source: str
    ) -> None:
        self._tokenizer = tokenizer
        self._data = data
        self._source = source
        self._template = choose_template(tokenizer, data.template)
        self._beginning = beginning_of(tokenizer)

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokenise, label and truncate some rows.

        Raises:
            SourceError: a row is over-long under ``error``, or refused by the template.
        """
        outcome = Outcome(len(rows))
        shown = list(_render(rows, self._template, self._data, self._source, outcome))
        texts = [rendered for _, _, rendered in shown]
        found = _tokenise(texts, self._tokenizer, self._beginning)
        for (index, row, rendered), tokens in zip(shown, found, strict=True):
            outcome.left_out += [(index, name, n) for name, n in rendered.left_out.items()]
            part = _fit(row, tokens, self._data, self._source, outcome, index)
            if part is None:
                continue
            if row.messages and row.messages[-1][0] != "assistant" and self._data.labels != "all":
                outcome.note(index, UNANSWERED)
            labels = _labels(tokens, part, self._data)
            if not labels.any():
                outcome.note(index, NO_SUPERVISED)
                continue
            outcome.keep(index, len(tokens.ids), tokens.ids[part], labels)
        return outcome.encoded()


def _render(
    rows: Sequence[Row], template: Template, data: DataOptions, source: str, outcome: Outcome
) -> Iterator[tuple[int, Row, Rendered]]:
    """The rows that the template can show, with their indices and texts."""
    for index, row in enumerate(rows):
        try:
            yield index, row, template.render(row)
        except RefusedRowError as flaw:
            if data.malformed == "error":
                raise SourceError(f"source {source!r}: {flaw}") from flaw
            outcome.note(index, REFUSED)


@dataclass(frozen=True)
class _Tokens:
    """A row's tokens.

    Attributes:
        ids: int32[n].
        completion: bool[n], those of completions that are learnt.
        muted: bool[n], those of completions that are not; None where there are none.
        head: so many first ones are the beginning of a text.
    """

    ids: NDArray[np.int32]
    completion: _Bools
    muted: _Bools | None
    head: int


def _tokenise(
    texts: Sequence[Rendered], tokenizer: "PreTrainedTokenizerFast", beginning: Beginning
) -> Iterator[_Tokens]:
    """Tokens of each text, and which of them belong to a completion."""
    if not texts:
        return
    batch = tokenizer(
        [rendered.text for rendered in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    for rendered, ids, offsets in zip(
        texts, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        head = beginning.size(ids)
        flat = np.fromiter(chain.from_iterable(offsets), np.int32, count=2 * len(offsets))
        where = flat.reshape(-1, 2)
        completion = completion_mask(where, rendered.spans)
        muted = completion_mask(where, rendered.muted) if rendered.muted else None
        if rendered.bare and beginning.ids and head < len(beginning.ids):
            head = len(beginning.ids)
            ids = [*beginning.ids, *ids]
            completion = np.concatenate([np.zeros(head, np.bool_), completion])
        yield _Tokens(np.array(ids, dtype=np.int32), completion, muted, head)


def completion_mask(offsets: NDArray[np.int32], spans: Sequence[tuple[int, int]]) -> _Bools:
    """Which tokens overlap a span.

    Tokens of a byte-level tokenizer that share a character all carry that character's place, so
    they go together. A token of white space may be trimmed to no width at its own end: it stands
    for the character before.

    Args:
        offsets: int32[tokens, 2], (start, end) in characters of each token.
        spans: (start, end) in characters, in order and apart.

    Returns:
        bool[tokens].

    Example:
        >>> completion_mask(np.array([[0, 2], [2, 3], [3, 5]], np.int32), [(2, 4)])
        array([False,  True,  True])
    """
    if not spans:
        return np.zeros(len(offsets), np.bool_)
    starts, ends = offsets[:, 0], offsets[:, 1]
    starts = np.where(starts == ends, starts - 1, starts)
    bounds = np.array(spans, dtype=np.int64)
    first = np.searchsorted(bounds[:, 1], starts, side="right")
    span_starts = np.append(bounds[:, 0], np.iinfo(np.int64).max)
    return np.asarray(span_starts[first] < ends)


def window(completion: _Bools, max_length: int) -> slice:
    """The tokens that truncation keeps, by the rules of the module's docstring.

    Args:
        completion: bool[tokens], at least one true.
        max_length: tokens that fit, at least 2.

    Example:
        >>> window(np.array([False, False, False, True, True]), 4)
        slice(1, 5, None)
        >>> window(np.array([False, False, True, True, True, True]), 4)
        slice(1, 5, None)
    """
    places = np.flatnonzero(completion)
    end = int(places[-1]) + 1
    breaks = np.flatnonzero(np.diff(places) > 1)
    begin = int(places[breaks[-1] + 1]) if len(breaks) else int(places[0])
    if end - begin < max_length:
        return slice(max(0, end - max_length), end)
    start = max(begin - 1, 0)
    return slice(start, min(end, start + max_length))


def _fit(
    row: Row, tokens: _Tokens, data: DataOptions, source: str, outcome: Outcome, index: int
) -> IntArray | slice | None:
    """The part of a row that is kept; None to skip it."""
    places = np.flatnonzero(tokens.completion)
    if not len(places):
        outcome.note(index, NO_SUPERVISED)
        return None
    size = len(tokens.ids) if data.labels == "all" else int(places[-1]) + 1
    if size <= data.max_length:
        return slice(0, size)
    if data.over_long == "error":
        raise SourceError(
            f"source {source!r}: {row.where} has {size} tokens, more than data.max_length = "
            f"{data.max_length}; raise it, or set data.over_long to truncate or skip"
        )
    if data.over_long == "skip":
        outcome.note(index, SKIPPED)
        return None
    head = tokens.head
    part = window(tokens.completion[head:], data.max_length - head)
    kept = np.concatenate([np.arange(head), np.arange(head + part.start, head + part.stop)])
    outcome.note(index, TRUNCATED)
    outcome.cut[index] = len(places) - int(tokens.completion[kept].sum())
    return kept


def _labels(tokens: _Tokens, part: IntArray | slice, data: DataOptions) -> _Bools:
    """Which of the kept tokens are supervised."""
    labels = tokens.completion[part].copy()
    if data.labels == "all":
        labels[:] = True if tokens.muted is None else ~tokens.muted[part]
    labels[: max(tokens.head, 1)] = False
    if not isinstance(part, slice) and len(part) > tokens.head and part[tokens.head] > tokens.head:
        labels[tokens.head] = False  # what stood before it was cut
    return labels
