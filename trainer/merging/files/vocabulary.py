"""A model whose vocabulary is cut or filled to the base's rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixgym.trainer.merging.files.checkpoint import Checkpoint, TensorInfo
from mixgym.trainer.merging.files.compatibility import is_vocabulary
from mixgym.trainer.merging.methods.numerics import Array, decode, encode


class BaseVocabulary:
    """A checkpoint with as many token rows as the base; rows that it lacks are the base's own.

    Args:
        model: The checkpoint.
        base: The base.
    """

    def __init__(self, model: Checkpoint, base: Checkpoint) -> None:
        self.label = model.label
        self.folder: Path = model.folder
        self.tokenizer_folder: Path = model.tokenizer_folder
        self.own_folder: Path = model.own_folder
        self.config: dict[str, Any] = {**model.config}
        if "vocab_size" in base.config:
            self.config["vocab_size"] = base.config["vocab_size"]
        self._model = model
        self._base = base
        self._resized = {
            name: info.elements
            for name, info in model.tensors.items()
            if name in base.tensors and is_vocabulary(name) and self._differs(info)
        }
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(info) for name, info in model.tensors.items()
        }

    def _differs(self, info: TensorInfo) -> bool:
        shape = self._base.tensors[info.name].shape
        return shape[1:] == info.shape[1:] and shape != info.shape

    def _info(self, info: TensorInfo) -> TensorInfo:
        if info.name not in self._resized:
            return info
        shape = self._base.tensors[info.name].shape
        return TensorInfo(info.name, shape, info.kind, info.nominal)

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with the elements of a tensor from flat index ``start`` on."""
        own = max(0, min(out.size, self._resized.get(name, start + out.size) - start))
        if own:
            self._model.read(name, start, out[:own])
        if own < out.size:
            self._read_base(name, start + own, out[own:])

    def _read_base(self, name: str, start: int, out: Array) -> None:
        kind = self._base.tensors[name].kind
        raw = out if kind == self.tensors[name].kind else out.astype(kind.storage)
        self._base.read(name, start, raw)
        if raw is not out:
            wide = decode(raw, kind, raw.astype("f8" if kind.name == "F64" else "f4"))
            encode(wide, self.tensors[name].kind, out)

    def fingerprint(self) -> str:
        """Return the hash of the model itself."""
        return self._model.fingerprint()

    def close(self) -> None:
        """Close the files."""
        self._model.close()
