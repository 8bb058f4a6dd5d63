"""Lengths of documents as published data sets have them, drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import IntArray

K = 1024
CHAT_MEDIAN_TOKENS, CHAT_SIGMA = 500, 1.0
_LONG_SHARE = 1700 / 939_344  # long documents in the paper-like mix


def paper_like(documents: int, generator: np.random.Generator) -> IntArray:
    """int64[n]: chat, and a few documents of up to 128K (near Tulu 3 with 2,000 of LongCite).

    Chat lengths are lognormal (median 500, sigma 1) in [16, 32K]; of 939,344 documents 1,700 are
    uniform in [2K, 128K].
    """
    long = generator.random(documents) < _LONG_SHARE
    return np.where(
        long,
        generator.integers(2 * K, 128 * K + 1, documents),
        _chat(documents, 32 * K, generator),
    )


def long_tail(documents: int, generator: np.random.Generator) -> IntArray:
    """int64[n]: 95 of 100 documents are chat in [16, 16K], the others uniform in [16K, 128K]."""
    long = generator.random(documents) < 0.05
    return np.where(
        long,
        generator.integers(16 * K, 128 * K + 1, documents),
        _chat(documents, 16 * K, generator),
    )


def chat(documents: int, generator: np.random.Generator) -> IntArray:
    """int64[n]: chat alone, lognormal (median 500, sigma 1) in [16, 16K]."""
    return _chat(documents, 16 * K, generator)


def _chat(documents: int, longest: int, generator: np.random.Generator) -> IntArray:
    drawn = generator.lognormal(np.log(CHAT_MEDIAN_TOKENS), CHAT_SIGMA, documents)
    return np.clip(drawn, 16, longest).astype(np.int64)


@dataclass(frozen=True)
class Mix:
    """Lengths by name.

    Attributes:
        summary: one line.
        draw: (documents, generator) -> int64[n] lengths.
        documents: how many are drawn unless said otherwise.
    """

    summary: str
    draw: Callable[[int, np.random.Generator], IntArray]
    documents: int


MIXES: dict[str, Mix] = {
    "paper_like": Mix("chat, and 0.2% of the documents up to 128K", paper_like, 94_170),
    "long_tail": Mix("95% chat, 5% uniform from 16K to 128K", long_tail, 4_000),
    "chat": Mix("chat alone, up to 16K", chat, 94_170),
}
