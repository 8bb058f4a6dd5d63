"""One stretch of one tensor, as all models hold it, read on demand into reused buffers.

A kernel asks a chunk for raw bits, values or deltas; what it does not ask for is never read.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files.checkpoint import Checkpoint, TensorInfo
from mixgym.trainer.merging.methods.numerics import (
    Array,
    StorageType,
    decode,
    encode,
    first_nonfinite,
    through,
)

BASE = -1
"""Index of the base model, beside 0 to K - 1 for the models."""


@dataclass(frozen=True)
class Origin:
    """Where one model's copy of a tensor comes from."""

    checkpoint: Checkpoint
    info: TensorInfo


class Workspace:
    """Buffers of one worker, allocated once for each role and type."""

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Array] = {}

    def take(self, role: Hashable, dtype: np.dtype[Any], size: int) -> Array:
        """Return an uninitialised array[size]; the same memory for the same role and type."""
        key = (role, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[key] = np.empty(size, dtype)
        return buffer[:size]


class Chunk:
    """Elements ``start`` to ``stop`` of one tensor.

    Args:
        origins: One for each model, in the recipe's order.
        base: The base's, or None.
        work: float32 or float64.
        out: Storage type of the output.
        check: Refuse NaN and infinities; called for in the first pass only.
        landing: Where the output goes, raw elements; a buffer of the workspace by default.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        origins: list[Origin],
        base: Origin | None,
        work: np.dtype[Any],
        out: StorageType,
        workspace: Workspace,
        check: bool,
        landing: Array | None = None,
    ) -> None:
        self.start = start
        self.stop = stop
        self.size = stop - start
        self.work = work
        self.out = out
        self._origins = origins
        self._base = base
        self._space = workspace
        self._check = check
        self._landing = landing
        self._done: dict[Hashable, Array] = {}

    @property
    def models(self) -> int:
        """How many models there are, without the base."""
        return len(self._origins)

    def kind(self, index: int) -> StorageType:
        """Return how model ``index`` stores the tensor."""
        return self._origin(index).info.kind

    def raw(self, index: int) -> Array:
        """Return the stored bits of model ``index``; not to be changed."""
        kind = self.kind(index)
        return self._once(
            ("raw", index),
            lambda: self._read(index, self.scratch(("raw", index), kind.storage)),
        )

    def value(self, index: int) -> Array:
        """Return model ``index`` in working precision; not to be changed."""
        return self._once(("value", index), lambda: self.fresh_value(index))

    def fresh_value(self, index: int) -> Array:
        """Return model ``index`` in working precision, to be changed at will."""
        return decode(self.raw(index), self.kind(index), self.scratch(("value", index)))

    def passing_value(self, index: int, out: Array) -> Array:
        """Read model ``index`` in working precision into ``out``, without keeping its bits.

        All models pass through one buffer, which stays in the processor's cache.
        """
        origin = self._origin(index)
        raw = self._read(index, self.scratch("passing", origin.info.kind.storage))
        return decode(raw, origin.info.kind, out)

    def base_as(self, index: int) -> Array:
        """Return the base as rounded to the type of model ``index``, where its training began."""
        kind = self.kind(index)
        if kind.name in (self.kind(BASE).name, "F64"):
            return self.value(BASE)
        return self._once(("base as", kind.name), lambda: through(self.value(BASE), kind))

    def deltas(self) -> list[Array]:
        """Return model minus base for each model, to be changed at will."""
        base = [self.base_as(k) for k in range(self.models)]
        return [self._delta(k, base[k]) for k in range(self.models)]

    def _delta(self, index: int, base: Array) -> Array:
        value = decode(self.raw(index), self.kind(index), self.scratch(("delta", index)))
        return np.subtract(value, base, out=value)

    def scratch(self, role: Hashable, dtype: np.dtype[Any] | None = None) -> Array:
        """Return an uninitialised array[size] that lives as long as this chunk."""
        return self._space.take(role, self.work if dtype is None else dtype, self.size)

    def place(self) -> Array:
        """Return where the output belongs: raw elements, uninitialised."""
        return self.scratch("out", self.out.storage) if self._landing is None else self._landing

    def encode(self, values: Array) -> Array:
        """Return ``values`` rounded to the output's storage type."""
        return encode(values, self.out, self.place())

    def _once(self, key: Hashable, make: Callable[[], Array]) -> Array:
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]

    def _origin(self, index: int) -> Origin:
        origin = self._base if index == BASE else self._origins[index]
        if origin is None:
            raise MergeError("this step needs a base model; give one with --base")
        return origin

    def _read(self, index: int, out: Array) -> Array:
        origin = self._origin(index)
        origin.checkpoint.read(origin.info.name, self.start, out)
        if self._check and origin.info.kind.kind == "float":
            self._refuse(origin, out)
        return out

    def refuse_nonfinite(self) -> None:
        """Raise if a model's stored elements hold a NaN or an infinity."""
        for index in [*range(self.models), *([BASE] if self._base else [])]:
            self._refuse(self._origin(index), self.raw(index))

    def _refuse(self, origin: Origin, raw: Array) -> None:
        found = first_nonfinite(raw, origin.info.kind)
        if found is not None:
            raise MergeError(
                f"model {origin.checkpoint.label}, tensor {origin.info.name}: NaN or infinity at "
                f"element {self.start + found}; repair or leave out this model, or pass "
                "--allow-nonfinite"
            )
