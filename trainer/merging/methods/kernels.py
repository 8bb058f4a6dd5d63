"""The arithmetic of each family of methods, over chunks.

A kernel belongs to one tensor. It is shown all chunks ``passes`` times for statistics and once
more to produce the output; between chunks it keeps scalars only.
"""

from math import fsum
from typing import Any, Literal, Protocol

import numpy as np

from mixgym.trainer.merging.chunk import BASE, Chunk
from mixgym.trainer.merging.methods import geometry
from mixgym.trainer.merging.methods.combine import COMBINE, times
from mixgym.trainer.merging.methods.numerics import Array, bits_of
from mixgym.trainer.merging.methods.sparsify import SPARSIFY, StageSettings
from mixgym.trainer.merging.methods.statistics import Tally
from mixgym.trainer.merging.methods.sums import GramSum

_NEGLIGIBLE = 1e-12

Checks = Literal["inputs", "output", "both"]


class Kernel(Protocol):
    """One method, applied to one tensor."""

    passes: int
    whole_rows: bool
    """Whether chunks must hold whole rows (along the last axis)."""
    measures_deltas: bool
    """Whether the tally has the deltas' lengths and zeros anyway."""
    stretch: int
    """How many times the usual number of elements a chunk holds."""
    checks: Checks
    """Where NaN and infinities are looked for: a sum shows them, a copy cannot bring new ones."""
    tally: Tally

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Take statistics of one chunk, in the pass ``stage``."""

    def finish(self, stage: int) -> None:
        """End a pass."""

    def apply(self, chunk: Chunk) -> Array:
        """Return the output's raw elements; chunks come in order, from the first."""


class Combination:
    """A linear combination of the models and the base.

    Args:
        coefficients: Index of a model (or BASE) -> factor; zeros are never read.
    """

    def __init__(self, coefficients: dict[int, float]) -> None:
        self._factors = {i: c for i, c in coefficients.items() if abs(c) > _NEGLIGIBLE}
        shares = [c for i, c in self._factors.items() if i != BASE]
        is_mean = BASE not in self._factors and abs(fsum(shares) - 1.0) < _NEGLIGIBLE
        self._is_mean = is_mean and len(shares) > 1

    @classmethod
    def of_deltas(cls, factors: list[float]) -> "Combination":
        """Return base + sum of factor * (model - base)."""
        return cls({BASE: 1.0 - fsum(factors), **dict(enumerate(factors))})

    def apply(self, chunk: Chunk) -> Array:
        """Return the output's raw elements."""
        factors = self._factors or {0: 0.0}
        if list(factors.values()) == [1.0]:
            return _copy(chunk, next(iter(factors)))
        keeps = self._is_mean and chunk.out.name in ("F32", "F64")
        out = chunk.encode(self._total(chunk, factors, keeps))
        if keeps:
            _keep_agreement(chunk, list(factors), out)
        return out

    def _total(self, chunk: Chunk, factors: dict[int, float], keeps: bool) -> Array:
        """The sum; ``keeps`` if the models' bits will be asked for again."""
        (first, factor), *rest = factors.items()
        equal = all(c == factor for _, c in rest)

        def value(index: int, role: str) -> Array:
            if keeps:
                return chunk.fresh_value(index)
            return chunk.passing_value(index, chunk.scratch(role))

        total = times(value(first, "total"), 1.0 if equal else factor)
        for index, c in rest:
            total += times(value(index, "part"), 1.0 if equal else c)
        return times(total, factor) if equal else total


def _copy(chunk: Chunk, index: int) -> Array:
    if chunk.kind(index) == chunk.out:
        return chunk.raw(index)
    return chunk.encode(chunk.value(index))


def _keep_agreement(chunk: Chunk, indices: list[int], out: Array) -> None:
    """Put the models' own bits where all of them agree, against rounding."""
    if any(chunk.kind(i) != chunk.out for i in indices):
        return
    first = bits_of(chunk.raw(indices[0]))
    same = np.ones(first.shape, np.bool_)
    for index in indices[1:]:
        same &= first == bits_of(chunk.raw(index))
    np.copyto(bits_of(out), first, where=same)


