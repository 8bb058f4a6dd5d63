"""The order in which the steps of all groups are trained."""

import numpy as np

from mixgym.envs.sources.source import IntArray


def schedule_steps(counts: IntArray, warm_up: int, generator: np.random.Generator) -> IntArray:
    """Steps of the shortest group first, then the groups in turn, at random.

    Args:
        counts: int64[groups], steps of each group, the shortest group first.
        warm_up: steps of the shortest group that come first (curriculum); 0 for none.
        generator: of the order after that.

    Returns:
        int64[steps, 2]: (group, which of its steps). Every step stands there once, a group's steps
        in random order.
    """
    groups = np.repeat(np.arange(len(counts)), counts)
    which = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = generator.permutation(len(groups))
    early = np.flatnonzero(groups[order] == 0)[:warm_up]
    order = np.concatenate([order[early], np.delete(order, early)])
    return np.stack([groups[order], which[order]], axis=1)
