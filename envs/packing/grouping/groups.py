"""Groups of lengths: each has its own pack length, parallel degree and checkpointed layers.

Which groups suit a cluster is chosen in :mod:`mixgym.envs.packing.grouping.selection`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError, PackingError

OverLong = Literal["error", "truncate", "skip"]


@dataclass(frozen=True, order=True)
class Group:
    """Documents of one range of lengths, and how they are trained.

    Attributes:
        length: tokens in a pack; the group takes documents up to this length that are too long for
            the group before it.
        degree: devices that share a pack (sequence parallelism).
        checkpointed: layers whose activations are recomputed in the backward pass.
    """

    length: int
    degree: int = 1
    checkpointed: int = 0


@dataclass(frozen=True)
class Cluster:
    """Devices, and the tokens that they train in one optimiser step.

    Attributes:
        devices: processes that train.
        step_tokens: tokens in an optimiser step, over all devices.
    """

    devices: int
    step_tokens: int

    def replicas(self, group: Group) -> int:
        """Packs of the group that are trained at the same time."""
        return self.devices // group.degree

    def packs(self, group: Group) -> int:
        """Packs of the group in an optimiser step."""
        return self.step_tokens // group.length

    def micro_steps(self, group: Group) -> int:
        """Packs that a replica trains one after the other in an optimiser step."""
        return self.packs(group) // self.replicas(group)


def check_groups(groups: Sequence[Group], cluster: Cluster) -> None:
    """Refuse groups that the cluster cannot train.

    Raises:
        ConfigError: for no group, groups out of order, a degree that does not divide the devices or
            the length, or a step that is not a whole number of packs per replica.
    """
    if not groups:
        raise ConfigError("packing.groups: give at least one group")
    if any(group.length < 1 or group.degree < 1 or group.checkpointed < 0 for group in groups):
        raise ConfigError(f"packing.groups: {list(groups)}: lengths and degrees start at 1")
    lengths = [group.length for group in groups]
    if lengths != sorted(set(lengths)):
        raise ConfigError(
            f"packing.groups: lengths {lengths}: give each once, the shortest group first"
        )
    for group in groups:
        _check_group(group, cluster)


def _check_group(group: Group, cluster: Cluster) -> None:
    where = f"packing.groups: length {group.length}, degree {group.degree}"
    if cluster.devices % group.degree:
        raise ConfigError(
            f"{where}: {cluster.devices} devices cannot be cut into groups of {group.degree}: "
            "choose a degree that divides the number of processes"
        )
    if group.length % group.degree:
        raise ConfigError(
            f"{where}: a pack is cut into {group.degree} equal parts: choose a length that "
            f"{group.degree} divides"
        )
    together = group.length * cluster.replicas(group)
    if cluster.step_tokens % together:
        raise ConfigError(
            f"{where}: {cluster.replicas(group)} replicas train {together} tokens at a time, and a "
            f"step has {cluster.step_tokens}: choose a step of a multiple of that, "
            "another length, or a higher degree"
        )


@dataclass(frozen=True)
class Fitted:
    """Documents after the policy for over-long ones.

    Attributes:
        kept: int64[m], indices of the documents that are packed.
        lengths: int64[m], their tokens, at most the longest group's length.
        over_long: documents that were longer.
        lost_tokens: tokens that were skipped or cut with them.
    """

    kept: IntArray
    lengths: IntArray
    over_long: int = 0
    lost_tokens: int = 0


def fit_lengths(lengths: IntArray, longest: int, policy: OverLong) -> Fitted:
    """Apply the policy for documents that are longer than every group.

    Args:
        lengths: int64[n], tokens of each document.
        longest: tokens in the longest pack.
        policy: ``error``, ``truncate`` or ``skip``.

    Raises:
        PackingError: for an empty document, or an over-long one under ``error``.
    """
    if len(lengths) and lengths.min() < 1:
        raise PackingError(
            f"document {int(lengths.argmin())} has {lengths.min()} tokens: skip rows without tokens"
        )
    over = lengths > longest
    count = int(over.sum())
    if count and policy == "error":
        raise PackingError(
            f"{count} documents are longer than the longest group ({longest} tokens), the first is "
            f"document {int(over.argmax())} with {lengths[over.argmax()]}: add a longer group, or "
            "set over_long to truncate or skip"
        )
    if policy == "skip":
        kept = np.flatnonzero(~over)
        return Fitted(kept, lengths[kept], count, int(lengths[over].sum()))
    lost = int((lengths[over] - longest).sum())
    return Fitted(np.arange(len(lengths)), np.minimum(lengths, longest), count, lost)


def group_of(lengths: IntArray, groups: Sequence[Group]) -> IntArray:
    """int64[n], the group of each document: the first whose packs are long enough.

    >>> group_of(np.array([1, 8, 9, 32]), [Group(8), Group(32)]).tolist()
    [0, 0, 1, 1]
    """
    return np.searchsorted([group.length for group in groups], lengths).astype(np.int64)
