"""From options to sources, in two phases with the tokenizer between them.

:func:`read_sources` resolves files, reads rows, splits them and handles duplicates; it needs no
tokenizer, so that a small one can be trained on :func:`training_texts` of what it returns.
:func:`encode_sources` tokenises, labels, grades and caps.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, DataOptions, SourceOptions, WorldOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.cached.keys import folder_of
from mixgym.envs.sources.difficulty import DROPPED, Scorer, Scores, scorer_for, strata_of
from mixgym.envs.sources.duplicates import Policy, handle_duplicates
from mixgym.envs.sources.encoded.outcome import UNANSWERED, Encoding
from mixgym.envs.sources.encoded.splits import encode_splits
from mixgym.envs.sources.files import SourceFiles, find_files
from mixgym.envs.sources.generated.embedded import TASKS, default_sources, generate
from mixgym.envs.sources.held_out import Chosen, choose_rows, contents, given_back, others
from mixgym.envs.sources.reading import Reading, ReadRows, read_rows
from mixgym.envs.sources.rendering.plain import PlainTemplate
from mixgym.envs.sources.rendering.rendered import RefusedRowError
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.scorers import column_of
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport
from mixgym.envs.sources.splits import VALIDATION, cut_splits, split_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class RawSource:
    """A source as text.

    Attributes:
        name: its name in the configuration.
        options: what the configuration says of it.
        rows: for each of the four splits its rows; disjoint.
        origin: the path, or ``embedded:TASK``.
        row_format: see :mod:`mixgym.envs.sources.reading`.
        counts: what reading and splitting did; zero counts are left out.
        cut: held-out splits that were cut from the train rows.
        unused: columns and keys that have no use -> rows that fill them.
        warnings: what else should be known, such as files that are not read.
    """

    name: str
    options: SourceOptions
    rows: Mapping[str, Sequence[Row]]
    origin: str
    row_format: str
    counts: Mapping[str, int]
    cut: tuple[str, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_sources(options: WorldOptions) -> list[RawSource]:
    """Read and split every source, in the order of the configuration.

    Raises:
        SourceError: a source cannot be read or used (see its message), none is trained on, or
            none is a target.
    """
    sources = default_sources() if options.sources == "embedded" else options.sources
    _check_mixture(sources)
    files = {name: find_files(source, name) for name, source in sources.items()}
    origins = {name: _origins(source, files[name]) for name, source in sources.items()}
    raw = [
        _read_source(name, source, options, files[name], _shared(name, origins))
        for name, source in sources.items()
    ]
    return _without_duplicates(raw, options.data.duplicates)


def training_texts(raw: Sequence[RawSource]) -> Iterator[str]:
    """The texts of all train rows, plainly rendered, without end-of-sequence tokens."""
    template = PlainTemplate(eos="")
    for source in raw:
        for row in source.rows["train"]:
            with suppress(RefusedRowError):  # it is refused or counted when it is encoded
                yield template.render(row).text


def encode_sources(
    raw: Sequence[RawSource],
    tokenizer: "PreTrainedTokenizerFast",
    data: DataOptions,
    seed: int,
    scorers: Mapping[str, Scorer] | None = None,
    halve: bool = False,
) -> list[Source]:
    """Tokenise, grade and cap every source.

    Args:
        raw: what :func:`read_sources` returned.
        tokenizer: a fast tokenizer with an eos token.
        data: how rows become tokens and strata.
        seed: the world's seed, for the choice of held-out rows under the cap.
        scorers: by source, what grades its rows, where ``strata_by`` takes a model.
        halve: whether half of the reward split becomes a validation split, which is trained on in
            batches and never measured whole: it is not capped.

    Raises:
        SourceError: a row, a column or the chat template cannot be used, or a source that needs
            train or reward rows has none left.
    """
    found = scorers or {}
    graded = [_grade(s, tokenizer, data, found.get(s.name)) for s in raw]
    chosen = [choose_rows(g.parts, g.strata, data, seed, g.raw.name, halve) for g in graded]
    measured: set[tuple[int, int]] = set()
    for g, rows in zip(graded, chosen, strict=True):
        measured |= contents(g.parts, rows)
    return [_finish(g, rows, data, measured) for g, rows in zip(graded, chosen, strict=True)]


# --- reading --------------------------------------------------------------------------------


def _check_mixture(sources: Mapping[str, SourceOptions]) -> None:
    if not sources:
        raise SourceError("there are no sources; give at least one, or sources: embedded")
    if not any(source.target for source in sources.values()):
        raise SourceError(
            f"every source has target 0 ({', '.join(sources)}), so nothing would be rewarded; "
            "give at least one a positive target"
        )
    if not any(source.train for source in sources.values()):
        raise SourceError(
            f"every source has train: false ({', '.join(sources)}), so there is nothing to train "
            "on; let at least one be trained on"
        )


def _origins(options: SourceOptions, files: SourceFiles) -> set[Path | str]:
    """What the rows of a source come from."""
    found: set[Path | str] = {p.resolve() for paths in files.roles.values() for p in paths}
    return found if options.embedded is None else found | {f"embedded:{options.embedded}"}


def _shared(name: str, origins: Mapping[str, set[Path | str]]) -> dict[str, int]:
    """How many files a source shares with each other one."""
    common = {other: len(origins[name] & theirs) for other, theirs in origins.items()}
    return {f"files shared with {other}": n for other, n in common.items() if n and other != name}


def _read_source(
    name: str,
    source: SourceOptions,
    options: WorldOptions,
    files: SourceFiles,
    shared: Mapping[str, int],
) -> RawSource:
    data = options.data
    read = _read(name, source, files, options)
    rng = stream(options.seed, "splits", name)
    splits, unused = split_rows(read.rows, rng, data.held_out_fraction, source.train)
    counts = {
        "rows read": sum(len(part) for part in read.rows.values()),
        "lines skipped: malformed": read.skipped,
        "rows left out: their weight is 0": read.left_out,
        "rows unused: no split to go to": unused,
        "rows not generated: task exhausted": _shortfall(source, read.rows),
        **shared,
    }
    return RawSource(
        name,
        source,
        splits,
        _origin(source),
        read.row_format,
        _nonzero(counts),
        cut_splits(read.rows, source.train),
        {k: n for k, n in read.unused.items() if data.strata_by != f"column:{k}"},
        _unread(files.unread),
    )


def _origin(source: SourceOptions) -> str:
    """Where rows come from, in a word or two."""
    if source.embedded is not None:
        return f"embedded:{source.embedded}"
    if source.hub is not None:
        details = [word for word in (source.config, source.split, source.revision) if word]
        return " ".join([f"hub:{source.hub}", *details])
    written = source.path
    if isinstance(written, str):
        return written
    return ", ".join(written or ())


def _unread(paths: Sequence[Path]) -> tuple[str, ...]:
    if not paths:
        return ()
    names = listed({path.name: None for path in paths})
    return (f"files beside those that are read, which are not: {names}",)


def _without_duplicates(raw: Sequence[RawSource], policy: Policy) -> list[RawSource]:
    """The sources after the policy for rows that stand in two splits, of one source or two."""
    found = handle_duplicates({source.name: source.rows for source in raw}, policy)
    kept = []
    for source in raw:
        splits, counts = found[source.name]
        _check_splits(source.name, source.options, {n: len(rows) for n, rows in splits.items()})
        kept.append(replace(source, rows=splits, counts={**source.counts, **counts}))
    return kept


def _read(
    name: str,
    source: SourceOptions,
    found: SourceFiles,
    options: WorldOptions,
) -> ReadRows:
    files, how = found.roles, _reading(source, found.names, options.data)
    if source.embedded is None:
        return read_rows(files, name, how=how)
    rows = {"train": generate(source.embedded, source.rows, options.seed)}
    if not files:
        return ReadRows(rows, "prompt")
    read = read_rows(files, name, how=how)
    return replace(read, rows={**rows, **read.rows})


def _reading(source: SourceOptions, names: Mapping[Path, str], data: DataOptions) -> Reading:
    """How files are read under the options."""
    column = column_of(data.strata_by)
    return Reading(
        malformed=data.malformed,
        row_format=source.format,
        columns=source.columns,
        names=names,
        cells=(column,) if column else (),
        cache=folder_of(data.cache),
    )


def _shortfall(source: SourceOptions, rows: Mapping[str, Sequence[Row]]) -> int:
    if source.embedded is None:
        return 0
    return (source.rows or TASKS[source.embedded].rows) - len(rows["train"])


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if n}


def _check_splits(name: str, source: SourceOptions, sizes: Mapping[str, int]) -> None:
    if source.train and not sizes["train"]:
        raise SourceError(
            f"source {name!r} has no train rows left; give it more rows, a smaller "
            "data.held_out_fraction or a milder policy (data.duplicates, data.over_long), or set "
            "train: false"
        )
    if source.target > 0 and not sizes["reward"]:
        raise SourceError(
            f"source {name!r} has target {source.target:g} but no reward rows to measure it on; "
            "give it a reward file, at least 4 rows and a data.held_out_fraction above 0, or set "
            "target: 0"
        )
    if not any(sizes.values()):
        raise SourceError(
            f"source {name!r} has neither train nor held-out rows; give it rows or remove it"
        )


# --- encoding -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Graded:
    """A source that is encoded and graded, before its held-out rows are chosen."""

    raw: RawSource
    parts: Mapping[str, Encoding]
    scores: Mapping[str, Scores]
    is_stratum: bool
    strata: Mapping[str, IntArray]


def _grade(
    raw: RawSource,
    tokenizer: "PreTrainedTokenizerFast",
    data: DataOptions,
    scorer: Scorer | None,
) -> _Graded:
    parts = encode_splits(raw.rows, tokenizer, data, raw.name, folder_of(data.cache))
    _check_splits(raw.name, raw.options, {name: len(part.rows) for name, part in parts.items()})
    if scorer is None:
        every = [part.raw for part in parts.values()]
        scorer = scorer_for(data.strata_by, every, data.strata, raw.name)
    scores = {name: scorer.score(parts[name]) for name in SPLITS}
    strata = strata_of(scores, scorer.is_stratum, data.strata, drop=data.remainder == "drop")
    return _Graded(raw, parts, scores, scorer.is_stratum, strata)


def _finish(
    graded: _Graded, chosen: Chosen, data: DataOptions, measured: Collection[tuple[int, int]]
) -> Source:
    """The source with the chosen held-out rows; train gets back what was cut and not chosen."""
    raw, parts = graded.raw, graded.parts
    left = others(chosen, graded.strata)
    back = given_back(parts, left, raw.cut, measured)
    counts = Counter(raw.counts)
    for part in parts.values():
        counts.update(part.counts)
    counts["rows given back to train"] = sum(map(len, back.values()))
    for name, rows in left.items():
        aside = len(rows) - len(back.get(name, ()))
        counts[f"rows set aside: {name} over held_out_tokens"] = aside
    train, strata = _train(graded, back, data)
    stays = strata["train"] != DROPPED
    if not stays.all():
        counts["rows dropped: remainder of the strata"] = int((~stays).sum())
        train, strata["train"] = train.take(np.flatnonzero(stays)), strata["train"][stays]
    home = {name: "reward" if name == VALIDATION else name for name in chosen}
    held_out = {name: parts[home[name]].rows.take(rows) for name, rows in chosen.items()}
    return Source(
        name=raw.name,
        target=raw.options.target,
        splits={"train": train, **held_out},
        strata={
            "train": strata["train"],
            **{name: strata[home[name]][rows] for name, rows in chosen.items()},
        },
        n_strata=data.strata,
        max_epochs=raw.options.max_epochs,
        report=SourceReport(raw.origin, raw.row_format, _nonzero(counts), _sentences(graded)),
    )


def _train(
    graded: _Graded, back: Chosen, data: DataOptions
) -> tuple[EncodedRows, dict[str, IntArray]]:
    """The train rows with those given back behind them, and the strata that follow."""
    train, scores = graded.parts["train"].rows, [graded.scores["train"]]
    if not sum(map(len, back.values())):
        return train, dict(graded.strata)
    for name, rows in back.items():
        train = train.joined(graded.parts[name].rows.take(rows))
        scores.append(graded.scores[name][rows])
    grown = {**graded.scores, "train": np.concatenate(scores)}
    drop = data.remainder == "drop"
    return train, strata_of(grown, graded.is_stratum, data.strata, drop=drop)


def _sentences(graded: _Graded) -> tuple[str, ...]:
    """What stands in the rows and does not reach the model."""
    raw = graded.raw
    left_out: Counter[str] = Counter()
    unanswered = 0
    for part in graded.parts.values():
        left_out.update(part.left_out)
        unanswered += part.counts[UNANSWERED]
    found = list(raw.warnings)
    if raw.unused:
        found.append(f"columns and keys without a use: {listed(raw.unused)}")
    if left_out:
        found.append(f"the template leaves out: {listed(left_out)}")
    if unanswered:
        found.append(f"nothing is learnt from {UNANSWERED} ({unanswered:,} rows)")
    return tuple(found)


def listed(counts: Mapping[str, int | None], most: int = 8) -> str:
    """The first names with their counts, the most frequent first.

    >>> listed({"id": 3, "url": 12}), listed({"a": None, "b": None, "c": None}, most=2)
    ('url (12 rows), id (3 rows)', 'a, b and 1 more')
    """
    names = sorted(counts, key=lambda name: -(counts[name] or 0))
    words = [n if counts[n] is None else f"{n} ({counts[n]:,} rows)" for n in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(words) + more
