"""What a merge counts on the way: zero deltas, shares selected, lengths of the deltas."""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from mixgym.trainer.merging.numerics import Array


@dataclass
class Tally:
    """Counts over tensors; a list holds one entry per model, and is empty if never counted.

    Attributes:
        compared: Elements that were compared with the base.
        zeros: Of these, how many each model left at the base's value.
        squares: Squared length of each model's delta.
        drawn: Elements that were drawn from some model.
        selected: Of these, how many came from each model.
    """

    compared: int = 0
    zeros: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    drawn: int = 0
    selected: list[int] = field(default_factory=list)

    def count_deltas(self, deltas: list[Array]) -> None:
        """Count a chunk's zero deltas, and measure their lengths."""
        size = deltas[0].size
        self.compared += size
        self.zeros = _plus(self.zeros, [size - int(np.count_nonzero(d)) for d in deltas])
        self.squares = _plus(self.squares, [float(np.dot(d, d)) for d in deltas])

    def count_equal(self, size: int, equal: list[int]) -> None:
        """Count a chunk of which each model left so many elements at the base's value."""
        self.compared += size
        self.zeros = _plus(self.zeros, equal)

    def count_selected(self, size: int, selected: list[int]) -> None:
        """Count a chunk of which so many elements came from each model."""
        self.drawn += size
        self.selected = _plus(self.selected, selected)

    def add(self, other: "Tally") -> None:
        """Add the counts of another tensor."""
        self.compared += other.compared
        self.drawn += other.drawn
        self.zeros = _plus(self.zeros, other.zeros)
        self.squares = _plus(self.squares, other.squares)
        self.selected = _plus(self.selected, other.selected)

    def summary(self) -> dict[str, list[float] | None]:
        """Return shares and lengths per model, None where they were not measured."""
        return {
            "zero_share": _shares(self.zeros, self.compared),
            "selected_share": _shares(self.selected, self.drawn),
            "delta_norm": [float(f"{sqrt(s):.5g}") for s in self.squares] or None,
        }


def _plus(one: list[Any], two: list[Any]) -> list[Any]:
    if not one or not two:
        return list(one or two)
    return [a + b for a, b in zip(one, two, strict=True)]


def _shares(counts: list[int], total: int) -> list[float] | None:
    return [count / total for count in counts] if total else None
