"""Sources and environments without a tokenizer or a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixgym.envs.curves.task import CurveTask, simple
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport


def make_rows(lengths: Sequence[int], supervised: Sequence[int] | None = None) -> EncodedRows:
    """Rows whose tokens are their own index; the last ``supervised`` tokens have labels."""
    labels = lengths if supervised is None else supervised
    pairs = [
        (np.full(n, i, np.int32), np.arange(n) >= n - s)
        for i, (n, s) in enumerate(zip(lengths, labels, strict=True))
    ]
    return EncodedRows.from_lists(pairs)


def make_source(
    name: str,
    lengths: Sequence[int],
    *,
    supervised: Sequence[int] | None = None,
    strata: Sequence[int] | None = None,
    n_strata: int = 1,
    target: float = 1.0,
    max_epochs: float | None = None,
) -> Source:
    where = np.zeros(len(lengths), np.int64) if strata is None else np.array(strata, np.int64)
    return Source(
        name=name,
        target=target,
        splits={"train": make_rows(lengths, supervised)},
        strata={"train": where},
        n_strata=n_strata,
        max_epochs=max_epochs,
        report=SourceReport("synthetic", "text"),
    )


def random_sources(
    rng: np.random.Generator,
    *,
    longest: int = 32,
    rows: tuple[int, int] = (1, 40),
    sources: tuple[int, int] = (1, 4),
    capped: float = 0.3,
) -> list[Source]:
    """A few sources with rows of ragged lengths; cells may be empty, sources never are."""
    strata = int(rng.integers(1, 4))
    found = []
    for k in range(int(rng.integers(*sources, endpoint=True))):
        count = int(rng.integers(*rows, endpoint=True))
        lengths = rng.integers(2, longest, count, endpoint=True)
        options: dict[str, Any] = {}
        if rng.random() < capped:
            options["max_epochs"] = float(rng.choice([0.5, 1.0, 1.1, 2.5]))
        found.append(
            make_source(
                f"source{k}",
                lengths.tolist(),
                supervised=rng.integers(1, lengths).tolist(),
                strata=rng.integers(0, strata, count).tolist(),
                n_strata=strata,
                **options,
            )
        )
    return found


def hand_task(**changes: Any) -> CurveTask:
    """Two sources of one stratum: the second one gains half of what the first is given."""
    one = np.ones((2, 1))
    constants: dict[str, Any] = {
        "targets": np.ones(2),
        "size": 100 * one,
        "floor": 0.5 * one,
        "amplitude": 2.0 * one,
        "scale": 10.0 * one,
        "exponent": 0.5 * one,
        "transfer": np.array([[1.0, 0.0], [0.5, 1.0]]),
        "spread": np.ones((1, 1)),
        "threshold": 0 * one,
        "patience": 10.0 * one,
        "overfit": 0 * one,
        "budget": np.array(1000.0),
    }
    changed = {name: np.asarray(value, np.float64) for name, value in changes.items()}
    shape = changed.get("size", constants["size"]).shape
    noise = changed.pop("noise", np.array(0.0)) * np.ones(shape)
    return CurveTask(**{**simple(*shape), **constants, **changed, "noise": noise})
