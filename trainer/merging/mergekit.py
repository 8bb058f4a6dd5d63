"""mergekit's YAML, as far as it says what our recipes say.

Slices, modules, unions of tokenizers and per-filter model stock are not offered; such a recipe is
refused with the key that is to blame, and its models can still be merged by mergekit.
"""

from collections.abc import Mapping
from typing import Any

from mixgym.trainer.merging.errors import MergeError

_OWN_KEYS = ("merge_method", "base_model", "dtype")
_KEYS = (
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "slices",
    "modules",
    "name",
)
_WITHOUT_EFFECT = ("int8_mask", "eps", "nuslerp_flatten", "nuslerp_row_wise", "filter_wise")
_RENAMED = {"dare": "dare_linear"}


def is_mergekit(data: Mapping[str, Any]) -> bool:
    """Whether a recipe is written with mergekit's keys."""
    return any(key in data for key in (*_OWN_KEYS, "slices", "modules"))


def from_mergekit(data: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a mergekit recipe.

    Its ``dtype`` becomes the output's type, unless ``out_dtype`` says otherwise; the arithmetic is
    in float32 either way.

    Raises:
        MergeError: For what is not offered.
    """
    ours = {key: value for key, value in data.items() if key not in _KEYS}
    for key in ("slices", "modules"):
        if data.get(key):
            raise MergeError(f"recipe: {key} are not offered; run this recipe with mergekit")
    method = str(data.get("merge_method", data.get("method", "")))
    plain: dict[str, Any] = {**ours, "method": _RENAMED.get(method, method)}
    parameters = dict(data.get("parameters") or {})
    plain["models"] = [_entry(entry) for entry in data.get("models") or []]
    plain["parameters"] = _translated(parameters, method)
    if data.get("base_model"):
        plain["base"] = data["base_model"]
    dtype = data.get("out_dtype") or data.get("dtype")
    if dtype:
        plain["out_dtype"] = dtype
    _tokenizer(data, plain)
    return plain


def _entry(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    if "parameters" not in entry:
        return entry
    return {**entry, "parameters": dict(entry["parameters"] or {})}


def _translated(parameters: dict[str, Any], method: str) -> dict[str, Any]:
    if parameters.get("filter_wise"):
        raise MergeError("recipe: filter_wise is not offered; remove it or use mergekit")
    flat = parameters.get("nuslerp_flatten", True)
    if method == "nuslerp" and not flat:
        if not parameters.get("nuslerp_row_wise"):
            raise MergeError(
                "recipe: nuslerp by columns is not offered; set nuslerp_row_wise: true, or flatten"
            )
        parameters["granularity"] = "row"
    if method == "multislerp" and not parameters.pop("normalize_weights", True):
        raise MergeError("recipe: normalize_weights: false is not offered; remove it")
    kept = {key: value for key, value in parameters.items() if key not in _WITHOUT_EFFECT}
    if isinstance(kept.get("rescale"), bool):
        kept["rescale"] = "l1" if kept["rescale"] else "none"
    return kept


def _tokenizer(data: Mapping[str, Any], plain: dict[str, Any]) -> None:
    source = data.get("tokenizer_source")
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, dict):
        extra = set(tokenizer) - {"source"}
        if extra:
            raise MergeError(f"recipe: tokenizer.{sorted(extra)[0]} is not offered; use mergekit")
        source = tokenizer.get("source")
    if source == "union":
        raise MergeError("recipe: a union of tokenizers is not offered; use mergekit")
    if source == "base":
        source = data.get("base_model")
    if source:
        plain["tokenizer_from"] = source
    if data.get("chat_template"):
        raise MergeError("recipe: chat_template is not offered; copy the template afterwards")
