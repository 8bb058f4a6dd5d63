"""Named random streams: a generator from a seed and words, the same on every machine and run.

Python's ``hash`` of a string changes from process to process; a digest does not.
"""

import hashlib

import numpy as np


def stream(seed: int, *names: str) -> np.random.Generator:
    """The generator of the stream that ``names`` name under ``seed`` (a non-negative integer).

    Streams with different names are independent, and drawing from one never moves another.

    Example:
        >>> stream(0, "splits", "math").integers(10) == stream(0, "splits", "math").integers(10)
        np.True_
    """
    digest = hashlib.sha256("\x00".join(names).encode("utf-8", "surrogatepass")).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))
