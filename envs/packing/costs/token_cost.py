"""What a supervised token of each source costs: tokens read, and seconds that are predicted.

Long rows pay for attention, and rows with long prompts pay for tokens that teach nothing; an agent
that knows both can weigh what it learns against what it spends. Tokens are counted from the rows.
Seconds are those of the cost model, logarithms relative to the mean over the sources, so that they
do not depend on the machine's speed or the model's size.
"""

from collections.abc import Sequence

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.packing.grouping.groups import group_of
from mixgym.envs.packing.setup import PackingSetup
from mixgym.envs.probes import TOKEN_SECONDS, TOKEN_SECONDS_STRATA
from mixgym.envs.sources.source import Source

LARGEST = 10.0  # of the logarithms, either way


def row_seconds(lengths: IntArray, setup: PackingSetup) -> FloatArray:
    """float64[n], device-seconds of training each row, with its share of the pack's fixed part.

    Where the shape of the model is unknown, its dense work stands for all: a second per token.

    Args:
        lengths: int64[n], tokens of the rows.
        setup: groups, and the cost model of the machine.
    """
    if setup.cost is None:
        return lengths.astype(np.float64)
    groups = setup.config.groups
    which = group_of(np.minimum(lengths, groups[-1].length), groups)
    capacity, degree, layers = np.array([(g.length, g.degree, g.checkpointed) for g in groups]).T
    found = setup.cost.micro_step(lengths, lengths**2, (degree[which], layers[which]))
    share = found.fixed * lengths / capacity[which]
    seconds: FloatArray = (found.total - found.fixed + share) * degree[which]
    return seconds


def tokens_read(sources: Sequence[Source]) -> tuple[FloatArray, FloatArray]:
    """Tokens read per supervised token, prompts included, over all training rows.

    Args:
        sources: K of them; their rows are as they are trained, truncated.

    Returns:
        float64[K] and float64[K, G], at least 1; NaN for sources and strata without training rows.
    """
    shape = len(sources), sources[0].n_strata
    tokens, supervised = np.zeros(shape), np.zeros(shape)
    for k, source in enumerate(sources):
        rows, stratum = source.splits["train"], source.strata["train"]
        np.add.at(tokens[k], stratum, rows.lengths)
        np.add.at(supervised[k], stratum, rows.supervised)
    return _ratio(tokens.sum(-1), supervised.sum(-1)), _ratio(tokens, supervised)


def token_seconds(sources: Sequence[Source], setup: PackingSetup) -> dict[str, FloatArray]:
    """Predicted seconds per supervised token, as a logarithm relative to the mean over sources.

    Args:
        sources: K of them; their training rows count.
        setup: groups, and the cost model of the machine.

    Returns:
        By the name of the probe float64[K], and float64[K, G] relative to the same mean; NaN for
        sources and strata without training rows.
    """
    shape = len(sources), sources[0].n_strata
    seconds, supervised = np.zeros(shape), np.zeros(shape)
    for k, source in enumerate(sources):
        rows, stratum = source.splits["train"], source.strata["train"]
        np.add.at(seconds[k], stratum, row_seconds(rows.lengths, setup))
        np.add.at(supervised[k], stratum, rows.supervised)
    by_source = _ratio(seconds.sum(-1), supervised.sum(-1))
    known = by_source[np.isfinite(by_source)]
    mean = known.mean() if len(known) else 1.0
    return {
        TOKEN_SECONDS: _log(by_source / mean),
        TOKEN_SECONDS_STRATA: _log(_ratio(seconds, supervised) / mean),
    }


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def _log(values: FloatArray) -> FloatArray:
    return np.clip(np.log(values), -LARGEST, LARGEST)
