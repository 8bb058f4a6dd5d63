"""Exact order statistics of a tensor that is only ever seen in chunks.

The bit pattern of a non-negative float grows with its value, so the m-th largest magnitude is
found digit by digit (16 bits each) from histograms: two passes for float32, four for float64.
Nothing is sorted and no second tensor is kept. Elements that equal the threshold are taken in
index order, so that the kept set is unique.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mixgym.trainer.merging.methods.numerics import Array, bits_of

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS

Ranks = Callable[[int, int], Sequence[int]]
"""(elements, elements that are not zero) -> sizes of the top sets."""


class RankSelector:
    """Finds the thresholds of the sets of the m largest values, for several m at once.

    Args:
        ranks: How many elements each top set holds; 0 is the empty set.
        work: float32 or float64, the type of the values.

    >>> selector = RankSelector(lambda count, nonzero: [2], np.dtype(np.float32))
    >>> for stage in range(selector.passes):
    ...     selector.observe(stage, np.array([3, 1, 2, 2], np.float32))
    ...     selector.finish(stage)
    >>> selector.top_set(0).keep(np.array([3, 1, 2, 2], np.float32)).tolist()
    [True, False, True, False]
    """

    def __init__(self, ranks: Ranks, work: np.dtype[np.floating]) -> None:
        self._ranks = ranks
        self._digits = work.itemsize * 8 // _DIGIT_BITS
        self._word = np.dtype(f"u{work.itemsize}").type
        self._values = work
        self._histograms = [np.zeros(_DIGITS, np.int64)]
        self._prefixes: list[int] = []
        self._wanted: list[int] = []
        self._zeros = 0

    @property
    def passes(self) -> int:
        """How often all chunks must be shown."""
        return self._digits

    def observe(self, stage: int, magnitudes: Array) -> None:
        """Count the digits of one chunk of non-negative values."""
        bits = bits_of(magnitudes)
        shift = self._word(_DIGIT_BITS * (self._digits - 1 - stage))
        if stage == 0:
            self._zeros += bits.size - int(np.count_nonzero(bits))
            self._histograms[0] += np.bincount(bits >> shift, minlength=_DIGITS)
            return
        above = bits >> self._word(int(shift) + _DIGIT_BITS)
        for histogram, prefix in zip(self._histograms, self._prefixes, strict=True):
            inside = bits[above == self._word(prefix)]
            digit = (inside >> shift) & self._word(_DIGITS - 1)
            histogram += np.bincount(digit.astype(np.int64), minlength=_DIGITS)

    def finish(self, stage: int) -> None:
        """Fix the next digit of every threshold."""
        if stage == 0:
            total = int(self._histograms[0].sum())
            self._wanted = list(self._ranks(total, total - self._zeros))
            self._prefixes = [0] * len(self._wanted)
            self._histograms *= len(self._wanted)
        for i, histogram in enumerate(self._histograms):
            self._prefixes[i], self._wanted[i] = self._descend(i, histogram)
        self._histograms = [np.zeros(_DIGITS, np.int64) for _ in self._wanted]

    def _descend(self, i: int, histogram: Array) -> tuple[int, int]:
        """Return the longer prefix and how many of its elements belong to the top set."""
        wanted = self._wanted[i]
        at_least = np.cumsum(histogram[::-1])
        position = int(np.searchsorted(at_least, max(wanted, 1)))
        digit = _DIGITS - 1 - position
        above = int(at_least[position - 1]) if position else 0
        return (self._prefixes[i] << _DIGIT_BITS) | digit, wanted - above

    def top_set(self, i: int) -> "TopSet":
        """Return the i-th top set, to be walked through from the first chunk."""
        threshold = np.array([self._prefixes[i]], self._word).view(self._values)[0]
        return TopSet(threshold, self._wanted[i])


class TopSet:
    """The m largest values of a tensor, met chunk by chunk in index order.

    Args:
        threshold: The m-th largest value.
        equals: How many elements equal to it belong to the set; the first ones do.
    """

    def __init__(self, threshold: np.floating, equals: int) -> None:
        self._threshold = threshold
        self._left = equals

    def keep(self, magnitudes: Array) -> Array:
        """Return bool[n]: which elements of the next chunk are in the set."""
        if self._left <= 0:
            return np.greater(magnitudes, self._threshold)
        equal = np.equal(magnitudes, self._threshold)
        count = int(np.count_nonzero(equal))
        if count > self._left:
            equal &= np.cumsum(equal) <= self._left
        self._left -= min(count, self._left)
        return np.greater(magnitudes, self._threshold) | equal
