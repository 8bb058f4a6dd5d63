"""The record of a decision in the fast world: made only when somebody reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.measuring.records import probe_section


@dataclass(frozen=True)
class StepArrays:
    """What one step of all environments did; arrays are never changed afterwards.

    Attributes:
        weight, nll, local: float64[n, K].
        strata, given: float64[n, K, G].
        reward: float64[n].
        decision: int64[n].
        present: bool[n, K, G], cells that exist.
        components: named terms of the reward, float64[n] each.
        probes: by name the values, and bool[n] where they were measured after this decision.
    """

    weight: FloatArray
    strata: FloatArray
    nll: FloatArray
    local: FloatArray
    reward: FloatArray
    decision: NDArray[np.int64]
    given: FloatArray
    present: BoolArray
    components: Mapping[str, FloatArray | float]
    probes: Mapping[str, tuple[FloatArray, BoolArray]]


class LazyRecord(Mapping[str, Any]):
    """The record of one environment's decision, made when it is read.

    The keys are those of :mod:`mixgym.envs.measuring.records` that the fast world has.
    """

    __slots__ = ("_arrays", "_index")
    _KEYS = ("decision", "mixture", "strata", "loss", "reward", "supervised_tokens")

    def __init__(self, arrays: StepArrays, index: int) -> None:
        self._arrays = arrays
        self._index = index

    def __getitem__(self, key: str) -> Any:
        """One part of the record."""
        a, i = self._arrays, self._index
        if key == "decision":
            return int(a.decision[i])
        if key == "mixture":
            return self._named(a.weight[i])
        if key == "strata":
            groups = int(a.present[i].any(0).sum())
            rows = np.flatnonzero(a.present[i].any(-1)).tolist()
            return {f"source{k}": a.strata[i, k, :groups].tolist() for k in rows}
        if key == "loss":
            return {"reward": self._named(a.nll[i])}
        if key == "reward":
            value = float(a.reward[i])
            local = self._named(a.local[i])
            terms = {name: float(np.asarray(x)[i]) for name, x in a.components.items()}
            return {"global": value, "local": local, "components": terms}
        if key == "probes" and self._fresh():
            return self._probes()
        if key == "supervised_tokens":
            return round(float(a.given[i].sum()))
        raise KeyError(key)

    def _fresh(self) -> list[str]:
        return [name for name, (_, fresh) in self._arrays.probes.items() if fresh[self._index]]

    def _probes(self) -> dict[str, Any]:
        i, here = self._index, self._arrays.present[self._index]
        rows, groups = int(here.any(-1).sum()), int(here.any(0).sum())
        names = [f"source{k}" for k in range(rows)]
        found = {name: self._arrays.probes[name][0][i, :rows] for name in self._fresh()}
        cut = {name: v if v.ndim == 1 else v[:, :groups] for name, v in found.items()}
        section: dict[str, Any] = probe_section(names, cut)["probes"]
        return section

    def _named(self, values: NDArray[Any]) -> dict[str, float]:
        used = np.flatnonzero(self._arrays.present[self._index].any(-1))
        return {f"source{k}": float(values[k]) for k in used}

    def __iter__(self) -> Iterator[str]:
        """Names of the parts."""
        return iter((*self._KEYS, *(["probes"] if self._fresh() else [])))

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._KEYS) + bool(self._fresh())
