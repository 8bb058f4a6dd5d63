"""Random words that depend on the seed, the purpose and the tensor's name, and on nothing else.

Word ``i`` of a stream belongs to element ``i`` of the tensor in C order, so that shard layout,
chunk size, threads and folder names cannot change a merge. The counter-based generator is
Philox4x64-10 (Salmon et al., 2011), whose raw stream numpy keeps stable.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

WORDS_PER_COUNTER = 8
"""One counter step of Philox4x64 gives four 64-bit numbers, which are eight words."""


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
        text = f"{seed}|{purpose}|{name}|{'' if model is None else model}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._key = int.from_bytes(digest, "little")

    def words(self, start: int, stop: int) -> Words:
        """Return words ``start`` to ``stop`` as uint32[stop - start]."""
        first = start // WORDS_PER_COUNTER
        generator = np.random.Philox(key=self._key).advance(first)
        skipped = start - first * WORDS_PER_COUNTER
        count = stop - start + skipped
        raw = np.asarray(generator.random_raw((count + 1) // 2), dtype="<u8")
        return raw.view("<u4")[skipped:count]


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


def rehash(words: Words, round_number: int) -> Words:
    """Return fresh words for a further draw: a bijection of uint32 with full avalanche.

    The multipliers are those of the 32-bit finaliser of MurmurHash3; the round is mixed in first.
    """
    mixed = words ^ np.uint32((0x9E3779B9 * round_number) & 0xFFFFFFFF)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
