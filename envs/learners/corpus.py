"""The sources of a configuration as a causal LM reads them: encoded by its tokenizer, graded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.options import WorldOptions
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


def load_corpus(options: WorldOptions, *, dry: bool = False) -> Corpus:
    """Read and encode the sources; for a preset this trains the tokenizer on their rows.

    Args:
        options: the configuration.
        dry: where a model would grade the rows, do so by length and count what it would read.
    """
    from mixgym.envs.learners.models.loading import load_tokenizer
    from mixgym.envs.learners.probes.difficulty_scorers import make_grader, scorers
    from mixgym.envs.sources.loading import encode_sources, read_sources, training_texts
    from mixgym.envs.sources.splits import check_validation, training_subset
    from mixgym.envs.sources.templates import prompting_as_trained

    raw = read_sources(options)
    texts = [training_texts([source]) for source in raw]
    tokenizer = load_tokenizer(options.model, lambda: _in_turn(texts))
    tokenizer = prompting_as_trained(tokenizer, options.data.template)
    grader = make_grader(options, tokenizer, dry=dry)
    found = scorers(grader, [source.name for source in raw], options.seed) if grader else {}
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
        (int(rows.tokens.max()) for s in corpus.sources for rows in s.splits.values() if len(rows)),
        default=0,
    )
    if largest >= size:
        raise ConfigError(
            f"model.name={name}: its tokenizer gives token {largest}, its vocabulary has {size}: "
            "tokenizer and model do not belong together"
        )
