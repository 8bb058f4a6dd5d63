"""Choosing among models element by element: the array arithmetic behind parameter selection.

Everything here passes over bits and flags, without branches and without sorting.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.methods.numerics import Array
from mixgym.trainer.merging.methods.random_words import Flags, Indices, Words

_Picks = NDArray[Any]
"""Which model each element is drawn from: the narrowest signed integers that count them."""

_REDRAW_BITS = 31
"""Bits of the words that further draws take, so that uint32 holds the upper end as well."""

_TABLED_KINDS = 8
_BLOCK = 1 << 16  # four passes over it stay in the processor's second cache
_GROUP = 8
_DENSE_SHARE = 0.5


def choose(
    candidates: Iterable[Array],
    earlier: Sequence[Flags],
    out: Array,
    make: Callable[[str], Array] | None = None,
) -> None:
    """Fill ``out`` with the bits of one candidate for each element, without branches.

    All are unsigned integers; where two differ is multiplied by 0 or 1 and put on top.

    Args:
        candidates: Bits, one array for each model, from the last to the first; each is asked for
            when it is needed.
        earlier: For each model but the last, where it or one before it is wanted.
        out: Like a candidate; filled.
        make: Name -> uninitialised array like ``out``.
    """
    make = make or (lambda name: np.empty_like(out))
    mask, spare = make("mask")[:_BLOCK], make("kept")
    coming = iter(candidates)
    current = next(coming)
    if not earlier:
        np.copyto(out, current)
    for k in reversed(range(len(earlier))):
        other, target = next(coming), (out, spare)[k % 2]
        for start in range(0, out.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            _lay(current[block], other[block], earlier[k][block], target[block], mask)
        current = target


def _lay(under: Array, over: Array, where: Flags, out: Array, mask: Array) -> None:
    """Fill ``out`` with ``over`` where the flag is set, and with ``under`` elsewhere."""
    mask = mask[: out.size]
    np.bitwise_xor(under, over, out=out)
    np.copyto(mask, where.view(np.uint8))
    np.multiply(out, mask, out=out)
    np.bitwise_xor(out, under, out=out)


def counts_of(earlier: Sequence[Flags], size: int) -> NDArray[np.int64]:
    """Return how often each model was drawn: int64[K].

    Args:
        earlier: For each model but the last, where it or one before it was drawn.
        size: Number of elements.
    """
    reached = [0, *(int(np.count_nonzero(below)) for below in earlier), size]
    return np.array([b - a for a, b in pairwise(reached)])


def picks_of(earlier: Sequence[Flags], size: int) -> _Picks:
    """Return which model each element was drawn from, for the same arguments: int[size]."""
    kinds = 1 + len(earlier)
    picked = np.full(size, kinds - 1, np.min_scalar_type(-kinds))
    for below in earlier:
        picked -= below.view(np.int8)
    return picked


class Lots:
    """Draws among those models that are open to an element, in proportion to their shares.

    Which are open is a number of K bits; a table holds the borders for each, so that a draw is a
    look-up and K - 1 comparisons.

    Args:
        shares: Probabilities, float64[K], all positive.
    """

    def __init__(self, shares: NDArray[np.float64]) -> None:
        self._shares = shares
        self.kinds = len(shares)
        small = self.kinds <= _TABLED_KINDS
        self._table = self._borders(np.arange(1 << self.kinds)) if small else None

    def _borders(self, patterns: NDArray[np.int64]) -> Words:
        """Return uint32[K - 1, patterns]: a model is drawn from its border on."""
        is_open = patterns[:, None] >> np.arange(self.kinds) & 1
        reached = np.cumsum(is_open * self._shares, axis=1)
        whole = np.maximum(reached[:, -1:], np.finfo(np.float64).tiny)
        borders = np.floor(2.0**_REDRAW_BITS * reached[:, :-1] / whole)
        return np.ascontiguousarray(borders.T.astype(np.uint32))

    def draw(self, is_open: Sequence[Flags], words: Words) -> _Picks:
        """Return int[m]: one draw for each element; the last model if none is open to it.

        Args:
            is_open: For each model, bool[m].
            words: uint32[m], below 2^31.
        """
        patterns = np.zeros(words.shape, np.min_scalar_type((1 << self.kinds) - 1))
        for k, flags in enumerate(is_open):
            patterns |= flags.view(np.uint8).astype(patterns.dtype) << patterns.dtype.type(k)
        table, places = self._table, patterns.astype(np.intp)
        if table is None:
            found, places = np.unique(places, return_inverse=True)
            table = self._borders(found)
        picked = np.zeros(words.shape, np.min_scalar_type(-self.kinds))
        for borders in table:
            picked += (words >= borders[places]).view(np.int8)
        return picked


def redraw(
    words: Callable[[int], Words],
    first: _Picks,
    differs: Sequence[Flags],
    lots: Lots,
    rounds: int | None,
) -> _Picks:
    """Return int[m]: the models drawn in place of ``first``, none of which differed from base.

    Args:
        words: Turn -> fresh random words of the elements, uint32[m], below 2^31.
        first: The models that were drawn at first, int[m].
        differs: For each model, which elements differ from the base, bool[m].
        lots: What draws.
        rounds: Further draws at most, without replacement; None: one draw among the survivors.
    """
    if rounds is None:
        return lots.draw(differs, words(1))
    picked = first.copy()
    untried = [first != k for k in range(lots.kinds)]
    undecided = np.ones(first.shape, np.bool_)
    for turn in range(1, 1 + min(rounds, lots.kinds - 1)):
        picked = np.where(undecided, lots.draw(untried, words(turn)), picked)
        for k, differ in enumerate(differs):
            untried[k] &= picked != k
            undecided &= ~(differ & (picked == k))
    return picked


def places_of(flags: Flags) -> Indices:
    """Return where a bool[n] is set, as ``np.flatnonzero`` does.

    That one takes a mispredicted branch for each of few. Groups of eight are looked through first
    here, most of which hold nothing.
    """
    if flags.size % _GROUP:
        return np.flatnonzero(flags)
    grouped = flags.view(np.uint64)
    groups = np.flatnonzero(grouped != 0)
    if groups.size > _DENSE_SHARE * grouped.size:
        return np.flatnonzero(flags)
    found = np.flatnonzero(grouped[groups].view(np.bool_))
    groups *= _GROUP
    groups -= np.arange(0, _GROUP * groups.size, _GROUP)  # what ``found`` counts already
    found += groups[found // _GROUP]
    return found


def zero_places(bits: Array) -> Indices:
    """Return the indices of 0.0 and -0.0 among bit patterns of floats."""
    signed = bits.view(f"i{bits.itemsize}")
    if bits.size == 0 or (bits.min() > 0 and signed.min() > np.iinfo(signed.dtype).min):
        return np.empty(0, np.intp)
    return np.flatnonzero(_without_sign(bits) == 0)


def unequal(one: Array, base: Array, zeros: Indices, out: Flags) -> Flags:
    """Compare bit patterns of finite floats in ``out``, with -0.0 equal to 0.0.

    Args:
        one: Bits.
        base: Bits.
        zeros: Where the base is 0.0 or -0.0.
        out: bool[n], filled and returned.
    """
    np.not_equal(one, base, out=out)
    if zeros.size:
        out[zeros] = _without_sign(one[zeros]) != 0
    return out


def _without_sign(bits: Array) -> Array:
    return np.left_shift(bits, bits.dtype.type(1))
