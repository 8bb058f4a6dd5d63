"""What every replica has to do in every micro-step: the common ground of plans and comparisons.

A row is one micro-step: the moment at which all replicas train one pack or padded batch each, and
wait for each other. Metrics and times are read from a layout, however it was planned.
"""

from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.packing.grouping.groups import Cluster, Group


@dataclass(frozen=True)
class Layout:
    """Units of work (packs or padded batches) and where they stand.

    Attributes:
        groups: what ``row_group`` refers to.
        cluster: the devices.
        row_group: int64[rows], group of each micro-step.
        row_step: int64[rows], optimiser step of each micro-step, from 0 without gaps.
        row: int64[units], micro-step of each unit.
        replica: int64[units], who trains it.
        tokens: int64[units], tokens of documents.
        slots: int64[units], tokens with padding.
        work: int64[units], attention work with padding, sum of squared lengths.
    """

    groups: tuple[Group, ...]
    cluster: Cluster
    row_group: IntArray
    row_step: IntArray
    row: IntArray
    replica: IntArray
    tokens: IntArray
    slots: IntArray
    work: IntArray

    @property
    def rows(self) -> int:
        """Micro-steps."""
        return len(self.row_group)

    @property
    def degrees(self) -> IntArray:
        """int64[rows], devices that share a unit."""
        return np.array([group.degree for group in self.groups], np.int64)[self.row_group]

    @property
    def checkpointed(self) -> IntArray:
        """int64[rows], checkpointed layers."""
        return np.array([group.checkpointed for group in self.groups], np.int64)[self.row_group]

    @property
    def replicas(self) -> IntArray:
        """int64[rows], replicas of the row, idle ones counted."""
        return self.cluster.devices // self.degrees

    def per_row(self, values: IntArray | FloatArray) -> FloatArray:
        """float64[rows], the sum over each row of values given per unit."""
        return np.bincount(self.row, values, self.rows).astype(np.float64)

    def largest(self, values: IntArray | FloatArray) -> FloatArray:
        """float64[rows], the largest of each row's values given per unit; 0 for an idle row."""
        found = np.zeros(self.rows)
        np.maximum.at(found, self.row, values)
        return found

    def per_step(self, values: FloatArray) -> FloatArray:
        """float64[steps], the mean over each optimiser step of values given per row."""
        return np.bincount(self.row_step, values) / np.bincount(self.row_step)
