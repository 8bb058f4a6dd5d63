"""Which held-out rows are measured, and what becomes of the rest.

A held-out split is measured as a whole, again and again, so it is kept small: rows are taken until
they hold ``held_out_tokens`` supervised tokens, and ``held_out_rows`` rows even beyond that, as a
mean over a few long rows says little. ``judged_tokens`` lets select and test be larger than the
reward split: they are measured at the end only. The others are given back to train if they were
cut from it; rows of a source's own held-out files are only set aside. A row whose twin is measured
anywhere is not given back. The validation half of the reward split, where there is one, is trained
on in batches and never measured whole: it keeps all its rows.
"""

from collections.abc import Collection, Mapping

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.options import DataOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.difficulty import cap_rows
from mixgym.envs.sources.encoding import Encoding
from mixgym.envs.sources.splits import HELD_OUT, VALIDATION, halves
from mixgym.envs.sources.tables.table import Rows

Chosen = dict[str, IntArray]
Contents = set[tuple[int, int]]
"""Digests of what stands in some rows."""


def choose_rows(
    parts: Mapping[str, Encoding],
    strata: Mapping[str, IntArray],
    data: DataOptions,
    seed: int,
    source: str,
    halve: bool,
) -> Chosen:
    """The rows of each held-out split that are measured.

    Args:
        parts: by split, the encoded rows.
        strata: by split int64[n].
        data: ``held_out_tokens``, ``held_out_rows`` and ``judged_tokens``.
        seed: the world's.
        source: name of the source, for its random streams.
        halve: whether half of the reward rows become the validation split.

    Returns:
        By split (``validation`` too if halved) the places of the rows in ``parts``, rising;
        those of ``validation`` in ``parts["reward"]``.
    """
    candidates = {name: np.arange(len(strata[name]), dtype=np.int64) for name in HELD_OUT}
    chosen: Chosen = {}
    if halve:
        rng = stream(seed, VALIDATION, source)
        candidates["reward"], chosen[VALIDATION] = halves(strata["reward"], data.strata, rng)
    for name, mine in candidates.items():
        rng = stream(seed, "held-out", source, name)
        supervised = parts[name].rows.supervised[mine]
        most = data.held_out_tokens if name == "reward" else _judged(data)
        kept = cap_rows(supervised, strata[name][mine], most, rng, data.held_out_rows)
        chosen[name] = mine[kept]
    return chosen


def _judged(data: DataOptions) -> int:
    """Supervised tokens of the splits that are measured once or twice, at most."""
    return data.held_out_tokens if data.judged_tokens is None else data.judged_tokens


def others(chosen: Chosen, strata: Mapping[str, IntArray]) -> Chosen:
    """By held-out split, the places of the rows that no split took."""
    left = {}
    for name in HELD_OUT:
        taken = [chosen[name]]
        if name == "reward" and VALIDATION in chosen:
            taken.append(chosen[VALIDATION])
        left[name] = np.setdiff1d(np.arange(len(strata[name])), np.concatenate(taken))
    return left


def contents(parts: Mapping[str, Encoding], chosen: Chosen) -> Contents:
    """What stands in the rows that were chosen."""
    found: Contents = set()
    for name, rows in chosen.items():
        found.update(_digests(parts["reward" if name == VALIDATION else name], rows))
    return found


def _digests(part: Encoding, rows: IntArray) -> list[tuple[int, int]]:
    return [(first, second) for first, second in Rows.of(part.raw).digests[rows].tolist()]


def given_back(
    parts: Mapping[str, Encoding],
    left: Chosen,
    cut: Collection[str],
    measured: Collection[tuple[int, int]],
) -> Chosen:
    """By held-out split, the places of the rows that train gets back.

    Args:
        parts: by split, the encoded rows.
        left: see :func:`others`.
        cut: splits that were cut from train rows.
        measured: contents that no row in train may have.
    """
    return {
        name: left[name][[d not in measured for d in _digests(parts[name], left[name])]]
        for name in HELD_OUT
        if name in cut and len(left[name])
    }
