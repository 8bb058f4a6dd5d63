"""The kernel of merge methods that are plug-ins: a function of the models' values.

What a function is shown are stretches of a tensor, whose length is a matter of memory; so it must
give each element from the elements in its place alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mixgym.trainer.merging.chunk import BASE, Chunk
from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.methods.kernels import Checks
from mixgym.trainer.merging.methods.numerics import Array
from mixgym.trainer.merging.methods.sparsify import StageSettings
from mixgym.trainer.merging.methods.statistics import Tally


class FunctionKernel:
    """A plug-in's function, applied to one tensor.

    Args:
        method: The method's word, for errors.
        compute: ``(values, base, settings) -> array[n]``: ``values`` holds an array[n] per model in
            working precision, ``base`` one of the base model or None, neither to be written to;
            ``settings`` has the parameters.
        settings: The tensor's parameters.
        has_base: Whether there is a base model.
    """

    passes = 0
    whole_rows = False
    measures_deltas = False
    stretch = 1
    checks: Checks = "both"

    def __init__(
        self, method: str, compute: Callable[..., Any], settings: StageSettings, has_base: bool
    ) -> None:
        self._method, self._compute = method, compute
        self._settings, self._has_base = settings, has_base
        self.tally = Tally()

    def observe(self, stage: int, chunk: Chunk) -> None:
        """Nothing to measure."""

    def finish(self, stage: int) -> None:
        """Nothing to end."""

    def apply(self, chunk: Chunk) -> Array:
        """Call the function.

        Raises:
            MergeError: If it gives another number of elements.
        """
        values = [_read_only(chunk.value(k)) for k in range(chunk.models)]
        base = _read_only(chunk.value(BASE)) if self._has_base else None
        merged = np.asarray(self._compute(values, base, self._settings), self._settings.work)
        if merged.shape != (chunk.size,):
            raise MergeError(
                f"method {self._method} gave an array {merged.shape} for {chunk.size} elements of "
                f"tensor {self._settings.name}; it has to give one value for each"
            )
        return chunk.encode(merged)


def _read_only(values: Array) -> Array:
    view = values.view()
    view.flags.writeable = False
    return view
