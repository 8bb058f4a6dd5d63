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
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.chunk import BASE, Chunk
from mixgym.trainer.merging.kernels import Checks
from mixgym.trainer.merging.numerics import Array, bits_of, equal_values
from mixgym.trainer.merging.sparsify import SPARSIFY, StageSettings
from mixgym.trainer.merging.statistics import Tally
from mixgym.trainer.merging.words import Draw, RepeatedDraw, Words, WordStream, thresholds

_WORD = 2.0**32


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
            return self._select(draw, [bits_of(chunk.raw(k)) for k in self._live()], base)
        values, base_values = self._values(chunk)
        base = bits_of(base_values) if base_values is not None else None
        picked = self._select(draw, [bits_of(values[k]) for k in self._live()], base)
        return chunk.encode(picked.view(chunk.work))

    def _live(self) -> list[int]:
        return [int(k) for k in np.flatnonzero(self._shares)]

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

    def _select(self, draw: Draw, candidates: list[Array], base: Array | None) -> Array:
        live = self._live()
        edges = [self._edges[k] for k in live]
        out = candidates[-1].copy()
        below = [draw.size]
        for edge, candidate in zip(edges[-2::-1], candidates[-2::-1], strict=True):
            earlier = draw.below(edge)
            below.append(int(np.count_nonzero(earlier)))
            blend(out, candidate, earlier)
        counts = np.diff([0, *below[::-1]])
        if base is not None:
            counts += self._resample(draw, candidates, base, out, edges)
        selected = np.zeros(len(self._shares), np.int64)
        selected[live] = counts
        self.tally.count_selected(draw.size, [int(c) for c in selected])
        return out

    def _resample(
        self, draw: Draw, candidates: list[Array], base: Array, out: Array, edges: list[int]
    ) -> NDArray[np.int64]:
        """Draw again where ``out`` equals the base, in place; return the change of the counts."""
        changed = np.zeros(len(candidates), np.int64)
        where = np.flatnonzero(equal_values(out, base))
        if not self._is_thinned and self._rounds is None:
            self._count_equal(candidates, base)
        if where.size == 0:
            return changed
        found = np.stack([candidate[where] for candidate in candidates], axis=1)
        differs = ~equal_values(found, base[where][:, None])
        some = differs.any(axis=1)
        where, found, differs = where[some], found[some], differs[some]
        first = np.searchsorted(np.array(edges, np.uint64), draw.words_at(where), side="right")
        shares = self._shares[self._live()]
        picked = redraw(partial(draw.again_at, places=where), first, differs, shares, self._rounds)
        out[where] = np.take_along_axis(found, picked[:, None], axis=1)[:, 0]
        changed += np.bincount(picked, minlength=changed.size)
        changed -= np.bincount(first, minlength=changed.size)
        return changed

    def _count_equal(self, candidates: list[Array], base: Array) -> None:
        counts = np.zeros(len(self._shares), np.int64)
        counts[self._live()] = [int(np.count_nonzero(equal_values(c, base))) for c in candidates]
        self.tally.count_equal(base.size, [int(c) for c in counts])


def blend(out: Array, other: Array, where: Array) -> None:
    """Replace ``out`` by ``other`` where bool ``where`` is set, in place, without branches.

    Both are unsigned integers; a mask of all ones or all zeros chooses between them.
    """
    mask = where.view(np.int8).astype(out.dtype)
    np.negative(mask, out=mask)
    mask &= out ^ other
    out ^= mask


def redraw(
    words: Callable[[int], Words],
    first: NDArray[np.intp],
    differs: Array,
    shares: NDArray[np.float64],
    rounds: int | None,
) -> NDArray[np.intp]:
    """Return intp[m]: the models drawn in place of ``first``, none of which differed from base.

    Args:
        words: Turn -> fresh random words of the elements, uint32[m].
        first: The models that were drawn at first, intp[m].
        differs: Which models differ from the base, bool[m, K].
        shares: Probabilities, float64[K], all positive.
        rounds: Further draws at most, without replacement; None: one draw among the survivors.
    """
    rows = np.arange(len(first))
    picked = first.copy()
    open_to = differs.copy() if rounds is None else np.ones_like(differs)
    open_to[rows, first] = False
    for turn in range(1, 1 + (1 if rounds is None else min(rounds, len(shares) - 1))):
        drawn = _draw(words(turn), open_to * shares)
        undecided = ~differs[rows, picked]
        picked = np.where(undecided, drawn, picked)
        open_to[rows, picked] = False
    return picked


def _draw(words: Words, chances: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return intp[m]: one draw per row from unnormalised chances, float64[m, K]."""
    edges = np.cumsum(chances, axis=1)
    target = words / _WORD * edges[:, -1]
    over: NDArray[np.intp] = np.argmax(edges > target[:, None], axis=1)
    return over