class LinearKernel:
    """A combination whose coefficients are known from the start."""

    passes = 0
    whole_rows = False
    measures_deltas = False
    stretch = 1
    checks: Checks = "output"

    def __init__(self, combination: Combination) -> None:
        self._combination = combination
        self.tally = Tally()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Nothing to measure."""

    def finish(self, stage: int) -> None:
        """Nothing to end."""

    def apply(self, chunk: Chunk) -> Array:
        """Combine."""
        return self._combination.apply(chunk)


class GramKernel:
    """A combination whose coefficients follow from the models' inner products.

    Args:
        method: A method of the geometric family.
        settings: The tensor's parameters.
        relative: Whether it is the deltas that lie on the sphere.
    """

    passes = 1
    whole_rows = False
    stretch = 1
    checks: Checks = "both"

    def __init__(self, method: str, settings: StageSettings, relative: bool) -> None:
        self._method = method
        self._settings = settings
        self._relative = relative
        self.measures_deltas = relative
        self._gram = GramSum(settings.models)
        self._combination: Combination | None = None
        self.tally = Tally()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Add to the inner products."""
        if self._relative:
            deltas = chunk.deltas()
            self.tally.count_deltas(deltas)
            self._gram.add(deltas)
        else:
            self._gram.add([chunk.value(k) for k in range(chunk.models)])

    def finish(self, stage: int) -> None:
        """Solve for the coefficients."""
        solved = coefficients(self._method, self._gram.matrix, self._settings)
        factors = [float(c) for c in solved]
        if self._relative:
            self._combination = Combination.of_deltas(factors)
        else:
            self._combination = Combination(dict(enumerate(factors)))

    def apply(self, chunk: Chunk) -> Array:
        """Combine."""
        assert self._combination is not None
        return self._combination.apply(chunk)


def coefficients(method: str, gram: geometry.Matrix, settings: StageSettings) -> geometry.Vector:
    """Return float64[K]: the coefficients of a geometric method for inner products ``gram``."""
    weights = np.array(settings.per_model.get("weight", [1.0] * settings.models))
    if method == "slerp":
        return geometry.slerp(gram, float(settings.shared["t"]))
    if method == "nuslerp":
        return geometry.nuslerp(gram, weights)
    if method == "model_stock":
        return geometry.model_stock(gram)
    if method == "multislerp":
        return geometry.spherical_mean(gram, weights, 0, 0.0)
    steps, tol = int(settings.shared["max_iter"]), float(settings.shared["tol"])
    return geometry.spherical_mean(gram, weights, steps, tol)


