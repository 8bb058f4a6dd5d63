"""Whether models can be merged at all: configurations, tensors, shapes, tied heads, tokenizers.

Each refusal names the models, the tensor or key, and the fix. No weights are read here.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files.checkpoint import Checkpoint, TensorInfo

_DECISIVE = (
    "architectures",
    "model_type",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "n_inner",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "tie_word_embeddings",
)
_HARMLESS = (
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "transformers_version",
    "use_cache",
    "_attn_implementation",
    "attn_implementation",
)
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_HEADED = ("CausalLM", "LMHeadModel")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)
_TOKENIZER_EXTRAS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
)
_MODEL_EXTRAS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
_STATE_OF_USE = ("truncation", "padding")


def check_configs(models: Sequence[Checkpoint], vocab: str) -> list[str]:
    """Compare configurations with the first one's.

    Args:
        models: The donor first.
        vocab: ``base`` if vocabularies may differ.

    Returns:
        Warnings about keys that differ and do not decide whether the models fit.

    Raises:
        MergeError: Naming key, models and values.
    """
    donor, *others = models
    warnings = []
    for other in others:
        ours, theirs = _comparable(donor.config, other.config)
        for key in sorted({*ours, *theirs} - set(_HARMLESS)):
            one, two = ours.get(key), theirs.get(key)
            if one == two or (key == "vocab_size" and vocab == "base"):
                continue
            text = f"{key} is {one!r} in model {donor.label} and {two!r} in model {other.label}"
            if key == "tie_word_embeddings":
                raise MergeError(f"{text}; save both with the head tied, or both untied")
            if key in _DECISIVE:
                hint = ", or pass --vocab base" if key == "vocab_size" else ""
                raise MergeError(f"{text}; merge models of one architecture and size{hint}")
            warnings.append(f"{text}; the first is kept")
    return warnings


Config = dict[str, Any]


def _comparable(one: Config, two: Config) -> tuple[Config, Config]:
    """Return both, with every default written out if they differ in what decides.

    Versions of transformers leave out different keys, and spell rotary embeddings differently.
    """
    if all(one.get(key) == two.get(key) for key in _DECISIVE):
        return one, two
    full = _complete(one), _complete(two)
    return (one, two) if full[0] is None or full[1] is None else (full[0], full[1])


def _complete(config: Config) -> Config | None:
    """Return a configuration as transformers understands it, None if it does not know its kind."""
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return None
    try:
        full: Config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(config)).to_dict()
    except Exception:  # whatever a kind's own checks raise
        return None
    rotary = full.get("rope_parameters")
    if isinstance(rotary, dict):
        rotary.pop("type", None)  # the former name of rope_type
    return full


def canonical_tensors(model: Checkpoint) -> dict[str, TensorInfo]:
    """Return a model's tensors, a tied head left out in favour of the embedding.

    Raises:
        MergeError: If a head is missing that is not tied.
    """
    tensors = dict(model.tensors)
    heads = [name for name in tensors if name in HEADS]
    has_embedding = any(name.endswith(EMBEDDINGS) for name in tensors)
    tied = model.config.get("tie_word_embeddings")
    if tied and has_embedding:
        for head in heads:
            del tensors[head]
    names = model.config.get("architectures") or []
    expects_head = any(str(name).endswith(_HEADED) for name in names)
    if tied is False and expects_head and has_embedding and not heads:
        raise MergeError(
            f"model {model.label}: tensor {HEADS[0]} is missing, and config.json says "
            "tie_word_embeddings: false; save the model with its head, or set the flag to true if "
            "it was trained tied"
        )
    return tensors


def check_names(listed: Sequence[tuple[str, dict[str, TensorInfo]]]) -> None:
    """Refuse models that lack a tensor of the first one, or have one more.

    Raises:
        MergeError: Naming the model and the tensors.
    """
    (donor, expected), *others = listed
    for label, tensors in others:
        missing = sorted(expected.keys() - tensors.keys())
        if missing:
            raise MergeError(
                f"model {label} lacks tensor {_some(missing)}, which model {donor} has; save it "
                "whole, or leave it out"
            )
        extra = sorted(tensors.keys() - expected.keys())
        if extra:
            raise MergeError(
                f"model {label} has the unexpected tensor {_some(extra)}, which model {donor} "
                "lacks; save both from the same class of model, or leave one out"
            )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def check_tensor(name: str, infos: Sequence[tuple[str, TensorInfo]]) -> None:
    """Refuse a tensor whose shapes differ, or that is float in one model and integer in another.

    Raises:
        MergeError: With a table of models.
    """
    if len({info.shape for _, info in infos}) > 1:
        table = "; ".join(f"{label} -> {list(info.shape)}" for label, info in infos)
        rows_only = len({info.shape[1:] for _, info in infos}) == 1 and is_vocabulary(name)
        hint = (
            "pass --vocab base to cut or fill to the base's rows"
            if rows_only
            else "merge models of one size"
        )
        raise MergeError(f"tensor {name} has different shapes: {table}; {hint}")
    if len({info.kind.kind for _, info in infos}) > 1:
        table = "; ".join(f"{label} -> {info.kind.name}" for label, info in infos)
        raise MergeError(
            f"tensor {name} is floating point in some models only: {table}; save them in one dtype"
        )


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has a row per token."""
    return name in HEADS or name.endswith(EMBEDDINGS)


