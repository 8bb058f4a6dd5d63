"""Recorded runs as arrays."""

from dataclasses import dataclass

from mixgym.envs.arrays import FloatArray


@dataclass(frozen=True)
class Trajectories:
    """R runs of T decisions; shorter ones are padded with empty intervals.

    Attributes:
        steps, rate: float64[R, T], optimiser steps, mean relative learning rate.
        supervised: float64[R, T, K, G], tokens trained on.
        nll, error: float64[R, T, K, G], held-out, after each decision; NaN unknown.
    """

    steps: FloatArray
    rate: FloatArray
    supervised: FloatArray
    nll: FloatArray
    error: FloatArray

    def pick(self, index):
        return Trajectories(*(getattr(self, n)[index] for n in self.__dataclass_fields__))
