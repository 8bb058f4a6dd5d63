"""Parameter selection: each element of the merge is one model's own, drawn at random.

Source: Ju et al., "Mitigating Training Imbalance in LLM Fine-Tuning via Selective Parameter
Merging", arXiv 2410.03743. Where the drawn value equals the base's, resampling draws again among
the models that were not tried (``1``, ``2``, ... rounds), or among those that differ (``all``).

``resample: all`` gives the same as ``resample: 0`` wherever the first draw differs from the base:
keeping a draw that survived, and otherwise drawing again among the survivors, is a draw from the
survivors.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.chunk import BASE, Chunk
from mixgym.trainer.merging.methods.element_choice import (
    Lots,
    choose,
    counts_of,
    picks_of,
    places_of,
    redraw,
    unequal,
    zero_places,
)
from mixgym.trainer.merging.methods.kernels import Checks
from mixgym.trainer.merging.methods.numerics import Array, bits_of
from mixgym.trainer.merging.methods.random_words import (
    Draw,
    Flags,
    Indices,
    RepeatedDraw,
    WordStream,
    thresholds,
)
from mixgym.trainer.merging.methods.sparsify import SPARSIFY, StageSettings
from mixgym.trainer.merging.methods.statistics import Tally


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
            return Draw(self.stream, start, self.stream.heads(start, stop))
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
        self._lots = Lots(self._shares[self._live])
        self._draws = draws
        self._rounds = resample
        self._is_thinned = sparsify != "none"
        self.measures_deltas = self._is_thinned
        self.stretch = 1 if self._is_thinned else 2  # many short passes over narrow elements
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
        if self._copies_bits(chunk):
            self.checks = "inputs"
            base = bits_of(chunk.raw(BASE)) if self._rounds != 0 else None
            place = chunk.place()
            self._select(chunk, lambda k: bits_of(chunk.raw(k)), base, bits_of(place))
            return place
        values, base_values = self._values(chunk)
        base = bits_of(base_values) if base_values is not None else None
        picked = chunk.scratch("picked")
        self._select(chunk, lambda k: bits_of(values[k]), base, bits_of(picked))
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
        self, chunk: Chunk, bits: Callable[[int], Array], base: Array | None, out: Array
    ) -> None:
        """Fill ``out`` with the bits of the model that each element is drawn from.

        Models are asked for one by one, and each is done with while it lies in the cache.
        """
        draw = self._draws.of(chunk.start, chunk.stop)
        firsts = self._live[:-1]
        earlier = draw.below_each(
            [self._edges[k] for k in firsts], [_flags(chunk, ("below", k)) for k in firsts]
        )
        counts = counts_of(earlier, draw.size)
        make = partial(chunk.scratch, dtype=out.dtype)
        if base is None:
            choose(map(bits, self._live[::-1]), earlier, out, make)
        else:
            compared = _Compared(chunk, bits, base)
            choose(map(compared.bits, self._live[::-1]), earlier, out, make)
            counts += self._resample(draw, compared, out, earlier)
        self.tally.count_selected(draw.size, self._by_model(counts))

    def _resample(
        self, draw: Draw, compared: "_Compared", out: Array, earlier: list[Flags]
    ) -> NDArray[np.int64]:
        """Draw again where ``out`` equals the base, in place; return the change of the counts.

        Args:
            draw: The chunk's random words.
            compared: The models.
            out: Bits of what was drawn at first.
            earlier: For each model but the last, where it or one before it was drawn.
        """
        differs = [compared.differs[k] for k in self._live]
        if not self._is_thinned:
            equal = np.array([compared.equal[k] for k in self._live])
            everything = np.full(equal.shape, draw.size)
            self.tally.count_equal(self._by_model(equal), self._by_model(everything))
        where = compared.hopeful(out)
        first = [below[where] for below in earlier]
        picked = redraw(
            partial(draw.again_at, places=where),
            picks_of(first, where.size),
            [differ[where] for differ in differs],
            self._lots,
            self._rounds,
        )
        last = [picked <= k for k in range(len(first))]
        chosen = np.empty(where.size, out.dtype)
        choose((compared.bits(k)[where] for k in self._live[::-1]), last, chosen)
        out[where] = chosen
        return counts_of(last, where.size) - counts_of(first, where.size)

    def _by_model(self, counts: NDArray[np.int64]) -> list[int]:
        """Return one count for each model, from those of the models that can be drawn."""
        spread = np.zeros(len(self._shares), np.int64)
        spread[self._live] = counts
        return [int(count) for count in spread]


class _Compared:
    """The models' bits, each compared with the base while it lies in the cache.

    Args:
        chunk: Where buffers come from.
        bits: Index of a model -> its bits.
        base: The base's bits.

    Attributes:
        differs: Index of a model -> where it differs from the base.
        equal: Index of a model -> how many elements do not.
    """

    def __init__(self, chunk: Chunk, bits: Callable[[int], Array], base: Array) -> None:
        self._chunk = chunk
        self._bits = bits
        self._base = base
        self._zeros = zero_places(base)
        self._some = _flags(chunk, "some")
        self.differs: dict[int, Flags] = {}
        self.equal: dict[int, int] = {}

    def bits(self, index: int) -> Array:
        """Return a model's bits."""
        found = self._bits(index)
        if index not in self.differs:
            self._compare(index, found)
        return found

    def _compare(self, index: int, found: Array) -> None:
        differs = self._unequal(found, ("differs", index))
        if self.differs:
            np.logical_or(self._some, differs, out=self._some)
        else:
            np.copyto(self._some, differs)
        self.differs[index] = differs
        self.equal[index] = found.size - int(np.count_nonzero(differs))

    def hopeful(self, out: Array) -> Indices:
        """Return the places where ``out`` equals the base and some model does not."""
        moved = self._unequal(out, "moved")
        return places_of(np.greater(self._some, moved, out=moved))

    def _unequal(self, bits: Array, role: Hashable) -> Flags:
        return unequal(bits, self._base, self._zeros, _flags(self._chunk, role))


def _flags(chunk: Chunk, role: Hashable) -> Flags:
    return chunk.scratch(role, np.dtype(np.bool_))
