"""What a merge counts on the way: zero deltas, shares selected, lengths of the deltas."""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from mixgym.trainer.merging.methods.numerics import Array


@dataclass
class Tally:
    """Counts over tensors; a list holds one entry per model, and is empty if never counted.

    Attributes:
        compared: Elements that were compared with the base, for each model.
        zeros: Of these, how many the model left at the base's value.
        squares: Squared length of each model's delta.
        drawn: Elements that were drawn from some model.
        selected: Of these, how many came from each model.
    """

    compared: list[int] = field(default_factory=list)
    zeros: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    drawn: int = 0
    selected: list[int] = field(default_factory=list)

    def count_deltas(self, deltas: list[Array]) -> None:
        """Count a chunk's zero deltas, and measure their lengths."""
        size = deltas[0].size
        self.compared = _plus(self.compared, [size] * len(deltas))
        self.zeros = _plus(self.zeros, [size - int(np.count_nonzero(d)) for d in deltas])
        self.squares = _plus(self.squares, [float(np.dot(d, d)) for d in deltas])

    def count_equal(self, equal: list[int], compared: list[int]) -> None:
        """Count how many elements of a chunk each model left at the base's value."""
        self.compared = _plus(self.compared, compared)
        self.zeros = _plus(self.zeros, equal)

    def count_selected(self, size: int, selected: list[int]) -> None:
        """Count a chunk of which so many elements came from each model."""
        self.drawn += size
        self.selected = _plus(self.selected, selected)

    def add(self, other: "Tally") -> None:
        """Add the counts of another tensor."""
        self.compared = _plus(self.compared, other.compared)
        self.drawn += other.drawn
        self.zeros = _plus(self.zeros, other.zeros)
        self.squares = _plus(self.squares, other.squares)
        self.selected = _plus(self.selected, other.selected)

    def summary(self) -> dict[str, list[float] | None]:
        """Return shares and lengths per model, None where they were not measured."""
        return {
            "zero_share": _shares(self.zeros, self.compared),
            "selected_share": _shares(self.selected, [self.drawn] * len(self.selected)),
            "delta_norm": [float(f"{sqrt(s):.5g}") for s in self.squares] or None,
        }


def _plus(one: list[Any], two: list[Any]) -> list[Any]:
    if not one or not two:
        return list(one or two)
    return [a + b for a, b in zip(one, two, strict=True)]


def _shares(counts: list[int], totals: list[int]) -> list[float] | None:
    pairs = zip(counts, totals, strict=True)
    return [count / max(total, 1) for count, total in pairs] or None
