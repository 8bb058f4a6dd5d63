"""``world.json`` of a run folder: what was there before the first decision.

Everything that a run's decisions are relative to, as plain data, so that ``world.json`` and
``decisions.jsonl`` together tell a run's whole curve without its rows. Values by stratum are lists,
easiest stratum first, null where there is nothing::

    names [source, ...], strata              in the order of every array; strata per source
    targets, prior {source: weight}          prior: the mixture of a zero action
    step_tokens                              tokens that a step has room for
    start.loss {source: nats}                on the reward split, before training
    start.error {source: nats}               its standard error, null where unknown
    start.cells.loss, start.cells.error {source: [nats, ...]}
    start.mean                               target-weighted
    train.rows, train.supervised, train.tokens {source: [count, ...]}
    cost {source}, cells.cost {source: [...]}   tokens read per supervised token, over train rows
    held_out.SPLIT.rows, .supervised, .tokens {source: [count, ...]}   reward, select and test

A learner without rows (``curves``) has no ``train.rows`` and ``train.tokens``, and only the
supervised tokens of the reward split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.arrays import FloatArray
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.learners.base import Evaluation
from mixgym.envs.measuring.records import by_stratum
from mixgym.envs.options import SPLITS
from mixgym.envs.rewards import target_mean
from mixgym.envs.sources.source import Source
from mixgym.trainer.config import RunConfig

WORLD = "world.json"


def leave_world(folder: Path, env: MixtureEnv, config: RunConfig) -> None:
    """Write ``world.json``, unless an earlier process of the run has.

    Args:
        folder: of the run.
        env: after its first reset, so that the start is measured.
        config: of the run.
    """
    if not (folder / WORLD).is_file():
        storage.write_json(folder / WORLD, world_record(env, config))


def world_record(env: MixtureEnv, config: RunConfig) -> dict[str, Any]:
    """What stands in ``world.json``; see the module."""
    world, start = env.world, env.measurements.start
    names = world.names
    sources: Sequence[Source] = getattr(world.learner, "sources", ())
    return {
        "names": list(names),
        "strata": world.cell_size.shape[1],
        "targets": _by_source(names, world.targets),
        "prior": _by_source(names, world.prior.sources),
        "step_tokens": config.training.packs * config.data.max_length,
        "start": _start(names, start, world.targets),
        "cost": _by_source(names, world.cost),
        "cells": {"cost": by_stratum(names, world.cell_cost)},
        **(_of_rows(names, sources) if sources else _without_rows(names, world.cell_size, start)),
    }


def _start(names: Sequence[str], start: Evaluation, targets: FloatArray) -> dict[str, Any]:
    return {
        "loss": _by_source(names, start.source_nll),
        "error": _by_source(names, start.source_error),
        "mean": float(target_mean(start.source_nll, targets)),
        "cells": {
            "loss": by_stratum(names, start.nll),
            "error": by_stratum(names, start.error),
        },
    }


def _of_rows(names: Sequence[str], sources: Sequence[Source]) -> dict[str, Any]:
    return {
        "train": _tables(names, _counts(sources, "train")),
        "held_out": {split: _tables(names, _counts(sources, split)) for split in SPLITS[1:]},
    }


def _without_rows(names: Sequence[str], sizes: FloatArray, start: Evaluation) -> dict[str, Any]:
    held_out = start.supervised.astype(np.float64)
    return {
        "train": _tables(names, {"supervised": sizes}),
        "held_out": {"reward": _tables(names, {"supervised": held_out})},
    }


def _counts(sources: Sequence[Source], split: str) -> dict[str, FloatArray]:
    """What a split holds: name -> float64[K, G]."""
    shape = len(sources), sources[0].n_strata
    found = {name: np.zeros(shape) for name in ("rows", "supervised", "tokens")}
    for k, source in enumerate(sources):
        rows, stratum = source.splits[split], source.strata[split]
        np.add.at(found["rows"][k], stratum, 1.0)
        np.add.at(found["supervised"][k], stratum, rows.supervised)
        np.add.at(found["tokens"][k], stratum, rows.lengths)
    return found


def _tables(names: Sequence[str], counts: dict[str, FloatArray]) -> dict[str, Any]:
    """Counts by source and stratum; null in empty cells, which have 0 of everything."""
    return {
        name: by_stratum(names, np.where(values > 0, values, np.nan))
        for name, values in counts.items()
    }


def _by_source(names: Sequence[str], values: FloatArray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
