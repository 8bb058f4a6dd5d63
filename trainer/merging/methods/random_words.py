"""Random words that depend on the seed, the purpose and the tensor's name, and on nothing else.

Word ``i`` of a stream belongs to element ``i`` of the tensor in C order, so that shard layout,
chunk size, threads and folder names cannot change a merge. A word has 32 bits. Its upper byte, the
head, comes from Philox4x64-10 (Salmon et al., 2011), whose raw stream numpy keeps stable; all but
one in 256 comparisons are decided by it. The other bits, and the words of further draws, are wanted
for few elements only, and are hashes of the element's number (SplitMix64; Steele et al., 2014).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Heads = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]

_HEADS_PER_COUNTER = 32
"""One counter step of Philox4x64 gives four 64-bit numbers, which are 32 heads."""

_TAIL_BITS = 24
_LAST_HEAD = 255

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


class WordStream:
    """An endless sequence of 32-bit words with access by index.

    Args:
        seed: The recipe's seed.
        purpose: What is drawn, such as ``select`` or ``bernoulli``.
        name: The tensor's canonical name, or a layer's.
        model: Index of the model where each has draws of its own.

    >>> stream = WordStream(0, "select", "layer.weight")
    >>> bool((stream.words(3, 7) == stream.words(0, 7)[3:]).all())
    True
    """

    def __init__(self, seed: int, purpose: str, name: str, model: int | None = None) -> None:
        self._text = f"{seed}|{purpose}|{name}|{'' if model is None else model}"
        self._key = int.from_bytes(_digest(self._text), "little")
        self._tail_key = self._key_of("tail")
        self._generator = np.random.Philox(key=self._key)
        self._next = 0  # word at which the generator stands

    def _key_of(self, use: object) -> int:
        return int.from_bytes(_digest(f"{self._text}|{use}")[:8], "little")

    def heads(self, start: int, stop: int) -> Heads:
        """Return the upper bytes of words ``start`` to ``stop``: uint8[stop - start]."""
        first = start - start % _HEADS_PER_COUNTER
        if first != self._next:
            self._generator = np.random.Philox(key=self._key).advance(first // _HEADS_PER_COUNTER)
        counters = -(-(stop - first) // _HEADS_PER_COUNTER)
        raw = np.asarray(self._generator.random_raw(4 * counters), dtype="<u8")
        self._next = first + counters * _HEADS_PER_COUNTER
        return raw.view(np.uint8)[start - first : stop - first]

    def words(self, start: int, stop: int) -> Words:
        """Return words ``start`` to ``stop`` whole: uint32[stop - start]."""
        return self.complete(self.heads(start, stop), np.arange(start, stop))

    def complete(self, heads: Heads, indices: Indices) -> Words:
        """Return the words with these heads and indices: uint32[n]."""
        tails = _split_mix(self._tail_key, indices) >> np.uint64(64 - _TAIL_BITS)
        return heads.astype(np.uint32) << np.uint32(_TAIL_BITS) | tails.astype(np.uint32)

    def again(self, turn: int, indices: Indices) -> Words:
        """Return the words of a further draw for some elements: uint32[n], below 2^31."""
        return (_split_mix(self._key_of(turn), indices) >> np.uint64(33)).astype(np.uint32)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _split_mix(key: int, indices: Indices) -> NDArray[np.uint64]:
    """Return SplitMix64's output after ``index + 1`` steps from the state ``key``."""
    mixed = indices.astype(np.uint64)
    mixed *= np.uint64(_GOLDEN)
    mixed += np.uint64((key + _GOLDEN) & _MASK)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


class Draw:
    """The words of one stretch of elements, compared without being completed.

    Args:
        stream: Where they come from.
        start: Index of the first word.
        heads: Their upper bytes, uint8[n].
    """

    def __init__(self, stream: WordStream, start: int, heads: Heads) -> None:
        self._stream = stream
        self._start = start
        self._heads = heads

    @property
    def size(self) -> int:
        """How many elements."""
        return self._heads.size

    def below(self, threshold: int) -> Flags:
        """Return bool[n]: which words are below a threshold of 0 to 2^32."""
        return self.below_each([threshold], [np.empty(self.size, np.bool_)])[0]

    def below_each(self, thresholds: Sequence[int], out: list[Flags]) -> list[Flags]:
        """Return for each threshold which words are below it, in ``out``, a bool[n] for each.

        Only words whose head is that of a threshold are completed, once for all thresholds.
        """
        close: set[int] = set()
        for threshold, under in zip(thresholds, out, strict=True):
            head, tail = divmod(threshold, 1 << _TAIL_BITS)
            if head > _LAST_HEAD:
                under[...] = True
                continue
            np.less(self._heads, np.uint8(head), out=under)
            if tail:
                close.add(head)
        if close:
            places = np.flatnonzero(self._is_one_of(sorted(close)))
            words = self.words_at(places)
            for threshold, under in zip(thresholds, out, strict=True):
                under[places] = words <= np.uint32(threshold - 1) if threshold else False
        return out

    def _is_one_of(self, heads: list[int]) -> Flags:
        found = np.equal(self._heads, np.uint8(heads[0]))
        for head in heads[1:]:
            found |= np.equal(self._heads, np.uint8(head))
        return found

    def words_at(self, places: Indices) -> Words:
        """Return the whole words of some elements, uint32[m]."""
        return self._stream.complete(self._heads[places], self.indices(places))

    def again_at(self, turn: int, places: Indices) -> Words:
        """Return words for a further draw of some elements, uint32[m], below 2^31."""
        return self._stream.again(turn, self.indices(places))

    def indices(self, places: Indices) -> Indices:
        """Return which word of the stream belongs to each of some elements."""
        return places + self._start


class RepeatedDraw(Draw):
    """Words that several elements share: one per row, or one in all.

    Args:
        stream: Where they come from.
        start: Index of the stretch's first element.
        stop: Index after its last.
        run: Elements that share a word.
    """

    def __init__(self, stream: WordStream, start: int, stop: int, run: int) -> None:
        first, last = start // run, (stop - 1) // run + 1
        repeated = np.repeat(stream.heads(first, last), run if last - first > 1 else stop - start)
        offset = start - first * run if last - first > 1 else 0
        super().__init__(stream, start, repeated[offset : offset + stop - start])
        self._run = run

    def indices(self, places: Indices) -> Indices:
        """Return which word of the stream belongs to each of some elements."""
        return (places + self._start) // self._run


def thresholds(probabilities: NDArray[np.float64]) -> list[int]:
    """Return floor(2^32 * cumulative probability): a draw is the first index above the word.

    Args:
        probabilities: float64[K], non-negative, of any positive sum.

    >>> thresholds(np.array([1.0, 1.0])) == [2**31, 2**32]
    True
    """
    share = np.cumsum(probabilities) / np.sum(probabilities)
    edges = [int(np.floor(2.0**32 * value)) for value in share]
    last = int(np.flatnonzero(probabilities)[-1])
    return [2**32 if k >= last else min(edge, 2**32 - 1) for k, edge in enumerate(edges)]
