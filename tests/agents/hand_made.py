"""Signals made by hand, and a rule driven by them, for the tests of mixers."""

from typing import Any

import numpy as np

from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.rule import Signals


def signals(
    count: int = 2,
    *,
    used: float = 0.0,
    strata: int = 2,
    probes: dict[str, Any] | None = None,
    fresh: bool = True,
    cells: dict[str, Any] | None = None,
    **columns: Any,
) -> Signals:
    """Sources alike but for what is given by name; nothing trained yet."""
    even = np.full(count, 1.0 / count)
    sources = {
        "present": np.ones(count),
        "target": np.ones(count),
        "size": np.full(count, 100.0),
        "prior": even,
        "weight": even,
        "share": np.zeros(count),
        "epochs": np.zeros(count),
        "nll": np.full(count, 2.0),
        "nll_start": np.full(count, 2.0),
        "nll_train": np.zeros(count),
        "nll_reference": np.zeros(count),
        "cost": np.ones(count),
        "error": np.zeros(count),
    }
    sources |= {name: np.array(values, np.float64) for name, values in columns.items()}
    inner = {name: np.repeat(values[:, None], strata, 1) for name, values in sources.items()}
    inner["size"] = inner["size"] / strata
    inner |= {name: np.array(values, np.float64) for name, values in (cells or {}).items()}
    found = {name: np.array(values, np.float64) for name, values in (probes or {}).items()}
    return Signals(used, sources, inner, found, dict.fromkeys(found, fresh))


class Driver:
    """A rule with its memory of one environment."""

    def __init__(self, rule: Mixer, count: int = 2, strata: int = 2) -> None:
        self.rule = rule
        self.memory = tuple(np.zeros(shape) for shape in rule.shapes(count, strata))

    def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Normalised weights for :func:`signals` of these arguments."""
        top, _ = self.rule.weights(signals(*args, **kwargs), self.memory)
        return top / top.sum()
