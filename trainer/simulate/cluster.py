"""A cluster that trains a layout: when every replica is busy, and when it waits.

Replicas start a unit when they are free, and meet at barriers: after every micro-step where weights
are gathered layer by layer (ZeRO-3), or after every optimiser step where gradients are exchanged
once. Devices that share a pack are busy together. Optimiser, data loading and the switch of degrees
and checkpointing cost nothing.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.layout import Layout

Barrier = Literal["micro_step", "step"]


@dataclass(frozen=True)
class Timeline:
    """What happened when.

    Attributes:
        layout: what was trained.
        start, end: float64[units], seconds from the beginning.
        step_end: float64[steps], when the last replica was done.
    """

    layout: Layout
    start: FloatArray
    end: FloatArray
    step_end: FloatArray

    @property
    def seconds(self) -> float:
        """The whole run."""
        return float(self.step_end[-1]) if len(self.step_end) else 0.0

    def busy(self) -> FloatArray:
        """float64[steps, devices], seconds in which each device computes or communicates."""
        layout = self.layout
        degree = layout.degrees[layout.row]
        device = np.repeat(layout.replica * degree, degree) + _counted(degree)
        step = np.repeat(layout.row_step[layout.row], degree)
        found = np.zeros((len(self.step_end), layout.cluster.devices))
        np.add.at(found, (step, device), np.repeat(self.end - self.start, degree))
        return found

    def waiting(self) -> FloatArray:
        """float64[devices], share of the run in which each device waits."""
        return 1 - self.busy().sum(0) / max(self.seconds, 1e-300)


def run_cluster(
    layout: Layout,
    seconds: FloatArray,
    barrier: Barrier = "micro_step",
    slowness: FloatArray | None = None,
) -> Timeline:
    """Let the replicas work.

    Args:
        layout: units of work.
        seconds: float64[units], on a device of normal speed.
        barrier: where replicas wait for each other.
        slowness: float64[devices], by how much longer each device takes; a replica is as slow as
            its slowest device. 1 for all if None.

    Raises:
        ConfigError: for devices that are not as many as in the layout, or not slower than 0.
    """
    spent = seconds * _slowness(layout, slowness)
    room = layout.row_step if barrier == "step" else np.arange(layout.rows)
    place = room[layout.row]
    rooms = int(room[-1]) + 1 if layout.rows else 0
    # inside a room a replica does its units one after the other
    order = np.lexsort((layout.row, layout.replica, place))
    running = np.cumsum(spent[order])
    first = np.flatnonzero(
        (np.diff(place[order], prepend=-1) != 0) | (np.diff(layout.replica[order], prepend=-1) != 0)
    )
    before = np.repeat(running[first] - spent[order][first], np.diff([*first, len(order)]))
    done = np.empty(len(order))
    done[order] = running - before
    longest = np.zeros(rooms)
    np.maximum.at(longest, place, done)
    opened = np.concatenate([[0.0], np.cumsum(longest)])
    end = opened[place] + done
    last = np.flatnonzero(np.diff(layout.row_step, append=-1)) if layout.rows else layout.row_step
    return Timeline(layout, end - spent, end, opened[1:][room[last]])


def _slowness(layout: Layout, slowness: FloatArray | None) -> FloatArray:
    """float64[units], the slowness of the slowest device of each unit's replica."""
    if slowness is None:
        return np.ones(len(layout.row))
    if slowness.shape != (layout.cluster.devices,) or not (slowness > 0).all():
        raise ConfigError(
            f"simulate: slowness of {slowness.shape} devices: give a positive number for each of "
            f"the {layout.cluster.devices}"
        )
    degree = layout.degrees[layout.row]
    found = np.zeros(len(degree))
    for size in np.unique(degree).tolist():
        units = degree == size
        found[units] = slowness.reshape(-1, size).max(1)[layout.replica[units]]
    return found


def _counted(sizes: IntArray) -> IntArray:
    """0 ... size - 1 for each of the sizes, end to end."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
