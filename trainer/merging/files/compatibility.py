"""Whether models can be merged at all: configurations, tensors, shapes, tied heads.

Each refusal names the models, the tensor or key, and the fix. No weights are read here.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files import tokenizers
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

_MODEL_EXTRAS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")


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


def files_to_copy(donor: Path, tokenizer: Path | None) -> dict[str, Path]:
    """Return the name -> source of every file that goes along with the weights."""
    found = {name: donor / name for name in _MODEL_EXTRAS}
    found.update({path.name: path for path in donor.glob("*.py")})
    found = {name: path for name, path in found.items() if path.is_file()}
    return {**found, **tokenizers.files_of(tokenizer)}
