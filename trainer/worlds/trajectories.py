"""Recorded runs as arrays: what worlds are fitted to.

Any run folder will do that holds ``decisions.jsonl`` and ``world.json``, also users' own; a folder
of such folders stands for all of them. Runs of one fit share sources and strata.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.envs.errors import ConfigError
from mixgym.trainer.runs.folder import DECISIONS
from mixgym.trainer.runs.world_record import WORLD

_ADVICE = "give folders that mixgym record or mixgym finetune wrote"


@dataclass(frozen=True)
class Trajectories:
    """R runs of T decisions; shorter ones are padded with empty intervals.

    Attributes:
        steps, rate: float64[R, T], optimiser steps, mean learning rate over the reference's.
        supervised: float64[R, T, K, G], tokens trained on.
        nll, error: float64[R, T, K, G], held-out loss after each decision and its standard error
            in nats; NaN unknown, and in the padding.
    """

    steps: FloatArray
    rate: FloatArray
    supervised: FloatArray
    nll: FloatArray
    error: FloatArray

    def __len__(self) -> int:
        return len(self.steps)

    def pick(self, index: BoolArray | IntArray | slice) -> "Trajectories":
        """Those of some runs."""
        return Trajectories(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def by_source(self) -> FloatArray:
        """float64[R, T, K], held-out loss of sources: mean over the strata that are measured."""
        return mean_known(self.nll, axis=-1)

    @property
    def last(self) -> IntArray:
        """int[R], the last decision of every run."""
        return np.asarray(np.isfinite(self.by_source).any(-1).sum(-1) - 1)


@dataclass(frozen=True)
class Corpus:
    """What recorded runs share.

    Attributes:
        names: of the K sources.
        size: float64[K, G], unique supervised tokens.
        cost: float64[K, G], tokens read per supervised token, 1 in empty cells.
        start: float64[K, G], NLL before training; NaN in cells without held-out rows.
        held_out: float64[K, G], supervised tokens of the reward split.
        span: supervised tokens of a run of middle length: the unit of intrinsic time.
        batch: supervised tokens of a step, the mean of all.
        rate: learning rate that counts as 1.
        read: tokens read in a run of middle length.
        pretrained: whether the model knew anything before.
    """

    names: tuple[str, ...]
    size: FloatArray
    cost: FloatArray
    start: FloatArray
    held_out: FloatArray
    span: float
    batch: float
    rate: float
    read: float
    pretrained: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(K, G)."""
        sources, strata = self.size.shape
        return sources, strata


@dataclass(frozen=True)
class Recorded:
    """Runs that were read.

    Attributes:
        corpus: what they share.
        runs: R of them.
        folders: of the runs.
    """

    corpus: Corpus
    runs: Trajectories
    folders: tuple[Path, ...]


def mean_known(values: FloatArray, axis: int = 0) -> FloatArray:
    """The mean over an axis of what is known (not NaN); NaN where nothing is."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders among ``paths`` and right below them, in order.

    Raises:
        ConfigError: for a path that holds none.
    """
    found: list[Path] = []
    for path in paths:
        below = sorted(path.iterdir()) if path.is_dir() else []
        own = [folder for folder in [path, *below] if (folder / DECISIONS).is_file()]
        if not own:
            raise ConfigError(f"{path}: no run with {DECISIONS} there; {_ADVICE}")
        found += own
    return found


def read_runs(paths: Sequence[Path]) -> Recorded:
    """Read recorded runs.

    Raises:
        ConfigError: for runs without records, of different sources, or too few decisions.
    """
    folders = run_folders(paths)
    read = [_Run.read(folder) for folder in folders]
    first = read[0]
    for run in read:
        if run.world["names"] != first.world["names"] or run.strata != first.strata:
            raise ConfigError(
                f"{run.folder}: its sources are {', '.join(run.world['names'])} in {run.strata} "
                f"strata, those of {first.folder} {', '.join(first.world['names'])} in "
                f"{first.strata}: fit them apart"
            )
    peak = float(np.median([run.peak for run in read]))
    runs = _stacked(read, peak)
    return Recorded(_corpus(read, runs, peak), runs, tuple(folders))


