"""Attention balance: packs of like work are trained together, in full batches for all replicas."""

from dataclasses import dataclass
from math import lgamma

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.packing.packed import Packing

IDLE = -1
"""A replica that has no pack; it waits for the others."""


def attention_work(packs: Packing, lengths: IntArray) -> IntArray:
    """int64[packs], sum of squared lengths: a document sees itself alone (HBP, arXiv 2503.07680).

    >>> attention_work(Packing.of([[0, 1], [2]]), np.array([2, 2, 4])).tolist()
    [8, 16]
    """
    return packs.sums(lengths**2)


@dataclass(frozen=True)
class Balance:
    """How packs are ordered before they are cut into steps.

    Attributes:
        sort: whether packs are sorted by attention work.
        window: steps inside which they are sorted; None sorts all of them. A small window leaves
            the order of documents more random, and leaves more imbalance.
        whole: whether sorted steps are whole micro-steps of the replicas as far as can be; then few
            replicas are idle, and steps depend on how many there are.
    """

    sort: bool = True
    window: int | None = None
    whole: bool = True


def order_packs(
    work: IntArray, per_step: int, balance: Balance, generator: np.random.Generator
) -> IntArray:
    """int64[packs], an order in which neighbours have like work.

    Packs are shuffled; inside each window of steps they are then sorted by work, most first, so
    that a last step with idle replicas is a light one.

    Args:
        work: int64[packs], attention work.
        per_step: packs in a step.
        balance: sorted or not, and in which windows.
        generator: of the shuffle.
    """
    order = generator.permutation(len(work))
    if not balance.sort:
        return order
    window = len(work) if balance.window is None else balance.window * per_step
    windows = np.arange(len(work)) // max(window, 1)
    return order[np.lexsort((-work[order], windows))]


def freedom(packs: int, per_step: int, balance: Balance) -> float:
    """How much of the randomness of global batches a balance leaves: 1 all, 0 none.

    The logarithm of the number of ways in which packs can be dealt to windows, over that of the
    ways in which they can be dealt to steps: inside a window, work alone decides.

    Args:
        packs: in all.
        per_step: packs in a step.
        balance: sorted or not, and in which windows.

    >>> freedom(64, 8, Balance(sort=False)), freedom(64, 8, Balance())
    (1.0, 0.0)
    >>> 0 < freedom(64, 8, Balance(window=2)) < 1
    True
    """
    ways = _deals(packs, per_step)
    if not balance.sort or ways <= 0:
        return 1.0
    window = packs if balance.window is None else balance.window * per_step
    return _deals(packs, max(window, 1)) / ways


def _deals(packs: int, size: int) -> float:
    """Logarithm of the ways to deal packs to places of ``size``."""
    whole, rest = divmod(packs, size)
    return lgamma(packs + 1) - whole * lgamma(size + 1) - lgamma(rest + 1)


def deal(
    order: IntArray,
    micro_steps: int,
    replicas: int,
    *,
    spread: bool = False,
    together: int | None = None,
) -> IntArray:
    """Cut an order of packs into steps.

    Args:
        order: int64[packs].
        micro_steps: packs that a replica trains one after the other in a step.
        replicas: packs that are trained at the same time.
        spread: give all steps alike, to one micro-step, rather than leave the last one short.
        together: packs that spreading keeps in one step as far as it can; ``replicas`` if None, so
            that few of them are idle.

    Returns:
        int64[steps, micro_steps, replicas]; :data:`IDLE` at the end of steps that are not full.
        Packs that are trained at the same time are neighbours in the order. Unless ``together`` is
        smaller than ``replicas`` there are as few micro-steps as can be, so fewer places are idle
        in them than there are replicas.

    >>> deal(np.arange(5), 1, 4).tolist()
    [[[0, 1, 2, 3]], [[4, -1, -1, -1]]]
    >>> deal(np.arange(5), 1, 4, spread=True).tolist()
    [[[0, 1, 2, -1]], [[3, 4, -1, -1]]]
    """
    per_step = micro_steps * replicas
    steps = -(-len(order) // per_step)
    slots = np.full((steps, per_step), IDLE, np.int64)
    sizes = np.full(steps, per_step)
    if spread and steps:
        sizes = _even_sizes(len(order), steps, replicas if together is None else together)
    filled = np.arange(per_step) < sizes[:, None]
    places = np.flatnonzero(filled.ravel())[: len(order)]
    slots.ravel()[places] = order
    return slots.reshape(steps, micro_steps, replicas)


def _even_sizes(packs: int, steps: int, replicas: int) -> IntArray:
    """int64[steps], packs of each step: like numbers of micro-steps, and few idle places."""
    rows = -(-packs // replicas)
    each = rows // steps + (np.arange(steps) < rows % steps)
    idle = rows * replicas - packs
    missing = np.zeros(steps, np.int64)
    # first where there is most, and last in the order, where packs are light
    longest_first = np.lexsort((-np.arange(steps), -each))
    missing[longest_first] = idle // steps + (np.arange(steps) < idle % steps)
    return each * replicas - missing


def even_out(slots: IntArray, work: IntArray) -> IntArray:
    """Exchange packs that are trained at the same time, so that replicas do alike in a step.

    The most work of a micro-step goes to the replica that has had least in the step so far. Nothing
    changes for replicas that meet after every micro-step; those that meet after the step wait less.

    Args:
        slots: int64[steps, micro_steps, replicas], as of :func:`deal`.
        work: int64[packs], attention work.

    Returns:
        The like of ``slots``; a micro-step with idle replicas stays as it is.

    >>> even_out(np.array([[[0, 1], [2, 3]]]), np.array([9, 7, 5, 2])).tolist()
    [[[0, 1], [3, 2]]]
    """
    evened, loads = slots.copy(), np.where(slots == IDLE, 0, work[slots])
    whole = (slots != IDLE).all(-1)
    done = np.where(whole[..., None], 0, loads).sum(1)
    for index in range(slots.shape[1]):
        heaviest = np.argsort(-loads[:, index], axis=-1, kind="stable")
        idlest = np.argsort(done, axis=-1, kind="stable")
        for values in (evened, loads):
            moved = np.empty_like(values[:, index])
            found = np.take_along_axis(values[:, index], heaviest, -1)
            np.put_along_axis(moved, idlest, found, -1)
            values[:, index] = np.where(whole[:, index, None], moved, values[:, index])
        done += np.where(whole[:, index, None], loads[:, index], 0)
    return evened
