"""Model soups: averages of those models that help on held-out data.

The evaluation is any function from a model folder to a loss; the soups only decide what to merge.

Source: Wortsman et al., "Model soups", 2022.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixgym.trainer.merging.engine import run as merge
from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.recipe import ModelEntry, Recipe

Evaluate = Callable[[str], float]
"""Takes a model folder, returns a loss; lower is better."""


@dataclass(frozen=True)
class Soup:
    """The outcome of a soup.

    Attributes:
        out: The merged folder.
        loss: Its loss.
        chosen: The models in it, in the order in which they were added.
        losses: Loss of each model on its own; empty for a uniform soup.
        trials: (model, loss of the soup with it, whether it was kept), in order.
    """

    out: str
    loss: float
    chosen: list[str]
    losses: dict[str, float]
    trials: list[tuple[str, float, bool]]


def uniform_soup(recipe: Recipe, evaluate: Evaluate) -> Soup:
    """Merge all models of the recipe, and evaluate the result.

    Args:
        recipe: Any recipe; with ``linear`` it is the soup of the paper.
        evaluate: Returns the loss of a model folder.
    """
    merge(recipe)
    loss = _loss(evaluate, recipe.out)
    return Soup(recipe.out, loss, [entry.model for entry in recipe.models], {}, [])


def greedy_soup(recipe: Recipe, evaluate: Evaluate, tolerance: float = 0.0) -> Soup:
    """Add models from the best to the worst, keeping each that does not raise the loss.

    Args:
        recipe: Its models are the candidates; its method merges those that are kept.
        evaluate: Returns the loss of a model folder.
        tolerance: A model is kept if the loss rises by at most this much.

    Raises:
        MergeError: If a loss is not finite, or the output folder is not free.
    """
    if not recipe.out:
        raise MergeError("no output folder; give one in the recipe")
    merge(recipe, dry_run=True)  # what cannot be merged is told before anything is measured
    losses = {entry.model: _loss(evaluate, entry.model) for entry in recipe.models}
    ranked = sorted(recipe.models, key=lambda entry: losses[entry.model])
    chosen, best = ranked[:1], losses[ranked[0].model]
    trials: list[tuple[str, float, bool]] = []
    parent = Path(recipe.out).expanduser().absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    kitchen = Path(tempfile.mkdtemp(prefix=f".{Path(recipe.out).name}.partial-", dir=parent))
    try:
        for entry in ranked[1:]:
            trial = kitchen / "trial"
            merge(_with(recipe, [*chosen, entry], str(trial)))
            loss = _loss(evaluate, str(trial))
            is_kept = loss <= best + tolerance
            trials.append((entry.model, loss, is_kept))
            if is_kept:
                chosen, best = [*chosen, entry], loss
            shutil.rmtree(trial)
    finally:
        shutil.rmtree(kitchen, ignore_errors=True)
    merge(_with(recipe, chosen, recipe.out))
    return Soup(recipe.out, best, [entry.model for entry in chosen], losses, trials)


def _with(recipe: Recipe, models: Sequence[ModelEntry], out: str) -> Recipe:
    """Return the recipe for some of its models; one alone is copied."""
    update: dict[str, object] = {"models": tuple(models), "out": out}
    least = recipe.spec.models[0]
    if len(models) < max(2, least):
        update |= {
            "method": "passthrough",
            "models": (ModelEntry(model=models[0].model),),
            "parameters": {},
            "sparsify": None,
            "combine": None,
        }
    return recipe.model_copy(update=update)


def _loss(evaluate: Evaluate, folder: str) -> float:
    loss = float(evaluate(folder))
    if not math.isfinite(loss):
        raise MergeError(f"the evaluation of {folder} returned {loss}; a soup needs finite losses")
    return loss
