"""The sources of a configuration as a causal LM reads them: encoded by its tokenizer, graded.

A process that does many runs on the same rows can keep the last corpus (:func:`keep_last_corpus`):
reading and encoding take up to half of a short run. It is found again by what it is made of, the
options that it depends on and its files' sizes and times.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import WorldOptions
from mixgym.envs.sources.scorers import MODEL_SCORES
from mixgym.envs.sources.source import Source


@dataclass(frozen=True)
class Corpus:
    """The sources of a configuration, encoded, with the tokenizer that did it.

    Attributes:
        sources: K of them.
        tokenizer: of the model.
        graded: tokens that grading the rows reads, unless they are cached.
    """

    sources: tuple[Source, ...]
    tokenizer: Any
    graded: int = 0


class _Shelf:
    """The last corpus of this process, where it is kept; nobody changes what stands in it."""

    is_open = False
    key = ""
    corpus: Corpus | None = None


_SHELF = _Shelf()


def keep_last_corpus(keep: bool = True) -> None:
    """Keep the last corpus in memory from now on, or let it go and keep none."""
    _SHELF.is_open = keep
    if not keep:
        _SHELF.key, _SHELF.corpus = "", None


def load_corpus(options: WorldOptions, *, dry: bool = False) -> Corpus:
    """Read and encode the sources; for a preset this trains the tokenizer on their rows.

    Args:
        options: the configuration.
        dry: where a model would grade the rows, do so by length and count what it would read.
    """
    if dry or not _SHELF.is_open:
        return _load(options, dry)
    key = corpus_key(options)
    if _SHELF.corpus is None or _SHELF.key != key:
        _SHELF.corpus = None  # two at a time might not fit
        _SHELF.corpus, _SHELF.key = _load(options, dry), key
    return _SHELF.corpus


def corpus_key(options: WorldOptions) -> str:
    """What a corpus is made of, as text: two configurations with the same key share their rows."""
    by_model = options.data.strata_by in MODEL_SCORES
    halved = options.environment.step_rule == "bilevel"
    return storage.json_text(
        {
            "seed": options.seed,
            "sources": options.model_dump(include={"sources"}),
            "data": options.data.model_dump(exclude={"packing"}),
            "model": options.model.model_dump() if by_model else options.model.name,
            "rows": options.bilevel.rows if halved else None,
            "halved": halved,
            "files": _stamps(options),
        }
    )


def _stamps(options: WorldOptions) -> list[tuple[str, int, int]]:
    """Path, size and time of every file that rows, tokenizer or grades come from."""
    from mixgym.envs.sources.files import find_files

    sources = {} if options.sources == "embedded" else options.sources
    roles = [find_files(source, name).roles for name, source in sources.items()]
    files = [path for files in roles for paths in files.values() for path in paths]
    for folder in (options.model.name, options.data.scorer):
        if folder is not None and Path(folder).expanduser().is_dir():
            files += sorted(p for p in Path(folder).expanduser().iterdir() if p.is_file())
    stats = [(path.resolve(), path.stat()) for path in files]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _load(options: WorldOptions, dry: bool) -> Corpus:
    from mixgym.envs.learners.models.loading import load_tokenizer
    from mixgym.envs.learners.probes.difficulty_scorers import make_grader, scorers
    from mixgym.envs.sources.difficulty import Scorer, plugin_scorers
    from mixgym.envs.sources.loading import encode_sources, read_sources, training_texts
    from mixgym.envs.sources.splits import check_validation, training_subset
    from mixgym.envs.sources.templates import prompting_as_trained

    raw = read_sources(options)
    texts = [training_texts([source]) for source in raw]
    tokenizer = load_tokenizer(options.model, lambda: _in_turn(texts))
    tokenizer = prompting_as_trained(tokenizer, options.data.template)
    grader = make_grader(options, tokenizer, dry=dry)
    names = [source.name for source in raw]
    found: Mapping[str, Scorer] = (
        scorers(grader, names, options.seed)
        if grader
        else plugin_scorers(options.data.strata_by, names, dry=dry)
    )
    halved = options.environment.step_rule == "bilevel"
    sources = tuple(encode_sources(raw, tokenizer, options.data, options.seed, found, halved))
    if halved:
        check_validation(sources)
    if halved and (rows := options.bilevel.rows) is not None:
        sources = tuple(training_subset(source, rows, options.seed) for source in sources)
    return Corpus(sources, tokenizer, sum(scorer.cost for scorer in found.values()))


def _in_turn(texts: Sequence[Iterator[str]]) -> Iterator[str]:
    """One text of each source after the other, so that a cut leaves every source in."""
    for round_ in zip_longest(*texts):
        yield from (text for text in round_ if text is not None)


def check_vocabulary(corpus: Corpus, model: Any, name: str) -> None:
    """Refuse a tokenizer whose tokens the model does not know.

    Raises:
        ConfigError: naming the model.
    """
    size = int(model.config.get_text_config().vocab_size)
    largest = max(
        (rows.largest for s in corpus.sources for rows in s.splits.values()),
        default=0,
    )
    if largest >= size:
        raise ConfigError(
            f"model.name={name}: its tokenizer gives token {largest}, its vocabulary has {size}: "
            "tokenizer and model do not belong together"
        )