def tokenizer_marks(folder: Path) -> dict[str, str]:
    """Return tokenizer file -> hash, without the padding and truncation last in use."""
    return {
        name: hashlib.sha256(_content(folder / name)).hexdigest()
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    }


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.name != "tokenizer.json":
        return raw
    try:
        parsed: Any = json.loads(raw)
    except ValueError:
        return raw
    if isinstance(parsed, dict):
        parsed = {key: value for key, value in parsed.items() if key not in _STATE_OF_USE}
    return json.dumps(parsed, sort_keys=True).encode()


def tokenizer_donor(models: Sequence[Checkpoint], chosen: str | None) -> Path | None:
    """Return the folder whose tokenizer the merge takes over, None for no tokenizer.

    Args:
        models: The donor first.
        chosen: The recipe's ``tokenizer_from``: a model, a folder or ``none``.

    Raises:
        MergeError: If tokenizers differ and none was chosen.
    """
    if chosen == "none":
        return None
    if chosen is not None:
        folder = next((m.folder for m in models if m.label == chosen), Path(chosen).expanduser())
        if not tokenizer_marks(folder):
            raise MergeError(
                f"tokenizer_from {chosen}: no tokenizer there; name a model that has one"
            )
        return folder
    marked = [(m, marks) for m in models if (marks := tokenizer_marks(m.folder))]
    for model, marks in marked[1:]:
        first, expected = marked[0]
        for name in sorted(marks.keys() & expected.keys()):
            if marks[name] != expected[name]:
                raise MergeError(
                    f"{name} differs between model {first.label} and model {model.label}; merge "
                    "models of one tokenizer, or pass --tokenizer-from MODEL if you know that "
                    "their tokens agree"
                )
    return marked[0][0].folder if marked else None


def template_warnings(models: Sequence[Checkpoint], tokenizer: Path) -> list[str]:
    """Return a warning for each model whose chat template is not the one that is copied."""
    copied = _chat_template(tokenizer)
    return [
        f"the chat template of model {model.label} is not that of {tokenizer}, which is copied; "
        f"pass --tokenizer-from {model.label} to take over its own"
        for model in models
        if _chat_template(model.folder) not in (None, copied)
    ]


def _chat_template(folder: Path) -> Any:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            found = json.loads((folder / name).read_text("utf-8"))["chat_template"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return found
    return None


def files_to_copy(donor: Path, tokenizer: Path | None) -> dict[str, Path]:
    """Return the name -> source of every file that goes along with the weights."""
    found = {name: donor / name for name in _MODEL_EXTRAS}
    found.update({path.name: path for path in donor.glob("*.py")})
    if tokenizer is not None:
        names = (*TOKENIZER_FILES, *_TOKENIZER_EXTRAS)
        found.update({name: tokenizer / name for name in names})
    return {name: path for name, path in found.items() if path.is_file()}
