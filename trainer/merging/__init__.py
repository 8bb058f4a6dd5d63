"""Post-hoc merging of fine-tuned models: streaming, on CPU, in bounded memory.

``merge(Recipe(...))`` does it; ``MERGE_METHODS`` lists the methods. Importing this package loads
neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.methods.catalogue import MERGE_METHODS
from mixgym.trainer.merging.recipe import ModelEntry, Recipe
from mixgym.trainer.merging.report import MergeReport

if TYPE_CHECKING:
    from collections.abc import Callable


def merge(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    progress: "Callable[[int, int], None] | None" = None,
) -> MergeReport:
    """Merge models into a new folder; see :func:`mixgym.trainer.merging.engine.merge`."""
    from mixgym.trainer.merging.engine import run

    return run(recipe, dry_run=dry_run, progress=progress)


def merge_command(*args: Any, **kwargs: Any) -> MergeReport:
    """Merge as the command line asks; see :func:`mixgym.trainer.merging.command.merge_command`."""
    from mixgym.trainer.merging import command

    return command.merge_command(*args, **kwargs)


__all__ = [
    "MERGE_METHODS",
    "MergeError",
    "MergeReport",
    "ModelEntry",
    "Recipe",
    "merge",
    "merge_command",
]