@dataclass(frozen=True)
class _Run:
    """One run as it was read: its ``world.json`` and rows of ``decisions.jsonl``."""

    folder: Path
    world: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        try:
            world = json.loads((folder / WORLD).read_text())
            lines = (folder / DECISIONS).read_text().splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            run = cls(folder, world, rows)
            run.cells("cells.loss")
        except OSError as error:
            raise ConfigError(
                f"{folder}: {error.filename and Path(error.filename).name}: {error.strerror}; "
                f"{_ADVICE} with this version"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{folder}: {DECISIONS} or {WORLD} lacks what a fit needs ({error!r}); {_ADVICE} "
                "with this version"
            ) from None
        if len(rows) < 2:
            raise ConfigError(f"{folder}: {len(rows)} decisions; a fit needs runs of several")
        return run

    @property
    def strata(self) -> int:
        return int(self.world["strata"])

    def cells(self, path: str) -> FloatArray:
        """float64[T, K, G] of the records' ``path``; NaN where there is nothing."""
        top, name = path.split(".")
        rows = [[row[top][name][source] for source in self.world["names"]] for row in self.rows]
        return np.array(rows, np.float64)

    def known(self, *path: str) -> FloatArray:
        """float64[K, G] of ``world.json``."""
        part: Any = self.world
        for name in path:
            part = part[name]
        return np.array([part[source] for source in self.world["names"]], np.float64)

    @property
    def steps(self) -> FloatArray:
        """float64[T], of every interval."""
        return np.diff([0, *(row["steps"] for row in self.rows)]).astype(np.float64)

    @property
    def rates(self) -> FloatArray:
        """float64[T], sum of the learning rates of every interval."""
        return np.array([row["optimizer"]["rates"] for row in self.rows], np.float64)

    @property
    def peak(self) -> float:
        """The highest mean learning rate of an interval."""
        return float((self.rates / np.maximum(self.steps, 1)).max())


def _stacked(read: Sequence[_Run], peak: float) -> Trajectories:
    longest = max(len(run.rows) for run in read)

    def padded(values: FloatArray, filler: float = 0.0) -> FloatArray:
        wide = [(0, longest - len(values))] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, wide, constant_values=filler)

    def all_of(values: Sequence[FloatArray], filler: float = 0.0) -> FloatArray:
        return np.stack([padded(value, filler) for value in values])

    return Trajectories(
        steps=all_of([run.steps for run in read]),
        rate=all_of([run.rates / np.maximum(run.steps, 1) / peak for run in read]),
        supervised=all_of([np.nan_to_num(run.cells("cells.supervised")) for run in read]),
        nll=all_of([run.cells("cells.loss") for run in read], np.nan),
        error=all_of([run.cells("cells.error") for run in read], np.nan),
    )


def _corpus(read: Sequence[_Run], runs: Trajectories, peak: float) -> Corpus:
    first = read[0]
    spans = runs.supervised.sum((1, 2, 3))
    costs = [run.rows[-1]["cost"]["train_tokens"] for run in read]
    size = np.nan_to_num(first.known("train", "supervised"))
    loss = mean_known(np.stack([run.known("start", "cells", "loss") for run in read]))
    vocabulary = np.nanmax(loss)
    return Corpus(
        names=tuple(first.world["names"]),
        size=size,
        cost=np.nan_to_num(first.known("cells", "cost"), nan=1.0)
        if "cells" in first.world
        else np.ones_like(size),
        start=loss,
        held_out=np.nan_to_num(first.known("held_out", "reward", "supervised")),
        span=float(np.median(spans)),
        batch=float(spans.sum() / runs.steps.sum()),
        rate=peak,
        read=float(np.median(costs)),
        # weights drawn at random know all sources equally little
        pretrained=bool(np.nanmin(loss) < 0.8 * vocabulary),
    )
