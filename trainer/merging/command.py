"""Merging as the command line asks for it: words and options become a recipe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixgym.envs.errors import did_you_mean
from mixgym.trainer.merging.errors import MergeMisuseError
from mixgym.trainer.merging.files.run_folders import base_of, model_in
from mixgym.trainer.merging.methods.catalogue import PARAMETERS, PER_MODEL
from mixgym.trainer.merging.recipe import Recipe
from mixgym.trainer.merging.report import MergeReport
from mixgym.trainer.strict_yaml import parse_yaml

_PLACES = ("models", "base", "method", "out", "parameters")


def merge_command(
    models: Sequence[str] = (),
    *,
    base: str | None = None,
    method: str | None = None,
    out: str | None = None,
    recipe: str | None = None,
    dry_run: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge as ``mixgym merge MODELS... --base B --method M --out O --recipe R`` does.

    Args:
        models: Model or run folders; with a recipe, they replace its own.
        base: The base model's folder; ``start`` is the model that the run folders began with.
        method: A name of the catalogue; ``select`` if neither this nor the recipe says.
        out: The output folder.
        recipe: A YAML file, ours or mergekit's; the other arguments go before it.
        dry_run: Check, write nothing.
        options: Further keys of a recipe (``seed``, ``threads``, ``overwrite``, ...) or parameters
            (``density``, ``weight``, ...). Text is read as YAML; a comma-separated ``weight``,
            ``density``, ``epsilon`` or ``gamma`` gives one value per model. ``None`` is not given.
        progress: Called with (elements done, elements in all).

    Raises:
        MergeError: One line that names the option, the model or the tensor, and the fix.
    """
    from mixgym.trainer.merging.engine import run

    base = base_of(base, models)
    models = [model_in(model) for model in models]
    given = {"base": base, "method": method, "out": out}
    overrides: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    parameters, per_model = _sort_options(options or {}, overrides)
    if parameters:
        overrides["parameters"] = parameters
    if models:
        overrides["models"] = [{"model": model} for model in models]
    if recipe is None:
        overrides.setdefault("method", "select")
        if "models" not in overrides:
            raise MergeMisuseError("no models; name their folders, or a recipe with --recipe FILE")
        parsed = Recipe.parse(_spread(overrides, per_model))
    else:
        parsed = _from_file(recipe, overrides, per_model)
    return run(parsed, dry_run=dry_run, progress=progress)


def _from_file(path: str, overrides: dict[str, Any], per_model: dict[str, list[float]]) -> Recipe:
    if per_model and "models" not in overrides:
        own = Recipe.from_yaml(path)
        overrides["models"] = [entry.model_dump() for entry in own.models]
    return Recipe.from_yaml(path, _spread(overrides, per_model))


def _sort_options(
    options: Mapping[str, Any], overrides: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Put each option where it belongs; return parameters, and parameters per model."""
    parameters: dict[str, Any] = {}
    per_model: dict[str, list[float]] = {}
    for word, value in options.items():
        if value is None:
            continue
        key = word.replace("-", "_")
        plain = _plain(value)
        if key in PER_MODEL and isinstance(plain, list):
            per_model[key] = plain
        elif key in PARAMETERS:
            parameters[key] = plain
        elif key in Recipe.model_fields and key not in _PLACES:
            overrides[key] = value if key == "max_shard_size" else plain
        else:
            known = [*PARAMETERS, *(set(Recipe.model_fields) - set(_PLACES))]
            raise MergeMisuseError(f"unknown option {key!r}; {did_you_mean(key, known)}")
    return parameters, per_model


def _plain(value: Any) -> Any:
    """Read text as YAML; numbers with commas between them are a list."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    parts = [part.strip() for part in value.split(",")]
    try:
        if len(parts) > 1 and not value.lstrip().startswith(("[", "{")):
            return [float(part) for part in parts]
        return parse_yaml(value, "option")[0]
    except ValueError as error:
        raise MergeMisuseError(f"option value {value!r} cannot be read ({error})") from error


def _spread(data: dict[str, Any], per_model: dict[str, list[float]]) -> dict[str, Any]:
    """Give each model its own value of the options that list one per model."""
    models = [dict(entry) for entry in data.get("models", [])]
    for key, values in per_model.items():
        if len(values) != len(models):
            raise MergeMisuseError(
                f"{key} lists {len(values)} values for {len(models)} models "
                f"({', '.join(str(entry['model']) for entry in models)}); give one for each"
            )
        for entry, value in zip(models, values, strict=True):
            entry["parameters"] = {**entry.get("parameters", {}), key: value}
    return {**data, "models": models} if models else data
