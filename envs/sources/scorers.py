"""The words of ``data.strata_by``: what grades rows, light and without a tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins.outside import check_signature, summary_of
from mixgym.envs.plugins.registry import Registry

COLUMN = "column"


@dataclass(frozen=True)
class ScorerKind:
    """What grades rows.

    Attributes:
        summary: one line for ``mixgym list scorers``.
        by_model: whether ``data.scorer`` grades, or the model that is fine-tuned.
        score: of a plug-in: takes an :class:`~mixgym.envs.sources.encoding.Encoding` of n rows and
            gives float64[n], finite, higher for harder, of each row by itself.
        passes: of a plug-in with a model of its own: passes forward over the rows, its cost.
        is_stratum: whether a score is a stratum's number already (0, 1, ...).
    """

    summary: str
    by_model: bool = False
    score: Callable[[Any], Any] | None = None
    passes: int = 0
    is_stratum: bool = False


def as_kind(where: str, thing: Any, **declared: Any) -> ScorerKind:
    """The scorer that a plug-in is: a :class:`ScorerKind`, or a function as its ``score``.

    Raises:
        ConfigError: for anything else, beginning with ``where``.
    """
    if isinstance(thing, ScorerKind):
        kind = replace(thing, **declared)
    else:
        kind = ScorerKind(**{"summary": summary_of(thing), "score": thing, **declared})
    if kind.score is None or kind.by_model:
        raise ConfigError(f"{where}: grades nothing; give its ScorerKind score=..., a function")
    check_signature(kind.score, ("Encoding",), where)
    return kind


_BUILT_IN = {
    "length": ScorerKind("tokens in the row, before truncation"),
    f"{COLUMN}:NAME": ScorerKind("a column of the rows: numbers, or labels in sorted order"),
    "loss": ScorerKind("mean NLL of the row's supervised tokens by data.scorer", by_model=True),
    "ifd": ScorerKind(
        "perplexity with the prompt over that without it, by data.scorer", by_model=True
    ),
    "ifd_loss": ScorerKind("loss with the prompt over that without it", by_model=True),
}

SCORERS: Registry[ScorerKind] = Registry(
    "scorer", "data.strata_by", "mixgym.scorers", as_kind, _BUILT_IN, (COLUMN,)
)

MODEL_SCORES: Sequence[str] = tuple(name for name, kind in _BUILT_IN.items() if kind.by_model)
"""Words that stand for a model's grades."""


def column_of(word: str) -> str | None:
    """The column that a word names, or None.

    >>> column_of("column:level"), column_of("length"), column_of("lunar:rank")
    ('level', None, None)
    """
    kind, _, name = word.partition(":")
    return name if kind == COLUMN and name else None


def check_word(word: str) -> None:
    """Refuse a word that grades nothing.

    Raises:
        ConfigError: with the words there are.
    """
    if column_of(word) is None:
        SCORERS.find(word)