class RowSlerpKernel:
    """nuslerp of each row (along the last axis) on its own."""

    passes = 0
    whole_rows = True
    measures_deltas = False
    stretch = 1
    checks: Checks = "both"

    def __init__(self, settings: StageSettings, relative: bool) -> None:
        self._settings = settings
        self._relative = relative
        self.tally = Tally()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Nothing to measure."""

    def finish(self, stage: int) -> None:
        """Nothing to end."""

    def apply(self, chunk: Chunk) -> Array:
        """Turn each row by its own angle."""
        models = chunk.deltas() if self._relative else [chunk.value(0), chunk.value(1)]
        one, two = (x.reshape(-1, self._settings.row) for x in models)
        factors = np.array([self._row(a, b) for a, b in zip(one, two, strict=True)], chunk.work)
        merged = (factors[:, :1] * one + factors[:, 1:] * two).ravel()
        out = chunk.encode(merged + chunk.value(BASE) if self._relative else merged)
        _keep_agreement(chunk, [0, 1], out)
        return out

    def _row(self, one: Array, two: Array) -> geometry.Vector:
        gram = GramSum(2, self._settings.row)
        gram.add([one, two])
        return geometry.nuslerp(gram.matrix, np.array(self._settings.per_model["weight"]))


class StagedKernel:
    """Base plus the deltas, first thinned by a sparsifier and then merged by a combiner."""

    measures_deltas = True
    stretch = 1
    checks: Checks = "both"

    def __init__(self, sparsify: str, combine: str, settings: StageSettings) -> None:
        self._sparsifier = SPARSIFY[sparsify](settings)
        self._combiner = COMBINE[combine](settings)
        self.passes = self._sparsifier.passes + self._combiner.passes
        self.whole_rows = self._sparsifier.whole_rows
        self._keeps = _keeps_agreement(settings) and not self._sparsifier.rescales
        self.tally = Tally()
        if self.passes == 0:
            self._sparsifier.restart()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Show the chunk to the stage whose pass it is."""
        deltas = chunk.deltas()
        if stage < self._sparsifier.passes:
            self._sparsifier.observe(stage, chunk.start, deltas)
        else:
            self._sparsifier.thin(chunk.start, deltas)
            self._combiner.observe(deltas, self._sparsifier.scales)

    def finish(self, stage: int) -> None:
        """End the pass; from the last statistics of the sparsifier on, it can thin."""
        if stage < self._sparsifier.passes:
            self._sparsifier.finish(stage)
        else:
            self._combiner.finish()
        if stage >= self._sparsifier.passes - 1:
            self._sparsifier.restart()

    def apply(self, chunk: Chunk) -> Array:
        """Thin, combine, add to the base."""
        deltas = chunk.deltas()
        self.tally.count_deltas(deltas)
        self._sparsifier.thin(chunk.start, deltas)
        merged = self._combiner.combine(deltas, self._sparsifier.scales)
        merged += chunk.value(BASE)
        out = chunk.encode(merged)
        if self._keeps:
            _keep_agreement(chunk, list(range(chunk.models)), out)
        return out


def _keeps_agreement(settings: StageSettings) -> bool:
    """Whether equal models must come out as they are: nothing dropped, shares that sum to 1."""
    if float(settings.shared.get("lambda", 1.0)) != 1.0:
        return False
    if any(density != 1.0 for density in settings.per_model.get("density", [])):
        return False
    if any(gamma != 0.0 for gamma in settings.per_model.get("gamma", [])):
        return False
    if float(settings.shared.get("select_topk", 1.0)) != 1.0:
        return False
    weights = settings.per_model.get("weight", [1.0])
    return bool(settings.shared.get("normalize")) or abs(fsum(weights) - 1.0) < _NEGLIGIBLE


class NearswapKernel:
    """The base, drawn towards the model by min(1, t / distance) at each element."""

    passes = 0
    whole_rows = False
    measures_deltas = True
    stretch = 1
    checks: Checks = "both"

    def __init__(self, settings: StageSettings) -> None:
        self._reach = abs(float(settings.shared["t"]))
        self.tally = Tally()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Nothing to measure."""

    def finish(self, stage: int) -> None:
        """Nothing to end."""

    def apply(self, chunk: Chunk) -> Array:
        """Move by at most the reach."""
        (delta,) = chunk.deltas()
        self.tally.count_deltas([delta])
        near = np.abs(delta) <= self._reach
        moved = np.clip(delta, -self._reach, self._reach) + chunk.value(BASE)
        np.copyto(moved, chunk.value(0), where=near)
        return chunk.encode(moved)


def _settings_weights(settings: StageSettings) -> list[float]:
    """Return the weights as shares of their sum."""
    weights = settings.per_model["weight"]
    return [w / fsum(weights) for w in weights]


def build_linear(settings: StageSettings) -> Kernel:
    """Return the weighted average, or the weighted sum if it is not normalised."""
    weights = settings.per_model["weight"]
    if settings.shared["normalize"]:
        weights = _settings_weights(settings)
    return LinearKernel(Combination(dict(enumerate(weights))))


def build_dense_sum(settings: StageSettings) -> Kernel:
    """Return base + lambda * weighted sum of all deltas, as one combination."""
    weights = settings.per_model["weight"]
    if settings.shared["normalize"]:
        weights = _settings_weights(settings)
    factor: Any = settings.shared["lambda"]
    return LinearKernel(Combination.of_deltas([factor * w for w in weights]))
