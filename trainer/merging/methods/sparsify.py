"""First stage of a staged merge: which deltas survive.

A sparsifier sees the deltas of all models chunk by chunk, as often as its statistics need, and
then sets the dropped ones to zero in place. It knows nothing of how the survivors are combined.

Sources: TIES (Yadav et al., 2023), DARE (Yu et al., 2023), DELLA (Deep et al., 2024), breadcrumbs
(Davari and Belilovsky, 2023), SCE (Wan et al., 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.methods.numerics import Array
from mixgym.trainer.merging.methods.radix import RankSelector, TopSet
from mixgym.trainer.merging.methods.random_words import Draw, WordStream
from mixgym.trainer.merging.methods.sums import SquareSum


@dataclass(frozen=True)
class StageSettings:
    """What the stages know of one tensor.

    Attributes:
        name: Canonical name, the key of the random words.
        elements: Size of the tensor.
        row: Length of its last axis.
        models: How many models.
        work: float32 or float64.
        seed: The recipe's seed.
        per_model: Parameter -> one value for each model.
        shared: Parameter -> one value for all.
    """

    name: str
    elements: int
    row: int
    models: int
    work: np.dtype[Any]
    seed: int
    per_model: dict[str, list[float]]
    shared: dict[str, Any]


class Sparsifier(Protocol):
    """Drops deltas, after ``passes`` looks at all of them."""

    passes: int
    whole_rows: bool
    rescales: bool
    """Whether surviving deltas change their value."""
    scales: list[float]
    """Factor per model that is still to be applied to the survivors."""

    def observe(self, stage: int, start: int, deltas: list[Array]) -> None:
        """Take statistics of one chunk."""

    def finish(self, stage: int) -> None:
        """End a pass over all chunks."""

    def restart(self) -> None:
        """Prepare to thin from the first chunk on."""

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Set the dropped deltas of the chunk to zero, in place."""


class KeepAll:
    """Drops nothing."""

    passes = 0
    whole_rows = False
    rescales = False

    def __init__(self, settings: StageSettings) -> None:
        self.scales = [1.0] * settings.models

    def observe(self, stage: int, start: int, deltas: list[Array]) -> None:
        """Nothing to measure."""

    def finish(self, stage: int) -> None:
        """Nothing to end."""

    def restart(self) -> None:
        """Nothing to prepare."""

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Leave the deltas as they are."""


class Magnitude(KeepAll):
    """Keeps the max(1, int(density * n)) largest magnitudes of each model."""

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        self._selectors = [
            None if density == 1.0 else RankSelector(_largest(density), settings.work)
            for density in settings.per_model["density"]
        ]
        self.passes = max((s.passes for s in self._selectors if s), default=0)
        self._tops: list[TopSet | None] = []

    def observe(self, stage: int, start: int, deltas: list[Array]) -> None:
        """Count digits."""
        for selector, delta in zip(self._selectors, deltas, strict=True):
            if selector:
                selector.observe(stage, np.abs(delta))

    def finish(self, stage: int) -> None:
        """Fix a digit of every threshold."""
        for selector in self._selectors:
            if selector:
                selector.finish(stage)

    def restart(self) -> None:
        """Start the sets anew."""
        self._tops = [s.top_set(0) if s else None for s in self._selectors]

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Keep the top sets."""
        for top, delta in zip(self._tops, deltas, strict=True):
            if top:
                delta *= top.keep(np.abs(delta))


def _largest(density: float) -> Callable[[int, int], list[int]]:
    return lambda elements, nonzero: [max(1, int(density * elements))]


class Outliers(Magnitude):
    """Drops the int(gamma * n) largest magnitudes, and the smallest until density is left."""

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        pairs = zip(settings.per_model["density"], settings.per_model["gamma"], strict=True)
        self._selectors = [
            RankSelector(_between(density, gamma), settings.work) for density, gamma in pairs
        ]
        self.passes = self._selectors[0].passes if self._selectors[0] else 0
        self._dropped: list[TopSet] = []

    def restart(self) -> None:
        """Start the sets anew."""
        super().restart()
        self._dropped = [s.top_set(1) for s in self._selectors if s]

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Keep what is in the wide top set and not in the narrow one."""
        for wide, narrow, delta in zip(self._tops, self._dropped, deltas, strict=True):
            size = np.abs(delta)
            if wide:
                delta *= wide.keep(size) & ~narrow.keep(size)


def _between(density: float, gamma: float) -> Callable[[int, int], list[int]]:
    def ranks(elements: int, nonzero: int) -> list[int]:
        kept = int(density * elements)
        top = min(int(gamma * elements), elements - kept)
        return [kept + top, top]

    return ranks


class Bernoulli(KeepAll):
    """Keeps each delta with probability density; one random word per element and model.

    ``paper`` rescaling divides by the density, ``l1`` restores the sum of magnitudes.
    """

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        self._densities = settings.per_model["density"]
        self._streams = [
            WordStream(settings.seed, "bernoulli", settings.name, k) for k in range(settings.models)
        ]
        rescale = settings.shared["rescale"]
        thins = any(density < 1.0 for density in self._densities)
        self.rescales = rescale != "none" and thins
        self.passes = 1 if rescale == "l1" and thins else 0
        if rescale == "paper":
            self.scales = [1.0 / density for density in self._densities]
        self._before = SquareSum(settings.models)
        self._after = SquareSum(settings.models)

    def observe(self, stage: int, start: int, deltas: list[Array]) -> None:
        """Sum magnitudes before and after."""
        for k, delta in enumerate(deltas):
            self._before.add_magnitudes(k, delta)
        self.thin(start, deltas)
        for k, delta in enumerate(deltas):
            self._after.add_magnitudes(k, delta)

    def finish(self, stage: int) -> None:
        """Set the factors that restore the magnitudes."""
        self.scales = _ratios(self._before, self._after)

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Drop by the words of this chunk."""
        for stream, density, delta in zip(self._streams, self._densities, deltas, strict=True):
            if density < 1.0:
                draw = Draw(stream, start, stream.heads(start, start + delta.size))
                delta *= draw.below(int(density * 2**32))


