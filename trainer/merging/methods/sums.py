"""Sums over a tensor that come out the same, bit for bit, for every chunk size.

Each block of fixed length is summed on its own, and the blocks are added one after the other.
Chunks begin and end at block boundaries, except the tensor's last.
"""

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.methods.numerics import Array

BLOCK_ELEMENTS = 4096


class GramSum:
    """Accumulates the Gram matrix of some vectors in float64.

    Args:
        vectors: How many vectors.
        block: Elements per block: a divisor of every chunk but the last.

    >>> gram = GramSum(2)
    >>> gram.add([np.array([1.0, 2.0]), np.array([3.0, 0.0])])
    >>> gram.matrix.tolist()
    [[5.0, 3.0], [3.0, 9.0]]
    """

    def __init__(self, vectors: int, block: int = BLOCK_ELEMENTS) -> None:
        self._block = block
        self.matrix: NDArray[np.float64] = np.zeros((vectors, vectors))

    def add(self, chunk: list[Array]) -> None:
        """Add one chunk: one array[n] per vector."""
        size = chunk[0].size
        whole = size - size % self._block
        if whole:
            rows = np.stack([x[:whole].reshape(-1, self._block) for x in chunk], axis=1)
            self._fold(rows.astype(np.float64))
        if whole < size:
            self._fold(np.stack([x[whole:] for x in chunk])[None].astype(np.float64))

    def _fold(self, blocks: NDArray[np.float64]) -> None:
        for block in blocks:  # [vectors, length]; one after the other, never pairwise
            self.matrix += block @ block.T


class SquareSum:
    """Accumulates the sum of squares, or of magnitudes, of each of some vectors in float64."""

    def __init__(self, vectors: int, block: int = BLOCK_ELEMENTS) -> None:
        self._block = block
        self.squares: NDArray[np.float64] = np.zeros(vectors)
        self.magnitudes: NDArray[np.float64] = np.zeros(vectors)

    def add_squares(self, index: int, values: Array) -> None:
        """Add a chunk of vector ``index`` to its sum of squares."""
        for part in self._parts(values):
            self.squares[index] += float(np.vdot(part, part))

    def add_magnitudes(self, index: int, values: Array) -> None:
        """Add a chunk of vector ``index`` to its sum of magnitudes."""
        for part in self._parts(values):
            self.magnitudes[index] += float(np.abs(part).sum(dtype=np.float64))

    def _parts(self, values: Array) -> list[NDArray[np.float64]]:
        doubles = values.astype(np.float64)
        return [doubles[i : i + self._block] for i in range(0, values.size, self._block)]
