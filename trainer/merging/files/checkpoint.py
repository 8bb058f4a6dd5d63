"""What a merge asks of a checkpoint, whatever files it consists of.

A checkpoint lists its tensors and reads any stretch of one into a given buffer. Formats stand in
their own modules; ``reading.py`` chooses among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from mixgym.trainer.merging.methods.numerics import Array, StorageType


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        name: Name in the files.
        shape: Sizes of the axes.
        kind: Storage type of what ``read`` delivers.
        nominal: Storage type of the model it belongs to; differs for computed tensors.
    """

    name: str
    shape: tuple[int, ...]
    kind: StorageType
    nominal: StorageType

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Checkpoint(Protocol):
    """A model's weights on disk."""

    @property
    def label(self) -> str:
        """How messages call it: the path that the user gave."""

    @property
    def folder(self) -> Path:
        """Folder that holds its configuration."""

    @property
    def tokenizer_folder(self) -> Path:
        """Folder that holds its tokenizer: an adapter's own, if it was saved with one."""

    @property
    def own_folder(self) -> Path:
        """Folder that was saved when it was trained: an adapter's, or the model's."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Its tensors by name."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with the elements of a tensor from flat index ``start`` on."""

    def fingerprint(self) -> str:
        """Return a hash of the tensors' names, types, shapes and places, not of their values."""

    def close(self) -> None:
        """Close the files."""
