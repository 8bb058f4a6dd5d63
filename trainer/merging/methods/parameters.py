"""From a recipe's parameters to the numbers that hold for one tensor.

A value may be a number, a gradient over the layers, a mapping of regular expressions or a list of
filters. What a model says for itself goes before what the recipe says for all, and that before the
method's default; a pattern that does not match lets the next in line speak.
"""

import re
from math import fsum
from typing import Any

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.methods.catalogue import accepted_parameters, default_of
from mixgym.trainer.merging.recipe import Recipe, Value

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_FIRST = re.compile(r"embed|wte|wpe")
_PER_MODEL_VALUES = ("weight", "density", "epsilon", "gamma")
_RESCALES = ("paper", "l1", "none")
_GRANULARITIES = ("element", "row", "tensor", "layer")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to.

    >>> layer_of("model.layers.12.mlp.up_proj.weight")
    12
    """
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def depth_of(name: str, layers: int) -> float:
    """Return a tensor's depth from 0 (embeddings, first layer) to 1 (last layer, head)."""
    layer = layer_of(name)
    if layer is None:
        return 0.0 if _FIRST.search(name) else 1.0
    return layer / (layers - 1) if layers > 1 else 0.0


def value_at(value: Value, name: str, depth: float) -> float | None:
    """Return the number that a parameter's value takes at one tensor, None if none applies.

    >>> value_at({"mlp": [0.0, 1.0], ".*": 0.5}, "model.layers.1.mlp.up_proj.weight", 0.25)
    0.25
    """
    if isinstance(value, dict):
        inner = (item for pattern, item in value.items() if re.search(str(pattern), name))
        return value_at(next(inner, None), name, depth)
    if isinstance(value, list):
        if isinstance(value[0], dict):
            inner = (
                v["value"]
                for v in value
                if v.get("filter", "*") in ("*", None) or (v["filter"] in name)
            )
            return value_at(next(inner, None), name, depth)
        return _interpolate(value, depth)
    return None if value is None else float(value)


def _interpolate(anchors: list[float], depth: float) -> float:
    position = depth * (len(anchors) - 1)
    low = min(int(position), len(anchors) - 2) if len(anchors) > 1 else 0
    high = min(low + 1, len(anchors) - 1)
    share = position - low if high > low else 0.0
    return float(anchors[low] * (1 - share) + anchors[high] * share)


def resolve(
    recipe: Recipe, name: str, layers: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the parameters of one tensor: a value per model, and values for all.

    Args:
        recipe: The recipe.
        name: Canonical name of the tensor.
        layers: Number of layers of the model.

    Raises:
        MergeError: Naming the parameter, the model and the tensor.
    """
    spec = recipe.spec
    names = accepted_parameters(spec, *recipe.stages)
    depth = depth_of(name, layers)
    per_model: dict[str, list[float]] = {}
    shared: dict[str, Any] = {}
    for key in sorted(names):
        common = recipe.parameters.get(key)
        if key in _PER_MODEL_VALUES:
            per_model[key] = [
                _first(
                    value_at(entry.parameters.get(key), name, depth),
                    value_at(common, name, depth),
                    default_of(spec, key),
                )
                for entry in recipe.models
            ]
        elif key in ("lambda", "select_topk", "t"):
            shared[key] = _first(value_at(common, name, depth), default_of(spec, key))
        else:
            shared[key] = default_of(spec, key) if common is None else common
    if recipe.stages[1] == "mean" and spec.is_staged:
        shared["normalize"] = True
    _check(recipe, name, per_model, shared)
    return per_model, shared


def _first(*candidates: Any) -> float:
    return float(next(value for value in candidates if value is not None))


def resample_rounds(recipe: Recipe) -> int | None:
    """Return the number of further draws of a selection, None for as many as it takes.

    Raises:
        MergeError: If the parameter is neither a number nor ``all`` nor ``auto``.
    """
    value = recipe.parameters.get("resample", "auto")
    if value == "auto":
        return 0 if recipe.base is None else None
    if value == "all":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MergeError(f"resample is 0, 1, 2, ..., all or auto, not {value!r}")
    return value


def _check(
    recipe: Recipe, name: str, per_model: dict[str, list[float]], shared: dict[str, Any]
) -> None:
    for key in ("density", "gamma", "epsilon"):
        for entry, value in zip(recipe.models, per_model.get(key, []), strict=False):
            low_open = key == "density"
            if not 0.0 <= value <= 1.0 or (low_open and value == 0.0):
                interval = "(0, 1]" if low_open else "[0, 1]"
                raise MergeError(
                    f"{key} of model {entry.model} is {value:g} at tensor {name}; it must lie in "
                    f"{interval}"
                )
    if "select_topk" in shared and not 0.0 < shared["select_topk"] <= 1.0:
        raise MergeError(f"select_topk is {shared['select_topk']:g}; it must lie in (0, 1]")
    if shared.get("rescale", "none") not in _RESCALES:
        raise MergeError(f"rescale is {shared['rescale']!r}; it is one of {', '.join(_RESCALES)}")
    if shared.get("granularity", "element") not in _GRANULARITIES:
        raise MergeError(
            f"granularity is {shared['granularity']!r}; it is one of {', '.join(_GRANULARITIES)}"
        )
    _check_weights(recipe, name, per_model.get("weight"), shared)


def _check_weights(
    recipe: Recipe, name: str, weights: list[float] | None, shared: dict[str, Any]
) -> None:
    if weights is None:
        return
    needs_shares = (
        bool(shared.get("normalize"))
        or recipe.stages[1] == "select"
        or recipe.spec.family == "geometric"
    )
    if needs_shares and abs(fsum(weights)) < 1e-12:
        raise MergeError(
            f"the weights of {', '.join(e.model for e in recipe.models)} sum to 0 at tensor "
            f"{name}, so that they cannot be made shares; give at least one a weight above 0"
        )
    as_probabilities = recipe.stages[1] == "select" or recipe.spec.family == "geometric"
    for entry, weight in zip(recipe.models, weights, strict=True):
        if as_probabilities and weight < 0:
            raise MergeError(
                f"the weight of model {entry.model} is {weight:g} at tensor {name}; "
                f"{recipe.method} needs weights of at least 0"
            )