def _ratios(before: SquareSum, after: SquareSum) -> list[float]:
    pairs = zip(before.magnitudes, after.magnitudes, strict=True)
    return [float(full / left) if left > 0 else 1.0 for full, left in pairs]


class Magprune(KeepAll):
    """Keeps at random with a probability that grows with the magnitude's rank in its row.

    It runs from density - epsilon for the smallest to density + epsilon for the largest of a row;
    equal magnitudes rank in index order, and epsilon is cut so that all probabilities lie in
    [0, 1]. ``paper`` rescaling divides each survivor by its own probability.
    """

    whole_rows = True

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        self._row = settings.row
        pairs = zip(settings.per_model["density"], settings.per_model["epsilon"], strict=True)
        self._spans = [(density, min(eps, density, 1.0 - density)) for density, eps in pairs]
        self._streams = [
            WordStream(settings.seed, "magprune", settings.name, k) for k in range(settings.models)
        ]
        self._rescale = settings.shared["rescale"]
        thins = any(density - epsilon < 1.0 for density, epsilon in self._spans)
        self.rescales = self._rescale != "none" and thins
        self.passes = 1 if self._rescale == "l1" and thins else 0
        self._before = SquareSum(settings.models, settings.row)
        self._after = SquareSum(settings.models, settings.row)

    def observe(self, stage: int, start: int, deltas: list[Array]) -> None:
        """Sum magnitudes before and after."""
        for k, delta in enumerate(deltas):
            self._before.add_magnitudes(k, delta)
        self.thin(start, deltas)
        for k, delta in enumerate(deltas):
            self._after.add_magnitudes(k, delta)

    def finish(self, stage: int) -> None:
        """Set the factors that restore the magnitudes."""
        self.scales = _ratios(self._before, self._after)

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Drop by rank and by the words of this chunk."""
        for stream, (density, epsilon), delta in zip(
            self._streams, self._spans, deltas, strict=True
        ):
            if density == 1.0 and epsilon == 0.0:
                continue
            chance = keep_probabilities(delta.reshape(-1, self._row), density, epsilon).ravel()
            words = stream.words(start, start + delta.size)
            delta *= words < chance * 2.0**32
            if self._rescale == "paper":
                delta /= np.maximum(chance, np.finfo(np.float32).tiny).astype(delta.dtype)


def keep_probabilities(rows: Array, density: float, epsilon: float) -> NDArray[np.float64]:
    """Return float64[R, C]: DELLA's keep probabilities, linear in the rank within the row.

    >>> keep_probabilities(np.array([[3.0, -1.0, 2.0]]), 0.5, 0.25).tolist()
    [[0.75, 0.25, 0.5]]
    """
    order = np.argsort(np.abs(rows), axis=1, kind="stable")
    length = rows.shape[1]
    levels = np.linspace(density - epsilon, density + epsilon, length)
    if length == 1:
        levels = np.array([density])
    chance = np.empty(rows.shape)
    np.put_along_axis(chance, order, levels[None, :], axis=1)
    return chance


class Variance(KeepAll):
    """Keeps the same elements of all models: those where the models differ most.

    Of the elements with a variance above zero, the share ``select_topk`` is kept.
    """

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings)
        share = float(settings.shared["select_topk"])
        self._selector = None
        if share < 1.0:
            self._selector = RankSelector(_share_of_nonzero(share), settings.work)
            self.passes = self._selector.passes
        self._top: TopSet | None = None

    def observe(self, stage: int, start: int, deltas: list[Array]) -> None:
        """Count digits of the variances."""
        if self._selector:
            self._selector.observe(stage, variance(deltas))

    def finish(self, stage: int) -> None:
        """Fix a digit of the threshold."""
        if self._selector:
            self._selector.finish(stage)

    def restart(self) -> None:
        """Start the set anew."""
        self._top = self._selector.top_set(0) if self._selector else None

    def thin(self, start: int, deltas: list[Array]) -> None:
        """Keep the elements of high variance."""
        if self._top:
            keep = self._top.keep(variance(deltas))
            for delta in deltas:
                delta *= keep


def _share_of_nonzero(share: float) -> Callable[[int, int], list[int]]:
    return lambda elements, nonzero: [int(share * nonzero)]


def variance(deltas: list[Array]) -> Array:
    """Return the population variance across models of each element, in working precision."""
    mean = sum(deltas[1:], start=deltas[0].copy())
    mean /= mean.dtype.type(len(deltas))
    total = np.zeros_like(mean)
    for delta in deltas:
        total += np.square(delta - mean)
    return total / total.dtype.type(len(deltas))


SPARSIFY: dict[str, Callable[[StageSettings], Sparsifier]] = {
    "none": KeepAll,
    "magnitude": Magnitude,
    "bernoulli": Bernoulli,
    "magprune": Magprune,
    "outliers": Outliers,
    "variance": Variance,
}
