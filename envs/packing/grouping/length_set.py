"""A set of small integers that finds its neighbours in constant time.

Packers ask, for every pack and every distinct length, for the longest length that still fits, or
for the fullest pack that still holds a length. Bits in two levels answer both at the speed of a few
integer operations, whatever the number of documents.
"""

from collections.abc import Iterable


class LengthSet:
    """Integers from 0 to ``largest``.

    Args:
        largest: the largest integer that may be added.
        members: what is in the set at first.

    Example:
        >>> lengths = LengthSet(100, [3, 40, 70])
        >>> lengths.at_most(69), lengths.at_least(41), lengths.at_most(2)
        (40, 70, -1)
    """

    def __init__(self, largest: int, members: Iterable[int] = ()) -> None:
        # member = word * 2^shift + bit, with 2^shift about the root of the largest: both the words
        # and the set of words that are not 0 are integers of about as many bits
        self._shift = max(4, (largest.bit_length() + 1) // 2)
        self._mask = (1 << self._shift) - 1
        self._words = [0] * ((largest >> self._shift) + 1)
        self._used = 0  # bit j: word j is not 0
        for member in members:
            self.add(member)

    def add(self, member: int) -> None:
        """Put an integer in."""
        word = member >> self._shift
        self._words[word] |= 1 << (member & self._mask)
        self._used |= 1 << word

    def discard(self, member: int) -> None:
        """Take an integer out, if it is in."""
        word = member >> self._shift
        self._words[word] &= ~(1 << (member & self._mask))
        if not self._words[word]:
            self._used &= ~(1 << word)

    def at_least(self, bound: int) -> int:
        """The smallest member that is ``bound`` or more; -1 if there is none."""
        word = bound >> self._shift
        if word >= len(self._words):
            return -1
        bits = self._words[word] >> (bound & self._mask)
        if bits:  # b & -b is the lowest bit that is set, and its bit_length - 1 where it stands
            return bound + (bits & -bits).bit_length() - 1
        above = self._used >> (word + 1)
        if not above:
            return -1
        word += (above & -above).bit_length()
        bits = self._words[word]
        return (word << self._shift) + (bits & -bits).bit_length() - 1

    def at_most(self, bound: int) -> int:
        """The largest member that is ``bound`` or less; -1 if there is none."""
        word = bound >> self._shift
        if word >= len(self._words):
            return self.last()
        # bits 0 ... bound of the word: 2^(bound + 1) - 1; the highest that is set is the member
        bits = self._words[word] & ((2 << (bound & self._mask)) - 1)
        if bits:
            return (word << self._shift) + bits.bit_length() - 1
        below = self._used & ((1 << word) - 1)
        return self._last_of(below)

    def last(self) -> int:
        """The largest member; -1 if the set is empty."""
        return self._last_of(self._used)

    def _last_of(self, words: int) -> int:
        if not words:
            return -1
        word = words.bit_length() - 1
        return (word << self._shift) + self._words[word].bit_length() - 1
