"""Tasks drawn from a wide prior: 3 to 12 sources, every constant from a range of its own.

Sizes span three orders of magnitude, targets are random, sources transfer to each other, strata
open only after easier ones, and now and then there is a source of pure noise. Every token costs
the same here, and nothing is forgotten.
"""

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.task import (
    LEAST_SOURCES,
    MAX_SOURCES,
    MAX_STRATA,
    CurveTask,
    simple,
)


def sample_task(
    seed: int,
    *,
    sources: int | None = None,
    strata: int | None = None,
    noise_sources: int | None = None,
) -> CurveTask:
    """Draw a task.

    Args:
        seed: of everything in it.
        sources: K, or None to draw it from 3 to 12.
        strata: G, or None to draw it from 2 to 4.
        noise_sources: how many of the sources are pure noise, or None for 0 or 1.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 77]))
    drawn_sources = int(rng.integers(LEAST_SOURCES, MAX_SOURCES + 1))
    drawn_strata = int(rng.integers(2, MAX_STRATA + 1))
    drawn_noise = int(rng.random() < 0.5)
    count = drawn_sources if sources is None else sources
    groups = drawn_strata if strata is None else strata
    junk = np.arange(count) < (drawn_noise if noise_sources is None else noise_sources)
    rng.shuffle(junk)
    shape, column = (count, groups), (count, 1)
    harder = np.linspace(0.0, 1.0, groups)
    budget = 10.0 ** rng.uniform(5.0, 6.0)
    size = budget * 10.0 ** rng.uniform(-2.5, 0.5, column) / groups * np.ones(shape)
    floor = rng.uniform(0.3, 1.5, column) + rng.uniform(0.0, 0.6, column) * harder
    amplitude = rng.uniform(1.0, 4.0, column) * (1.0 + 0.3 * harder)
    scale = budget * 10.0 ** (
        rng.uniform(-3.0, -1.5, column) + rng.uniform(0, 0.8, column) * harder
    )
    exponent = rng.uniform(0.3, 0.9, column) * np.ones(shape)
    targets = np.where(rng.random(count) < 0.7, 1.0, rng.choice([0.0, 0.5, 2.0], count))
    targets = np.where(junk, 0.0, targets)
    if not targets.any():
        targets = np.where(junk, 0.0, 1.0)
    amplitude = np.where(junk[:, None], 0.02, amplitude)
    floor = np.where(junk[:, None], floor + 3.0, floor)
    return CurveTask(
        **simple(count, groups),
        targets=targets,
        size=size,
        floor=floor,
        amplitude=amplitude,
        scale=scale,
        exponent=exponent,
        transfer=_transfer(rng, junk),
        spread=rng.uniform(0.2, 0.7) ** np.abs(np.arange(groups)[:, None] - np.arange(groups)),
        threshold=rng.uniform(0.1, 0.5, column) * (rng.random(column) < 0.7),
        patience=rng.uniform(3.0, 15.0, column),
        overfit=rng.uniform(0.0, 0.3, column),
        budget=np.array(budget),
        noise=10.0 ** rng.uniform(-3.0, -2.0) * np.ones(shape),
    )


def _transfer(rng: np.random.Generator, junk: NDArray[np.bool_]) -> FloatArray:
    """What sources are worth to each other: by nearness in a small space; noise is worth 0."""
    places = rng.normal(size=(len(junk), 3))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    near = np.clip(places @ places.T, 0.0, 1.0) ** 2 * rng.uniform(0.0, 0.5)
    near *= rng.uniform(0.5, 1.0, near.shape)
    near[:, junk] = 0.0
    near[junk, :] = 0.0
    np.fill_diagonal(near, 1.0)
    return near
