"""How well a plan uses the machine: padding, imbalance, communication (HBP, arXiv 2503.07680)."""

from dataclasses import asdict, dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.packing.layout import Layout


@dataclass(frozen=True)
class PackingMetrics:
    """Metrics of a layout; lower is better except of ``fill`` and ``tokens_per_device``.

    Attributes:
        padding: share of slots that hold padding (PR).
        data_imbalance: share of slots (tokens and padding) that wait for the replica with most,
            mean over optimiser steps (DBR).
        attention_imbalance: likewise of attention work (ABR). Between 0 and 1 - 1/N for N replicas:
            clusters of different size cannot be compared.
        communication: share of tokens in steps whose packs are spread over devices (CR).
        tokens_per_device: mean over optimiser steps (Ave-T).
        fill: tokens / (units * pack length).
        units: packs or padded batches.
        steps, micro_steps: optimiser steps, and micro-steps in all.
    """

    padding: float
    data_imbalance: float
    attention_imbalance: float
    communication: float
    tokens_per_device: float
    fill: float
    units: int
    steps: int
    micro_steps: int

    def to_dict(self) -> dict[str, float]:
        """As plain data."""
        return asdict(self)


def measure(layout: Layout) -> PackingMetrics:
    """The metrics of a layout; all 0 for one without micro-steps."""
    if not layout.rows:
        return PackingMetrics(0, 0, 0, 0, 0, 0, 0, 0, 0)
    tokens = layout.per_row(layout.tokens)
    lengths = np.array([group.length for group in layout.groups])[layout.row_group][layout.row]
    steps = int(layout.row_step[-1]) + 1
    return PackingMetrics(
        padding=float(1 - layout.tokens.sum() / layout.slots.sum()),
        data_imbalance=_mean(layout, _waiting(layout, layout.slots)),
        attention_imbalance=_mean(layout, _waiting(layout, layout.work)),
        communication=_mean(layout, (layout.degrees > 1).astype(np.float64)),
        tokens_per_device=float(tokens.sum() / steps / layout.cluster.devices),
        fill=float(layout.tokens.sum() / lengths.sum()),
        units=len(layout.row),
        steps=steps,
        micro_steps=layout.rows,
    )


def imbalance(loads: IntArray | FloatArray) -> float:
    """Share of the replicas' time that is spent waiting for the one with most to do.

    Args:
        loads: [replicas], what each has to do.

    >>> imbalance(np.array([4, 8])), imbalance(np.array([1, 0, 0, 0])), imbalance(np.zeros(2))
    (0.25, 0.75, 0.0)
    """
    most = float(loads.max(initial=0))
    return 1 - float(loads.sum()) / (most * len(loads)) if most > 0 else 0.0


def _waiting(layout: Layout, loads: IntArray) -> FloatArray:
    """float64[rows], :func:`imbalance` of each row; idle replicas count with load 0."""
    most = layout.largest(loads)
    whole = most * layout.replicas
    return np.where(whole > 0, 1 - layout.per_row(loads) / np.where(whole > 0, whole, 1), 0.0)


def _mean(layout: Layout, values: FloatArray) -> float:
    return float(layout.per_step(values).mean())
