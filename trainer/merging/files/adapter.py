"""LoRA folders as virtual checkpoints: base + scaling * B @ A, computed block by block.

No merged model is ever written or held. Variants whose product is not this one (DoRA, residual
initialisations, others than LoRA) are refused.

Source: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), as peft stores them.
"""

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files import tokenizers
from mixgym.trainer.merging.files.checkpoint import Checkpoint, TensorInfo
from mixgym.trainer.merging.files.compatibility import EMBEDDINGS, HEADS, is_vocabulary
from mixgym.trainer.merging.files.folder import ADAPTER_CONFIG, FolderCheckpoint, read_json
from mixgym.trainer.merging.files.safetensors_file import SafetensorsFile
from mixgym.trainer.merging.files.torch_file import TorchFile
from mixgym.trainer.merging.methods.numerics import STORAGE, Array, decode

_PREFIX = "base_model.model."
_BLOCK_ELEMENTS = 1 << 17
_REFUSED_FLAGS = (
    "use_dora",
    "use_qalora",
    "megatron_config",
    "alora_invocation_tokens",
    "lora_bias",
)
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", None)

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LowRank:
    """A factor pair of one weight.

    Attributes:
        a: Name of A in the adapter's file, [r, in].
        b: Name of B, [out, r].
        scaling: Factor of B @ A.
        transposed: Whether the weight is stored as [in, out].
    """

    a: str
    b: str
    scaling: float
    transposed: bool


class AdapterFile:
    """The factors and the configuration of a LoRA folder, without its base."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder = self.tokenizer_folder = self.own_folder = folder
        self.label = label
        self.options = read_json(folder / ADAPTER_CONFIG, label)
        self._check_variant()
        self.file = self._open()
        self.pairs, self.replacements = self._sort_tensors()

    def _open(self) -> SafetensorsFile | TorchFile:
        for name in ("adapter_model.safetensors", "adapter_model.bin"):
            path = self.folder / name
            if path.is_file():
                reader = SafetensorsFile if path.suffix == ".safetensors" else TorchFile
                return reader(path, self.label)
        raise MergeError(
            f"model {self.label}: no adapter_model.safetensors beside {ADAPTER_CONFIG}"
        )

    def _check_variant(self) -> None:
        options = self.options
        kind = options.get("peft_type")
        if kind != "LORA":
            raise self._refused(f"peft_type {kind}")
        for flag in _REFUSED_FLAGS:
            if options.get(flag):
                raise self._refused(flag)
        if options.get("init_lora_weights", True) not in _PLAIN_INITS:
            raise self._refused(f"init_lora_weights {options['init_lora_weights']}")
        for key in ("layer_replication", "target_parameters", "trainable_token_indices"):
            if options.get(key):
                raise self._refused(key)

    def _refused(self, what: str) -> MergeError:
        return MergeError(
            f"model {self.label}: adapters with {what} are not offered; load it with peft, call "
            "merge_and_unload and save the model"
        )

    def _sort_tensors(self) -> tuple[dict[str, LowRank], dict[str, str]]:
        """Return factor pairs and whole replacements, both by the base's tensor name."""
        pairs: dict[str, LowRank] = {}
        replacements: dict[str, str] = {}
        for name in self.file.tensors:
            short = name.removeprefix(_PREFIX)
            if ".lora_A." in short or ".lora_embedding_A" in short:
                target, pair = self._pair(name, short)
                pairs[target] = pair
            elif ".lora_B." in short or ".lora_embedding_B" in short:
                continue
            elif "lora_" in short:
                raise self._refused(f"tensor {name}")
            elif ".original_module." not in short:  # what it was before it was trained
                target = _trained_name(short)
                if target not in replacements or ".modules_to_save" in short:
                    replacements[target] = name
        return pairs, replacements

    def _pair(self, name: str, short: str) -> tuple[str, LowRank]:
        embedding = ".lora_embedding_A" in short
        word = "lora_embedding_" if embedding else "lora_"
        b = name.replace(f"{word}A", f"{word}B")
        if b not in self.file.tensors:
            raise MergeError(f"model {self.label}: tensor {b} is missing beside {name}")
        module = short.split(f".{word}A")[0]
        shape = self.file.tensors[name].shape
        rank = shape[0]
        transposed = bool(self.options.get("fan_in_fan_out")) or embedding
        return f"{module}.weight", LowRank(name, b, self._scaling(module, rank), transposed)

    def _scaling(self, module: str, rank: int) -> float:
        expected = _by_pattern(
            self.options.get("rank_pattern"), module, self.options.get("r", rank)
        )
        if int(expected) != rank:
            raise MergeError(
                f"model {self.label}: rank {rank} of {module} is not the {expected} that "
                f"{ADAPTER_CONFIG} says; the folder mixes two adapters"
            )
        alpha = float(
            _by_pattern(
                self.options.get("alpha_pattern"), module, self.options.get("lora_alpha", rank)
            )
        )
        return alpha / (rank**0.5 if self.options.get("use_rslora") else rank)

    def matrix(self, name: str) -> Matrix:
        """Return a factor whole, as float64; factors are small."""
        info = self.file.tensors[name]
        raw = np.empty(info.elements, info.kind.storage)
        self.file.read(name, 0, raw)
        return decode(raw, info.kind, np.empty(raw.size, np.float64)).reshape(info.shape)


