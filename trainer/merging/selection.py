"""Parameter selection: each element of the merge is one model's own, drawn at random.

Source: Ju et al., "Mitigating Training Imbalance in LLM Fine-Tuning via Selective Parameter
Merging", arXiv 2410.03743. Where the drawn value equals the base's, resampling draws again among
the models that were not tried (``1``, ``2``, ... rounds), or among those that differ (``all``).

``resample: all`` gives the same as ``resample: 0`` wherever the first draw differs from the base:
keeping a draw that survived, and otherwise drawing again among the survivors, is a draw from the
survivors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.chunk import BASE, Chunk
from mixgym.trainer.merging.kernels import Checks
from mixgym.trainer.merging.numerics import Array, bits_of, equal_values
from mixgym.trainer.merging.sparsify import SPARSIFY, StageSettings
from mixgym.trainer.merging.statistics import Tally
from mixgym.trainer.merging.words import Draw, RepeatedDraw, Words, WordStream, thresholds

_WORD = 2.0**32

Picks = NDArray[Any]
"""Which model each element is drawn from: the narrowest signed integers that count them."""


@dataclass(frozen=True)
class Draws:
    """Which random word decides an element.

    Args:
        stream: Words of the tensor, or of the layer.
        run: Elements that share a word: 1, those of a row, or all.
    """

    stream: WordStream
    run: int

    def of(self, start: int, stop: int) -> Draw:
        """Return the words of elements ``start`` to ``stop``."""
        if self.run == 1:
            return Draw(self.stream, start, self.stream.halves(start, stop))
        return RepeatedDraw(self.stream, start, stop, self.run)


class SelectKernel:
    """Selects bits where all models are stored like the output, else values.

    Args:
        settings: The tensor's parameters.
        sparsify: First stage; a dropped delta counts as equal to the base.
        draws: Where the random words come from.
        resample: Further draws at most; None is as many as it takes.
    """

    def __init__(
        self, settings: StageSettings, sparsify: str, draws: Draws, resample: int | None
    ) -> None:
        weights = np.array(settings.per_model["weight"], np.float64)
        self._shares: NDArray[np.float64] = weights / weights.sum()
        self._live = [int(k) for k in np.flatnonzero(self._shares)]
        self._edges = thresholds(weights)
        self._draws = draws
        self._rounds = resample
        self._is_thinned = sparsify != "none"
        self.measures_deltas = self._is_thinned
        self.checks: Checks = "both"
        self._sparsifier = SPARSIFY[sparsify](settings)
        self.passes = self._sparsifier.passes
        self.whole_rows = self._sparsifier.whole_rows
        self.tally = Tally()
        if self.passes == 0:
            self._sparsifier.restart()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Show the chunk to the sparsifier."""
        self._sparsifier.observe(stage, chunk.start, chunk.deltas())

    def finish(self, stage: int) -> None:
        """End a pass of the sparsifier."""
        self._sparsifier.finish(stage)
        if stage == self.passes - 1:
            self._sparsifier.restart()

    def apply(self, chunk: Chunk) -> Array:
        """Draw each element."""
        draw = self._draws.of(chunk.start, chunk.stop)
        if self._copies_bits(chunk):
            self.checks = "inputs"
            base = bits_of(chunk.raw(BASE)) if self._rounds != 0 else None
            place = chunk.place()
            bits = [bits_of(chunk.raw(k)) for k in self._live]
            self._select(chunk, draw, bits, base, bits_of(place))
            return place
        values, base_values = self._values(chunk)
        base = bits_of(base_values) if base_values is not None else None
        picked = chunk.scratch("picked")
        bits = [bits_of(values[k]) for k in self._live]
        self._select(chunk, draw, bits, base, bits_of(picked))
        return chunk.encode(picked)

    def _copies_bits(self, chunk: Chunk) -> bool:
        indices = [*range(chunk.models), *([BASE] if self._rounds != 0 else [])]
        return not self._is_thinned and all(chunk.kind(i) == chunk.out for i in indices)

    def _values(self, chunk: Chunk) -> tuple[list[Array], Array | None]:
        """Return each model's candidate values, and the base's if it matters."""
        if not self._is_thinned:
            values = [chunk.value(k) for k in range(chunk.models)]
            return self._settle_untouched(chunk, values)
        deltas = chunk.deltas()
        self.tally.count_deltas(deltas)
        self._sparsifier.thin(chunk.start, deltas)
        base = chunk.value(BASE)
        return [self._survivors(chunk, k, d, base) for k, d in enumerate(deltas)], base

    def _settle_untouched(
        self, chunk: Chunk, values: list[Array]
    ) -> tuple[list[Array], Array | None]:
        """Give untouched elements the base's own value, where models are stored otherwise."""
        if self._rounds == 0:
            return values, None
        base = chunk.value(BASE)
        for k in range(chunk.models):
            if chunk.kind(k) != chunk.kind(BASE):
                values[k] = np.where(values[k] == chunk.base_as(k), base, values[k])
        return values, base

    def _survivors(self, chunk: Chunk, index: int, delta: Array, base: Array) -> Array:
        if self._sparsifier.rescales:
            scaled = delta * delta.dtype.type(self._sparsifier.scales[index])
            return np.where(delta != 0, base + scaled, base)
        return np.where(delta != 0, chunk.value(index), base)

    def _select(
        self, chunk: Chunk, draw: Draw, candidates: list[Array], base: Array | None, out: Array
    ) -> None:
        """Fill ``out`` with the bits of the model that each element is drawn from."""
        flags = np.dtype(np.bool_)
        spare = (chunk.scratch("mask", out.dtype), chunk.scratch("crossed", out.dtype))
        out[...] = candidates[-1]
        earlier = [
            draw.below(self._edges[k], chunk.scratch(("below", k), flags)) for k in self._live[:-1]
        ]
        for candidate, below in zip(candidates[-2::-1], earlier[::-1], strict=True):
            blend(out, candidate, below, *spare)
        reached = [0, *(int(np.count_nonzero(below)) for below in earlier), draw.size]
        counts = np.array([b - a for a, b in pairwise(reached)])
        if base is not None:
            counts += self._resample(draw, candidates, base, out, earlier, counts)
        selected = np.zeros(len(self._shares), np.int64)
        selected[self._live] = counts
        self.tally.count_selected(draw.size, [int(c) for c in selected])

    def _resample(
        self,
        draw: Draw,
        candidates: list[Array],
        base: Array,
        out: Array,
        earlier: list[Array],
        drawn: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Draw again where ``out`` equals the base, in place; return the change of the counts.

        Args:
            draw: The chunk's random words.
            candidates: Bits of the models that can be drawn.
            base: Bits of the base.
            out: Bits of what was drawn at first.
            earlier: For each model but the last, where it or one before it was drawn.
            drawn: How many elements were drawn from each.
        """
        kinds = len(candidates)
        where = where_equal(out, base)
        first = np.full(where.shape, kinds - 1, np.min_scalar_type(-kinds))
        for below in earlier:
            first -= below[where].view(np.int8)
        lost = _counts(first, kinds)
        if not self._is_thinned:
            self._count_equal(lost, drawn)
        here = base[where]
        found = [candidate[where] for candidate in candidates]
        differs = [~equal_values(values, here) for values in found]
        again = partial(draw.again_at, places=where)
        picked = redraw(again, first, differs, self._shares[self._live], self._rounds)
        np.copyto(picked, first, where=~reduce(np.logical_or, differs))  # nobody moved it
        chosen = found[0]
        for k, values in enumerate(found[1:], 1):
            blend(chosen, values, picked == k)
        out[where] = chosen
        return _counts(picked, kinds) - lost

    def _count_equal(self, lost: NDArray[np.int64], drawn: NDArray[np.int64]) -> None:
        """Count zero deltas among the elements that were first drawn from each model."""
        counts = np.zeros((2, len(self._shares)), np.int64)
        counts[:, self._live] = lost, drawn
        self.tally.count_equal([int(c) for c in counts[0]], [int(c) for c in counts[1]])


def _counts(picked: Picks, kinds: int) -> NDArray[np.int64]:
    """Return int64[kinds]; for few kinds this takes a third of a bincount's time."""
    return np.array([np.count_nonzero(picked == k) for k in range(kinds)])


def blend(
    out: Array,
    other: Array,
    where: Array,
    mask: Array | None = None,
    crossed: Array | None = None,
) -> None:
    """Replace ``out`` by ``other`` where bool ``where`` is set, in place, without branches.

    Both are unsigned integers; a mask of all ones or all zeros chooses between them.

    Args:
        out: Unsigned integers, changed.
        other: What replaces them.
        where: bool[n].
        mask: Like ``out``; overwritten.
        crossed: Like ``out``; overwritten.
    """
    mask = np.empty_like(out) if mask is None else mask
    np.copyto(mask, where.view(np.uint8))
    np.negative(mask, out=mask)
    mask &= np.bitwise_xor(out, other, out=crossed)
    out ^= mask


def redraw(
    words: Callable[[int], Words],
    first: Picks,
    differs: list[Array],
    shares: NDArray[np.float64],
    rounds: int | None,
) -> Picks:
    """Return int[m]: the models drawn in place of ``first``, none of which differed from base.

    Args:
        words: Turn -> fresh random words of the elements, uint32[m].
        first: The models that were drawn at first, int[m].
        differs: For each model, which elements differ from the base, bool[m].
        shares: Probabilities, float64[K], all positive.
        rounds: Further draws at most, without replacement; None: one draw among the survivors.
    """
    if rounds is None:
        return _draw(words(1), differs, shares, first.dtype)
    picked = first.copy()
    untried = [first != k for k in range(len(shares))]
    undecided = np.ones(first.shape, np.bool_)
    for turn in range(1, 1 + min(rounds, len(shares) - 1)):
        drawn = _draw(words(turn), untried, shares, first.dtype)
        picked = np.where(undecided, drawn, picked)
        for k, differ in enumerate(differs):
            untried[k] &= picked != k
            undecided &= ~(differ & (picked == k))
    return picked


def _draw(
    words: Words, is_open: list[Array], shares: NDArray[np.float64], kind: np.dtype[Any]
) -> Picks:
    """Return int[m]: one draw for each element among the models open to it; the last if none is."""
    edges = [is_open[0] * shares[0]]
    for allowed, share in zip(is_open[1:], shares[1:], strict=True):
        edges.append(edges[-1] + allowed * share)
    target = words / _WORD
    target *= edges[-1]
    picked = np.zeros(words.shape, kind)
    for edge in edges[:-1]:
        picked += (target >= edge).view(np.int8)
    return picked


def where_equal(one: Array, two: Array) -> NDArray[np.intp]:
    """Return the indices at which bit patterns of finite floats are equal values."""
    differing = one ^ two
    np.left_shift(differing, differing.dtype.type(1), out=differing)
    alike = np.flatnonzero(differing == 0)  # equal, or opposite
    return alike[equal_values(one[alike], two[alike])]
