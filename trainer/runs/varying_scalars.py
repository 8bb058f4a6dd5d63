"""Scalars that become a chart when they first change: what is constant is no chart.

A tag's points are held back while they are all alike, and written, every one of them, with the
first that differs. Constants are told in one place instead (:meth:`VaryingScalars.constants`).
"""

from collections.abc import Collection, Mapping
from typing import Any


class VaryingScalars:
    """Holds scalars back until they vary.

    Args:
        writer: TensorBoard's ``SummaryWriter``.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self._varied: set[str] = set()
        self._held: dict[str, tuple[float, list[int]]] = {}

    @property
    def varied(self) -> set[str]:
        """Tags that have a chart."""
        return set(self._varied)

    def add(self, tag: str, value: float, step: int) -> None:
        """Take a point; it is written now, or with the first that differs from it."""
        if tag in self._varied:
            self.writer.add_scalar(tag, value, step)
            return
        held, steps = self._held.setdefault(tag, (value, []))
        if value == held:
            steps.append(step)
            return
        self._write_held(tag)
        self.writer.add_scalar(tag, value, step)

    def constants(self) -> dict[str, float]:
        """What never changed, in two points or more."""
        return {tag: value for tag, (value, steps) in self._held.items() if len(steps) > 1}

    def finish(self) -> None:
        """Write what was recorded only once, of which nobody can say that it is constant."""
        for tag in [tag for tag, (_, steps) in self._held.items() if len(steps) == 1]:
            self._write_held(tag)

    def _write_held(self, tag: str) -> None:
        value, steps = self._held.pop(tag)
        for step in steps:
            self.writer.add_scalar(tag, value, step)
        self._varied.add(tag)

    def state(self) -> dict[str, Any]:
        """Plain data from which :meth:`set_state` continues."""
        held = {tag: [value, list(steps)] for tag, (value, steps) in self._held.items()}
        return {"varied": sorted(self._varied), "held": held}

    def set_state(self, state: Mapping[str, Any], written: Collection[str] = ()) -> None:
        """Continue from :meth:`state`.

        Args:
            state: as it was at a checkpoint.
            written: tags of which the folder has points: one that was held at the checkpoint has
                varied since, before the process was killed, and its points are not written again.
        """
        held = {tag: (value, list(steps)) for tag, (value, steps) in state["held"].items()}
        self._varied = {*state["varied"], *(tag for tag in held if tag in written)}
        self._held = {tag: points for tag, points in held.items() if tag not in written}
