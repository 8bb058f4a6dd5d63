"""From options to sources, in two phases with the tokenizer between them.

:func:`read_sources` resolves files, reads rows, splits them and handles duplicates; it needs no
tokenizer, so that a small one can be trained on :func:`training_texts` of what it returns.
:func:`encode_sources` tokenises, labels, grades and caps.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, DataOptions, SourceOptions, WorldOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.difficulty import DROPPED, Scorer, cap_rows, scorer_for, stratify
from mixgym.envs.sources.embedded import TASKS, default_sources, generate
from mixgym.envs.sources.encoding import Encoding, encode_rows
from mixgym.envs.sources.reading import ReadRows, Row, read_rows
from mixgym.envs.sources.source import Source, SourceReport
from mixgym.envs.sources.splits import (
    HELD_OUT,
    find_files,
    halve_reward,
    handle_duplicates,
    split_rows,
)
from mixgym.envs.sources.templates import PlainTemplate

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
    """

    name: str
    options: SourceOptions
    rows: Mapping[str, tuple[Row, ...]]
    origin: str
    row_format: str
    counts: Mapping[str, int]


def read_sources(options: WorldOptions) -> list[RawSource]:
    """Read and split every source, in the order of the configuration.

    Raises:
        SourceError: a source cannot be read or used (see its message), none is trained on, or
            none is a target.
    """
    sources = default_sources() if options.sources == "embedded" else options.sources
    _check_mixture(sources)
    files = {name: _files(name, source) for name, source in sources.items()}
    return [
        _read_source(name, source, options, files[name], _shared(name, files))
        for name, source in sources.items()
    ]


def training_texts(raw: Sequence[RawSource]) -> Iterator[str]:
    """The texts of all train rows, plainly rendered, without end-of-sequence tokens."""
    template = PlainTemplate(eos="")
    for source in raw:
        for row in source.rows["train"]:
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
    encoded = [_encode_source(s, tokenizer, data, found.get(s.name)) for s in raw]
    if halve:
        encoded = [halve_reward(source, seed) for source in encoded]
    return [_cap(source, data.held_out_tokens, seed) for source in encoded]


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


def _files(name: str, options: SourceOptions) -> dict[str, Path | str]:
    files: dict[str, Path | str] = dict(find_files(options, name))
    if options.embedded is not None:
        files["train"] = f"embedded:{options.embedded}"
    return files


def _shared(name: str, files: Mapping[str, Mapping[str, Path | str]]) -> dict[str, int]:
    """How many files a source shares with each other one."""
    own = {_identity(file) for file in files[name].values()}
    common = {
        other: len(own & {_identity(file) for file in theirs.values()})
        for other, theirs in files.items()
        if other != name
    }
    return {f"files shared with {other}": n for other, n in common.items() if n}


def _identity(file: Path | str) -> str:
    return str(file.resolve()) if isinstance(file, Path) else file


def _read_source(
    name: str,
    source: SourceOptions,
    options: WorldOptions,
    files: Mapping[str, Path | str],
    shared: Mapping[str, int],
) -> RawSource:
    data = options.data
    read = _read(name, source, files, options)
    rng = stream(options.seed, "splits", name)
    splits, unused = split_rows(read.rows, rng, data.held_out_fraction, source.train)
    splits, duplicates = handle_duplicates(splits, name, data.duplicates)
    counts = {
        "rows read": sum(len(part) for part in read.rows.values()),
        "lines skipped: malformed": read.skipped,
        "rows unused: no split to go to": unused,
        "rows not generated: task exhausted": _shortfall(source, read.rows),
        **duplicates,
        **shared,
    }
    origin = source.path if source.path is not None else f"embedded:{source.embedded}"
    raw = RawSource(name, source, splits, origin, read.row_format, _nonzero(counts))
    _check_splits(name, source, {split: len(rows) for split, rows in splits.items()})
    return raw


def _read(
    name: str, source: SourceOptions, files: Mapping[str, Path | str], options: WorldOptions
) -> ReadRows:
    paths = {role: file for role, file in files.items() if isinstance(file, Path)}
    if source.embedded is None:
        return read_rows(paths, name, options.data.malformed)
    rows = {"train": generate(source.embedded, source.rows, options.seed)}
    if not paths:
        return ReadRows(rows, "prompt")
    read = read_rows(paths, name, options.data.malformed)
    return ReadRows({**rows, **read.rows}, read.row_format, read.skipped)


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


def _encode_source(
    raw: RawSource,
    tokenizer: "PreTrainedTokenizerFast",
    data: DataOptions,
    scorer: Scorer | None,
) -> Source:
    parts = {name: encode_rows(raw.rows[name], tokenizer, data, raw.name) for name in SPLITS}
    _check_splits(raw.name, raw.options, {name: len(part.rows) for name, part in parts.items()})
    counts = Counter(raw.counts)
    for part in parts.values():
        counts.update(part.counts)
    rows = {name: part.rows for name, part in parts.items()}
    strata = _strata(parts, data, raw.name, scorer)
    stays = strata["train"] != DROPPED
    if not stays.all():
        counts["rows dropped: remainder of the strata"] = int((~stays).sum())
        rows["train"] = rows["train"].take(np.flatnonzero(stays))
        strata["train"] = strata["train"][stays]
    return Source(
        name=raw.name,
        target=raw.options.target,
        splits=rows,
        strata=strata,
        n_strata=data.strata,
        max_epochs=raw.options.max_epochs,
        report=SourceReport(raw.origin, raw.row_format, _nonzero(counts)),
    )


def _cap(source: Source, tokens: int, seed: int) -> Source:
    """The source with held-out splits of at most so many supervised tokens, as reported."""
    splits, strata = dict(source.splits), dict(source.strata)
    counts = Counter(source.report.counts)
    for name in HELD_OUT:
        rng = stream(seed, "held-out", source.name, name)
        keep = cap_rows(splits[name].supervised, strata[name], tokens, rng)
        counts[f"rows set aside: {name} over held_out_tokens"] = len(splits[name]) - len(keep)
        if len(keep) < len(splits[name]):
            splits[name], strata[name] = splits[name].take(keep), strata[name][keep]
    report = replace(source.report, counts=_nonzero(counts))
    return replace(source, splits=splits, strata=strata, report=report)


def _strata(
    parts: Mapping[str, Encoding], data: DataOptions, source: str, scorer: Scorer | None
) -> dict[str, IntArray]:
    if scorer is None:
        every = [row for part in parts.values() for row in part.raw]
        scorer = scorer_for(data.strata_by, every, data.strata, source)
    return stratify(parts, scorer, data.strata, drop=data.remainder == "drop")
