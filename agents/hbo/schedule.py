"""When the two levels are updated: pure counting."""

from collections.abc import Iterator

LEVELS = {
    "both": (True, True),
    "global": (True, False),
    "local": (False, True),
    "none": (False,) * 2,
}
"""Which of (global, local) is learned; the other one stays at its prior."""


def due(count: int, period: int, *, at_start: bool) -> bool:
    """Whether an update is due after ``count`` steps (or decisions): at every multiple of period.

    Args:
        count: steps so far.
        period: between two updates.
        at_start: whether one is due before the first step too.
    """
    return count % period == 0 and (count > 0 or at_start)


def updates(
    last: int, global_period: int, local_period: int, *, at_start: bool = False
) -> Iterator[tuple[int, str]]:
    """(step, level) of every update up to and including step ``last``.

    At a step that both levels share the global one comes first, and each level has one update,
    however many micro-steps an optimiser step is made of.

    >>> list(updates(200, 200, 100))
    [(100, 'local'), (200, 'global'), (200, 'local')]
    """
    for step in range(last + 1):
        for level, period in (("global", global_period), ("local", local_period)):
            if due(step, period, at_start=at_start):
                yield step, level
