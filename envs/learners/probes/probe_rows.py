"""The rows that probes read: one fixed set per stratum, and what reading them costs."""

from collections.abc import Sequence

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.probes import find_probe, need_baseline
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.source import EncodedRows, Source


def draw_rows(sources: Sequence[Source], per_stratum: int, seed: int) -> IntArray:
    """int64[n, 3], (source, stratum, row of the train split), source by source.

    Up to ``per_stratum`` rows of every stratum, without replacement, by a stream of their own: what
    a source's rows are does not depend on the other sources.
    """
    found = [
        (k, g, int(row))
        for k, source in enumerate(sources)
        for g in range(source.n_strata)
        for row in _draw(source, g, per_stratum, seed)
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def _draw(source: Source, stratum: int, count: int, seed: int) -> IntArray:
    here = np.flatnonzero(source.strata["train"] == stratum)
    rng = stream(seed, "probe rows", source.name, str(stratum))
    return np.sort(rng.permutation(here)[:count])


def _lengths_of(sources: Sequence[Source], rows: IntArray) -> IntArray:
    """int64[n], tokens of each probe row."""
    return np.array([sources[k].splits["train"].lengths[i] for k, _, i in rows], np.int64)


def bare_rows(rows: EncodedRows) -> EncodedRows:
    """The completions without their prompts: what IFD compares with.

    Of each row the supervised tokens stay, and the one token before the first of them, from which
    it is predicted (of a chat, the end of the assistant's header).
    """
    kept = []
    for index in range(len(rows)):
        tokens, labels = rows.row(index)
        keep = labels.copy()
        keep[max(int(np.argmax(labels)) - 1, 0)] = True
        kept.append((tokens[keep], labels[keep]))
    return EncodedRows.from_lists(kept)


def chosen(sources: Sequence[Source], rows: IntArray) -> EncodedRows:
    """The probe rows themselves, in order."""
    return EncodedRows.from_lists([sources[k].splits["train"].row(int(i)) for k, _, i in rows])


def probe_cost(name: str, sources: Sequence[Source], per_stratum: int, seed: int) -> int:
    """Tokens of a pass forward that a probe costs each time; known before there is a model."""
    kind = find_probe(name)
    rows = draw_rows(sources, per_stratum, seed)
    whole = int(_lengths_of(sources, rows).sum())
    if name == "ifd_ratio":
        return whole + int(bare_rows(chosen(sources, rows)).lengths.sum())
    target = sum(int(s.splits["reward"].lengths.sum()) for s in sources if s.target > 0)
    return kind.passes * whole + (kind.target_passes * target if kind.target_passes else 0)


def baseline_cost(
    names: Sequence[str], sources: Sequence[Source], per_stratum: int, seed: int
) -> int:
    """Tokens of a pass forward that the start of an episode takes for these probes."""
    rows = draw_rows(sources, per_stratum, seed)
    whole = int(_lengths_of(sources, rows).sum())
    if "ifd_ratio" not in names:
        return need_baseline(names) * whole
    others = [name for name in names if name != "ifd_ratio"]
    reference = need_baseline([n for n in others if find_probe(n).needs_reference])
    bare = int(bare_rows(chosen(sources, rows)).lengths.sum())
    return (1 + reference) * whole + bare