def _trained_name(short: str) -> str:
    """The base's name of a tensor that peft saved whole, with or without the adapter's name."""
    plain = re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", short)
    return plain.replace("base_layer.", "")


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that ends the module's name, as peft matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class AdapterCheckpoint:
    """A base model with an adapter added on the fly.

    Adapted weights are delivered as float32; their nominal type stays the base's.
    """

    def __init__(self, adapter: AdapterFile, base: FolderCheckpoint) -> None:
        self.label = adapter.label
        self.folder = base.folder
        self.own_folder = adapter.folder
        has_own = bool(tokenizers.marks(adapter.folder))
        self.tokenizer_folder = adapter.folder if has_own else base.folder
        self.adapter = adapter
        self._base = base
        self._kept = local()
        self._drop_tied_head()
        self._check_targets()
        self.tensors = self._listed()
        self.config = self._grown_config(has_own)

    def _drop_tied_head(self) -> None:
        """Leave out a head that peft saved beside the embedding that it is tied to."""
        if not self._base.config.get("tie_word_embeddings"):
            return
        saved = self.adapter.replacements
        heads = [name for name in saved if name in HEADS]
        embedding = next((name for name in saved if name.endswith(EMBEDDINGS)), None)
        for head in heads:
            if embedding is None or not self._are_equal(saved[head], saved[embedding]):
                raise MergeError(
                    f"model {self.label}: its base {self._base.label} has a tied head, and the "
                    f"adapter a trained {head} of its own, which a tied model cannot hold; merge "
                    "on a base that was saved untied (tie_word_embeddings: false)"
                )
            del saved[head]

    def _are_equal(self, one: str, two: str) -> bool:
        first, second = (self.adapter.file.tensors[name] for name in (one, two))
        if (first.shape, first.kind) != (second.shape, second.kind):
            return False
        parts = [np.empty(info.elements, info.kind.storage) for info in (first, second)]
        for name, part in zip((one, two), parts, strict=True):
            self.adapter.file.read(name, 0, part)
        return parts[0].tobytes() == parts[1].tobytes()

    def _grown_config(self, has_own_tokenizer: bool) -> dict[str, Any]:
        """The base's configuration, with as many tokens as the adapter's embedding has rows.

        Raises:
            MergeError: Embedding and head have different rows, or the tokenizer has more tokens.
        """
        rows = {n: info.shape[0] for n, info in self.tensors.items() if is_vocabulary(n)}
        if len(set(rows.values())) > 1:
            table = ", ".join(f"{name} has {count}" for name, count in sorted(rows.items()))
            raise MergeError(
                f"model {self.label}: {table} rows: the vocabulary grew, and only a part of it was "
                "saved with the adapter; save it again with save_embedding_layers=True"
            )
        count = next(iter(rows.values()), None)
        grown = any(name in self.adapter.replacements for name in rows)
        if has_own_tokenizer:
            tokenizers.check_rows(self.tokenizer_folder, self.label, count)
        if not grown or count is None:
            return self._base.config
        config = copy.deepcopy(self._base.config)
        text = config.get("text_config")
        if isinstance(text, dict) and "vocab_size" in text:
            text["vocab_size"] = count
        if "vocab_size" in config or not isinstance(text, dict):
            config["vocab_size"] = count
        return config

    def _check_targets(self) -> None:
        known = self._base.tensors
        for name in [*self.adapter.pairs, *self.adapter.replacements]:
            if name not in known:
                raise MergeError(
                    f"model {self.label}: tensor {name} of the adapter is not in its base "
                    f"{self._base.label} (a tied head, or another model); give the base it was "
                    "trained on, untied if the head was trained"
                )
        for name, pair in self.adapter.pairs.items():
            a, b = (self.adapter.file.tensors[factor] for factor in (pair.a, pair.b))
            expected = (b.shape[0], a.shape[1])
            if pair.transposed:
                expected = expected[::-1]
            found = self._plain_info(name).shape
            if found != expected:
                raise MergeError(
                    f"model {self.label}: the adapter's factors make {name} {list(expected)}, its "
                    f"base {self._base.label} has {list(found)}; give the base it was trained on"
                )

    def _listed(self) -> Mapping[str, TensorInfo]:
        """Return the base's tensors as the adapter changes them, products as float32."""
        listed = dict(self._base.tensors)
        for name, saved in self.adapter.replacements.items():
            info = self.adapter.file.tensors[saved]
            listed[name] = TensorInfo(name, info.shape, info.kind, listed[name].kind)
        for name in self.adapter.pairs:
            info = listed[name]
            kind = info.kind if info.kind.name == "F64" else STORAGE["F32"]
            listed[name] = TensorInfo(name, info.shape, kind, info.nominal)
        return listed

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with the elements of a tensor from flat index ``start`` on."""
        if name in self.adapter.pairs:
            self._read_sum(name, start, out)
        else:
            self._read_plain(name, start, out)

    def _read_plain(self, name: str, start: int, out: Array) -> None:
        """Read what the products are added to: peft saves embeddings whole beside their factors."""
        saved = self.adapter.replacements.get(name)
        if saved is None:
            self._base.read(name, start, out)
        else:
            self.adapter.file.read(saved, start, out)

    def _plain_info(self, name: str) -> TensorInfo:
        saved = self.adapter.replacements.get(name)
        return self._base.tensors[name] if saved is None else self.adapter.file.tensors[saved]

    def _read_sum(self, name: str, start: int, out: Array) -> None:
        columns = self.tensors[name].shape[-1]
        height = max(1, _BLOCK_ELEMENTS // columns)
        span = height * columns
        done = 0
        while done < out.size:
            number, inside = divmod(start + done, span)
            block = self._block(name, number, height)[inside : inside + out.size - done]
            out[done : done + block.size] = block
            done += block.size

    def _block(self, name: str, number: int, height: int) -> Array:
        """Return rows number * height and on; fixed blocks, so that chunks cannot matter."""
        kept: dict[tuple[str, int], Array] = self._kept.__dict__.setdefault("block", {})
        if (name, number) not in kept:
            block = self._compute_block(name, number * height, height)
            kept.clear()
            kept[name, number] = block
        return kept[name, number]

    def _compute_block(self, name: str, first: int, height: int) -> Array:
        info = self._plain_info(name)
        rows = min(height, info.shape[0] - first)
        raw = np.empty(rows * info.shape[1], info.kind.storage)
        self._read_plain(name, first * info.shape[1], raw)
        base = decode(raw, info.kind, np.empty(raw.size, np.float64))
        left, right = self._factors(name)
        delta = left[first : first + rows] @ right
        kind = self.tensors[name].kind
        return (base + delta.ravel()).astype(kind.storage)

    def _factors(self, name: str) -> tuple[Matrix, Matrix]:
        """Return float64 matrices whose product is the weight's delta."""
        kept: dict[str, tuple[Matrix, Matrix]] = self._kept.__dict__.setdefault("factors", {})
        if name not in kept:
            pair = self.adapter.pairs[name]
            a, b = self.adapter.matrix(pair.a) * pair.scaling, self.adapter.matrix(pair.b)
            kept.clear()
            kept[name] = (a.T, b.T) if pair.transposed else (b, a)
        return kept[name]

    def fingerprint(self) -> str:
        """Return a hash over the adapter's and the base's headers and the adapter's options."""
        text = self.adapter.file.header_hash + self._base.fingerprint()
        text += repr(sorted(self.adapter.options.items(), key=lambda item: item[0]))
        return hashlib.sha256(text.encode()).hexdigest()

    def close(self) -> None:
        """Close the files."""
        self.adapter.file.close()
        self._base.close()


def open_adapter(folder: Path, label: str, base: str | None) -> Checkpoint:
    """Open a LoRA folder on its base: the given one, or else the one its configuration names."""
    adapter = AdapterFile(folder, label)
    place = base or adapter.options.get("base_model_name_or_path") or ""
    if not Path(place).expanduser().is_dir():
        adapter.file.close()
        raise MergeError(
            f"model {label} is an adapter, and its base {place or '(none named)'} is not a folder "
            "here; give it with --base"
        )
    if (Path(place).expanduser() / ADAPTER_CONFIG).is_file():
        adapter.file.close()
        raise MergeError(f"model {label}: its base {place} is an adapter too; give a full model")
    return AdapterCheckpoint(adapter, FolderCheckpoint(Path(place).expanduser(), place))
