"""Reading PyTorch ``.bin`` files by stretches of elements, mapped and without running pickles."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files.checkpoint import TensorInfo
from mixgym.trainer.merging.methods.numerics import Array, storage_type

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TorchFile:
    """One mapped ``.bin`` file that holds a dictionary of tensors.

    Args:
        path: The file.
        label: The model it belongs to, for messages.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self._label = label
        try:
            loaded: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # torch raises many types; the cause is kept
            raise MergeError(
                f"model {label}: {path.name} cannot be read as plain weights "
                f"({str(error).splitlines()[0]}); load it where it was made and save it with "
                "save_pretrained (safetensors)"
            ) from error
        self._tensors = self._checked(loaded)
        self.tensors = {name: self._info(name, x) for name, x in self._tensors.items()}
        listing = repr([(i.name, i.kind.name, i.shape) for i in self.tensors.values()])
        self.header_hash = hashlib.sha256(listing.encode()).hexdigest()

    def _checked(self, loaded: Any) -> dict[str, torch.Tensor]:
        if not isinstance(loaded, dict) or not all(
            isinstance(value, torch.Tensor) for value in loaded.values()
        ):
            raise MergeError(
                f"model {self._label}: {self.path.name} is not a flat dictionary of tensors (a "
                "trainer's checkpoint?); export it with save_pretrained"
            )
        return loaded

    def _info(self, name: str, tensor: torch.Tensor) -> TensorInfo:
        word = _NAMES.get(tensor.dtype, str(tensor.dtype))
        kind = storage_type(word, f"model {self._label}, tensor {name}")
        return TensorInfo(name, tuple(tensor.shape), kind, kind)

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with elements from flat index ``start`` on, in C order."""
        tensor = self._tensors[name]
        if tensor.is_contiguous():
            part = tensor.reshape(-1)[start : start + out.size]
        else:
            row = max(1, tensor[0].numel())
            first, last = start // row, (start + out.size - 1) // row + 1
            part = tensor[first:last].reshape(-1)[start - first * row :][: out.size]
        bits = part.view(torch.int16) if tensor.dtype == torch.bfloat16 else part
        np.copyto(out, bits.contiguous().numpy().view(out.dtype))

    def close(self) -> None:
        """Drop the maps."""
        self._tensors = {}
