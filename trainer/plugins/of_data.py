"""What scorers, row formats and packers have to hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError, PackingError
from mixgym.envs.packing.packers import PackerKind
from mixgym.envs.sources.rows.formats import Parsed, RowFormat, parse_row
from mixgym.envs.sources.rows.turns import MalformedError
from mixgym.envs.sources.scorers import ScorerKind
from mixgym.trainer.plugins.checking import (
    Check,
    FlawError,
    need,
    need_close,
    need_same,
    need_summary,
)

# --- scorers ----------------------------------------------------------------------------------

_ROWS, _ALONE = 24, 6


def scorer_checks(word: str, kind: ScorerKind) -> Iterator[Check]:
    """The checks of a scorer."""
    score = kind.score
    if score is None:
        raise ConfigError(f"check-plugin {word}: is built in; give a plug-in's word")
    yield "summary", lambda: need_summary(kind.summary)
    yield "finite", lambda: _finite_scores(kind, score(_rows(range(_ROWS))))
    yield "deterministic", lambda: _same_scores(score)
    yield "batched equals single", lambda: _batched_scores(score)
    yield "cost declared", lambda: f"{kind.passes} passes over the rows"


def _rows(which: Any) -> Any:
    """Rows of a generated source, encoded."""
    from mixgym.envs.learners.models.loading import load_tokenizer
    from mixgym.envs.options import DataOptions, ModelOptions
    from mixgym.envs.sources.encoding import encode_rows
    from mixgym.envs.sources.generated.embedded import generate

    rows = generate("addition", 60, 0)
    texts = [text for row in rows for _, text in row.messages]
    tokenizer = load_tokenizer(ModelOptions(), lambda: iter(texts))
    return encode_rows([rows[i] for i in which], tokenizer, DataOptions(), "addition")


def _finite_scores(kind: ScorerKind, found: Any) -> str:
    scores = np.asarray(found, np.float64)
    need(
        scores.shape == (_ROWS,),
        f"it gave an array {scores.shape} for {_ROWS} rows; give one number for each",
    )
    need(bool(np.isfinite(scores).all()), "a score is NaN or infinite; give a finite number")
    if kind.is_stratum:
        whole = bool((scores == np.round(scores)).all() and (scores >= 0).all())
        need(whole, "is_stratum is true, and a score is no stratum's number (0, 1, ...)")
    return f"{_ROWS} rows, {len(np.unique(scores))} distinct scores"


def _same_scores(score: Any) -> str:
    rows = _rows(range(_ROWS))
    need_same(
        np.asarray(score(rows)),
        np.asarray(score(rows)),
        "the same rows got two scores; draw nothing, or from a generator with a fixed seed",
    )
    return "twice the same"


def _batched_scores(score: Any) -> str:
    together = np.asarray(score(_rows(range(_ROWS))), np.float64)
    alone = [float(np.asarray(score(_rows([i])))[0]) for i in range(_ALONE)]
    need_close(
        together[:_ALONE],
        alone,
        "a row has another score beside others than alone; the splits of a source are graded "
        "apart, so grade each row by itself",
    )
    return f"{_ALONE} rows among others and alone"


# --- row formats ------------------------------------------------------------------------------

_ODD: tuple[Any, ...] = (None, "", "   ", 3, 2.5, True, [], ["x"], {}, {"a": 1}, "\ud800")


def format_checks(word: str, form: RowFormat) -> Iterator[Check]:
    """The checks of a row format."""
    row = dict(form.example or {names[0]: f"some {names[0]}" for names in form.required})
    yield "recognised", lambda: _recognised(form, row)
    yield "parsed", lambda: _parsed(form, row)
    yield "deterministic", lambda: _parsed_twice(form, row)
    yield "malformed rows", lambda: _malformed(form, row)


def _recognised(form: RowFormat, row: dict[str, Any]) -> str:
    need(form.fits(row), f"its example {row} lacks a required column ({form.summary})")
    return form.summary


def _parsed(form: RowFormat, row: dict[str, Any]) -> str:
    try:
        parsed = parse_row(row, form, form.find(row))
    except MalformedError as error:
        raise FlawError(
            f"the row {row} is refused ({error}); give the RowFormat example=..., a row of the kind"
        ) from error
    need(isinstance(parsed, Parsed), f"parse gave {type(parsed).__name__}; return a Parsed")
    learnt = [role for role, _ in parsed.messages if role == "assistant"]
    need(
        bool(learnt) or bool(parsed.text),
        f"the row {row} has nothing to learn; give it an assistant turn, or a text",
    )
    return f"{len(parsed.messages)} turns" if parsed.messages else "a text"


def _parsed_twice(form: RowFormat, row: dict[str, Any]) -> str:
    kept = dict(row)
    one, other = (parse_row(row, form, form.find(row)) for _ in range(2))
    need_same(one, other, "the same row was read in two ways; draw nothing")
    need(row == kept, "parse changes the row that it is given; work on a copy")
    return "twice the same"


def _malformed(form: RowFormat, row: dict[str, Any]) -> str:
    """Files hold anything; a MalformedError names the line, another error ends the run."""
    for names in form.required:
        for value in _ODD:
            odd = {**row, names[0]: value}
            try:
                parse_row(odd, form, form.find(odd))
            except MalformedError:
                continue
            except Exception as error:
                raise FlawError(
                    f"column {names[0]} holding {value!r} raised {type(error).__name__}: {error}; "
                    "raise a MalformedError (mixgym.envs.sources.rows.turns.text_of does)"
                ) from error
    return f"{len(_ODD)} odd values of each column are read or refused"


# --- packers ----------------------------------------------------------------------------------

_CAPACITY = 64


def packer_checks(word: str, kind: PackerKind) -> Iterator[Check]:
    """The checks of a packer."""
    yield "summary", lambda: need_summary(kind.summary)
    yield "every document once", lambda: _complete(kind)
    yield "deterministic", lambda: _packed_twice(kind)
    yield "edges", lambda: _edges(kind)
    yield "refuses what no pack holds", lambda: _refuses(kind)


def _lengths() -> IntArray:
    lengths = np.random.default_rng(0).integers(1, _CAPACITY + 1, 300)
    lengths.flags.writeable = False
    return lengths


def _pack(kind: PackerKind, lengths: IntArray) -> Any:
    return kind.pack(lengths, _CAPACITY, np.random.default_rng(1))


def _complete(kind: PackerKind) -> str:
    lengths = _lengths()
    packing = _pack(kind, lengths)
    need(
        sorted(packing.documents.tolist()) == list(range(len(lengths))),
        "a document is lost, or lies in two packs; put each into exactly one",
    )
    fullest = int(packing.sums(lengths).max())
    need(
        fullest <= _CAPACITY,
        f"a pack holds {fullest} tokens of {_CAPACITY}; open another where one would overflow",
    )
    return f"{lengths.sum() / (len(packing) * _CAPACITY):.1%} of the tokens of its packs are filled"


def _packed_twice(kind: PackerKind) -> str:
    one, other = (_pack(kind, _lengths()) for _ in range(2))
    need(
        one.documents.tolist() == other.documents.tolist()
        and one.offsets.tolist() == other.offsets.tolist(),
        "the same seed gave two packings; draw from the generator that is given, and nothing else",
    )
    return "twice the same by seed"


def _edges(kind: PackerKind) -> str:
    for listed in ([], [_CAPACITY], [1], [_CAPACITY] * 3):
        packing = _pack(kind, np.array(listed, np.int64))
        need(
            sorted(packing.documents.tolist()) == list(range(len(listed))),
            f"documents of {listed} tokens are not all packed; none, one and full ones may come",
        )
    return "no document, one, and full ones"


def _refuses(kind: PackerKind) -> str:
    for listed in ([3, _CAPACITY + 1], [3, 0]):
        try:
            _pack(kind, np.array(listed, np.int64))
        except PackingError:
            continue
        raise FlawError(
            f"documents of {listed} tokens are packed into {_CAPACITY}; call "
            "mixgym.envs.packing.packers.check_lengths first"
        )
    return "over-long and empty documents"
