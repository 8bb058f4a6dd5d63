"""A folder of weights as a checkpoint: which files hold them, and whether they can be merged.

What is not plain weights (trainer shards, GGUF, quantised models) is refused with the conversion
to run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files.checkpoint import TensorInfo
from mixgym.trainer.merging.files.safetensors_file import SafetensorsFile
from mixgym.trainer.merging.files.torch_file import TorchFile
from mixgym.trainer.merging.methods.numerics import Array

ADAPTER_CONFIG = "adapter_config.json"

_QUANTISED_ENDINGS = (".qweight", ".qzeros", ".scales", "_scales", ".weight_scale_inv", ".absmax")
_FOREIGN = (
    ("*.gguf", "GGUF; merge the Hugging Face model it was made from, then convert the result"),
    ("*.distcp", "an FSDP checkpoint; consolidate it with `accelerate merge-weights`"),
    ("*_optim_states.pt", "a DeepSpeed checkpoint; run its zero_to_fp32.py"),
    ("global_step*", "a DeepSpeed checkpoint; run its zero_to_fp32.py"),
    ("*.h5", "TensorFlow weights; load and save the model with PyTorch transformers"),
    ("*.msgpack", "Flax weights; load and save the model with PyTorch transformers"),
)


class FolderCheckpoint:
    """The weights of a Hugging Face model folder, in one file or in shards."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder = self.tokenizer_folder = self.own_folder = folder
        self.label = label
        self.config = read_json(folder / "config.json", label)
        if self.config.get("quantization_config"):
            raise MergeError(
                f"model {label} is quantised (config.json, quantization_config); merge the "
                "unquantised models, or dequantise it and save it first"
            )
        self._files: list[SafetensorsFile | TorchFile] = []
        self._owner: dict[str, SafetensorsFile | TorchFile] = {}
        try:
            self._open_all()
            self._refuse_quantised()
            self.tensors: Mapping[str, TensorInfo] = {
                name: file.tensors[name] for name, file in self._owner.items()
            }
        except BaseException:
            self.close()
            raise

    def _open_all(self) -> None:
        index, single = _weight_files(self.folder, self.label)
        if index is None:
            assert single is not None
            self._add(single, None)
            return
        by_file: dict[str, list[str]] = {}
        for name, file in read_json(index, self.label, "weight_map").items():
            by_file.setdefault(str(file), []).append(name)
        for file, names in by_file.items():
            if Path(file).name != file or not (self.folder / file).is_file():
                raise MergeError(
                    f"model {self.label}: {index.name} names {file}, which is not in the folder; "
                    "copy or download the missing shard"
                )
            self._add(self.folder / file, names)

    def _add(self, path: Path, names: list[str] | None) -> None:
        reader = SafetensorsFile if path.suffix == ".safetensors" else TorchFile
        opened: SafetensorsFile | TorchFile = reader(path, self.label)
        self._files.append(opened)
        names = list(opened.tensors) if names is None else names
        for name in names:
            if name not in opened.tensors:
                raise MergeError(
                    f"model {self.label}: the index places tensor {name} in {path.name}, which "
                    "does not hold it; copy or download the model again"
                )
            self._owner[name] = opened
        unnamed = sorted(opened.tensors.keys() - set(names))
        if unnamed:
            raise MergeError(
                f"model {self.label}: {path.name} holds tensor {unnamed[0]}, which the index does "
                "not place there; add it to the index, or save the model again"
            )

    def _refuse_quantised(self) -> None:
        for name in self._owner:
            if name.endswith(_QUANTISED_ENDINGS):
                raise MergeError(
                    f"model {self.label}: tensor {name} belongs to a quantised model; merge the "
                    "unquantised models, or dequantise it and save it first"
                )

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with the elements of a tensor from flat index ``start`` on."""
        self._owner[name].read(name, start, out)

    def fingerprint(self) -> str:
        """Return a hash over the headers of all files."""
        joined = "".join(sorted(file.header_hash for file in self._files))
        return hashlib.sha256(joined.encode()).hexdigest()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def read_json(path: Path, label: str, key: str | None = None) -> dict[str, Any]:
    """Return a JSON file's dictionary, or the dictionary under one of its keys."""
    try:
        content = json.loads(path.read_text("utf-8"))
        content = content if key is None else content[key]
    except FileNotFoundError as error:
        raise MergeError(
            f"model {label}: {path.name} is missing from {path.parent}; give the folder that "
            "save_pretrained wrote"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise MergeError(f"model {label}: {path.name} cannot be read ({error!r})") from error
    if not isinstance(content, dict):
        raise MergeError(f"model {label}: {path.name} does not hold a JSON object")
    return content


def _weight_files(folder: Path, label: str) -> tuple[Path | None, Path | None]:
    """Return the index, or the single file, of the folder's one checkpoint."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{ending}.index.json", folder / f"{stem}.{ending}"
        if index.is_file() and single.is_file():
            raise MergeError(
                f"model {label}: two checkpoints in one folder, {index.name} and {single.name}; "
                "remove the stale one"
            )
        if index.is_file():
            return index, None
        if single.is_file():
            return None, single
    raise MergeError(f"model {label}: {_what_else(folder)}")


def _what_else(folder: Path) -> str:
    for pattern, advice in _FOREIGN:
        found = next(folder.glob(pattern), None)
        if found is not None:
            return f"{found.name} is {advice}"
    return (
        "no model.safetensors, pytorch_model.bin or index of shards in the folder; save the model "
        "with save_pretrained"
    )
