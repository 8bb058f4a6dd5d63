"""Which groups of lengths suit a machine (HBP, arXiv 2503.07680, algorithms 1, 3 and 4).

Every candidate length is timed with every degree on the same documents, in balanced steps, per
token. Three biases make other choices look better than they are, and can be switched on to see it:
steps packed at random wait for stragglers, which favours too large degrees; documents cut at each
candidate's own length give short candidates less attention to do; and time per step, with packs
that are not full, counts a short step as a fast one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.balance import Balance
from mixgym.envs.packing.costs.cost_model import CostModel
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.planner import PlanConfig, make_plan
from mixgym.envs.random_streams import stream

_PROFILE_STEPS = 20
_PROFILE_DOCUMENTS = 100_000  # a few documents are repeated up to so many
EPSILON = 1e-9


@dataclass(frozen=True)
class ProfileRules:
    """How candidates are timed; see the module's docstring.

    Attributes:
        balanced: packs sorted by attention work, or at random.
        common: on the documents that the shortest candidate holds, or on those that each holds.
        per_token: seconds per token, or per step however full.
        packer: of the profile.
        steps: of each profile, about.
    """

    balanced: bool = True
    common: bool = True
    per_token: bool = True
    packer: str = "best_fit_decreasing"
    steps: int = _PROFILE_STEPS


@dataclass(frozen=True)
class Candidate:
    """A length with its best degree.

    Attributes:
        group: length, degree, checkpointed layers.
        seconds: of a full optimiser step.
    """

    group: Group
    seconds: float


@dataclass(frozen=True)
class Selection:
    """The groups that were chosen, and what they were chosen from."""

    groups: tuple[Group, ...]
    candidates: tuple[Candidate, ...]


def select_groups(
    lengths: IntArray,
    candidates: Sequence[int],
    degrees: Sequence[int],
    cost: CostModel,
    cluster: Cluster,
    *,
    seed: int = 0,
    rules: ProfileRules | None = None,
) -> Selection:
    """Choose groups for a data set.

    Args:
        lengths: int64[n], tokens of the documents.
        candidates: pack lengths; the longest has to be among the groups.
        degrees: of sequence parallelism; those that do not suit a length are passed over.
        cost: the model on the machine.
        cluster: devices, and tokens in a step.
        seed: of the profile's documents.
        rules: how to time.

    Raises:
        ConfigError: if no degree makes the longest length fit into memory and into a step, or there
            is no document.
    """
    if not len(lengths):
        raise ConfigError("packing: there is no document to choose groups of lengths for")
    rules = rules or ProfileRules()
    ordered = sorted(set(candidates))
    found = [
        best
        for length in ordered
        if (best := _best_degree(lengths, length, ordered[0], degrees, cost, cluster, seed, rules))
    ]
    if not found or found[-1].group.length != ordered[-1]:
        raise ConfigError(
            f"packing: packs of {ordered[-1]} tokens do not fit with any degree of {list(degrees)} "
            f"on {cluster.devices} devices: allow a higher degree, more checkpointing, shorter "
            "packs, or more tokens in a step"
        )
    best = min(found, key=lambda candidate: candidate.seconds)
    return Selection(_hierarchy(best.group, found[-1].group, cost, cluster), tuple(found))


def checkpointed_layers(
    free_all: float, free_some: float, layers: int, some: int, margin: float = 0.0
) -> int:
    """Layers that have to be checkpointed, from two measurements of free memory (algorithm 4).

    Args:
        free_all: bytes left with all layers checkpointed.
        free_some: bytes left with ``some`` layers checkpointed.
        layers: all of them.
        some: fewer than ``layers``.
        margin: bytes to keep free.

    Raises:
        ConfigError: if the two measurements cannot be told apart, or nothing is free.

    >>> checkpointed_layers(24.0, 12.0, layers=32, some=20)
    8
    """
    per_layer = (free_all - free_some) / (layers - some) if layers > some else 0.0
    if per_layer <= 0:
        raise ConfigError(
            f"memory profile: {free_all} bytes free with {layers} checkpointed layers and "
            f"{free_some} with {some}: fewer checkpointed layers have to leave less"
        )
    if free_all < margin:
        raise ConfigError(
            f"memory profile: {free_all} bytes are free with every layer checkpointed: use a "
            "higher degree or shorter packs"
        )
    return int(np.clip(math.ceil(layers - (free_all - margin) / per_layer), 0, layers))


def candidate_lengths(longest: int, count: int = 5) -> list[int]:
    """The longest length, and its halves while they are whole: ``count`` of them at most.

    >>> candidate_lengths(131072)
    [8192, 16384, 32768, 65536, 131072]
    """
    found = [longest]
    while len(found) < count and found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found[::-1]


def candidate_degrees(devices: int, heads: int) -> list[int]:
    """Powers of two that divide the devices and the attention heads."""
    powers = [2**i for i in range(devices.bit_length())]
    return [degree for degree in powers if devices % degree == 0 and heads % degree == 0]


def _best_degree(
    lengths: IntArray,
    length: int,
    shortest: int,
    degrees: Sequence[int],
    cost: CostModel,
    cluster: Cluster,
    seed: int,
    rules: ProfileRules,
) -> Candidate | None:
    """The fastest degree of a length; None if none fits."""
    documents = lengths[lengths <= shortest] if rules.common else np.minimum(lengths, length)
    if not len(documents):  # no document is short: every one is cut alike
        documents = np.minimum(lengths, shortest)
    documents = _sample(documents, rules.steps * cluster.step_tokens, seed)
    timed = []
    for degree in sorted(degrees):
        group = _group(length, degree, cost)
        if group is None or not _suits(group, cluster):
            continue
        timed.append(Candidate(group, _step_seconds(documents, group, cost, cluster, seed, rules)))
    return min(timed, key=lambda candidate: candidate.seconds * (1 + EPSILON), default=None)


def _group(length: int, degree: int, cost: CostModel) -> Group | None:
    layers = cost.hardware.checkpointed(length // degree, cost.model.layers)
    return None if layers is None else Group(length, degree, layers)


def _suits(group: Group, cluster: Cluster) -> bool:
    whole = cluster.devices % group.degree == 0 and group.length % group.degree == 0
    return whole and cluster.step_tokens % (group.length * cluster.replicas(group)) == 0


def _sample(documents: IntArray, tokens: int, seed: int) -> IntArray:
    """Documents at random that hold about so many tokens; few of them are repeated.

    Otherwise most replicas would be idle, and high degrees would seem fast.
    """
    order = stream(seed, "packing", "profile").permutation(len(documents))
    often = min(-(-tokens // max(int(documents.sum()), 1)), _PROFILE_DOCUMENTS // len(documents))
    order = np.tile(order, max(often, 1))
    count = int(np.searchsorted(np.cumsum(documents[order]), tokens)) + 1
    return documents[order[:count]]


def _step_seconds(
    documents: IntArray,
    group: Group,
    cost: CostModel,
    cluster: Cluster,
    seed: int,
    rules: ProfileRules,
) -> float:
    """Seconds of a step, from all micro-steps in which no replica is idle."""
    config = PlanConfig((group,), cluster, rules.packer, Balance(sort=rules.balanced))
    layout = make_plan(documents, config, seed).layout
    seconds = layout.largest(cost.units(layout))
    tokens = layout.per_row(layout.tokens)
    full = layout.per_row(np.ones(len(layout.row))) == layout.replicas
    full |= ~full.any()
    if rules.per_token:
        return float(seconds[full].sum() / tokens[full].sum() * cluster.step_tokens)
    return float(seconds[full].mean() * cluster.micro_steps(group))


def _hierarchy(best: Group, longest: Group, cost: CostModel, cluster: Cluster) -> tuple[Group, ...]:
    """Stage 2: what a device holds alone is trained alone."""
    alone = [
        found
        for length in (best.length // best.degree, longest.length // longest.degree)
        if length > best.length or (best.degree > 1 and length == best.length // best.degree)
        if (found := _group(length, 1, cost)) is not None and _suits(found, cluster)
    ]
    chosen = {group.length: group for group in (*alone, best, longest)}
    return tuple(sorted(chosen.values()))
