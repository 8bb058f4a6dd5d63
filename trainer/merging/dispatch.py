"""Chooses between merging into a model and merging adapters into an adapter."""

from mixgym.trainer.merging import engine, lora_cat
from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.recipe import Recipe
from mixgym.trainer.merging.report import MergeReport


def run(
    recipe: Recipe, *, dry_run: bool = False, progress: engine.Progress | None = None
) -> MergeReport:
    """Merge; see :func:`mixgym.trainer.merging.engine.merge`."""
    if not recipe.out:
        raise MergeError("no output folder; give one with --out")
    if recipe.spec.family == "adapters":
        return lora_cat.merge_adapters(recipe, dry_run=dry_run)
    return engine.merge(recipe, dry_run=dry_run, progress=progress)
