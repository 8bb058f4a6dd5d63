"""``mixgym soup``: model soups driven by mixgym's own held-out loss."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import ConfigError
from mixgym.trainer.merging.errors import MergeMisuseError
from mixgym.trainer.merging.files.run_folders import base_of, model_in
from mixgym.trainer.merging.held_out import HeldOutLoss
from mixgym.trainer.merging.recipe import Recipe
from mixgym.trainer.merging.soup import Soup, greedy_soup, uniform_soup

if TYPE_CHECKING:
    from mixgym.trainer.config import RunConfig

KINDS = {"greedy": greedy_soup, "uniform": uniform_soup}


def soup_command(
    words: Sequence[str],
    *,
    out: str | None,
    kind: str = "greedy",
    split: str = "select",
    method: str = "linear",
    base: str | None = None,
    json_output: bool = False,
) -> dict[str, Any]:
    """Make a soup as the command line asks for it, and print its table unless JSON is wanted.

    Args:
        words: at most one configuration file, model or run folders, and ``key.sub=value``
            overrides of the configuration.
        out: the folder to write.
        kind: ``greedy`` or ``uniform``.
        split: held-out rows that models are judged by, ``select`` or ``reward``.
        method: how the chosen models are merged.
        base: where the method wants one; see :func:`.run_folders.base_of`.
        json_output: print nothing.

    Returns:
        The soup as plain data.

    Raises:
        ConfigError: if the configuration, the kind or the split will not do.
        MergeError: if the models cannot be merged or measured.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind {kind}: choose {' or '.join(KINDS)}")
    overrides = [word for word in words if "=" in word]
    files = [word for word in words if "=" not in word and Path(word).is_file()]
    given = [word for word in words if "=" not in word and word not in files]
    if len(given) < 2:
        raise MergeMisuseError(f"a soup needs at least 2 model folders, {len(given)} given")
    if not out:
        raise MergeMisuseError("no output folder; give one with --out")
    models = [model_in(word) for word in given]
    config = _config(files, given, overrides)
    recipe = Recipe.parse(
        {"method": method, "models": models, "base": base_of(base, given), "out": out or ""}
    )
    from mixgym.trainer.finetuning.finetune import quiet_transformers

    quiet_transformers()
    evaluate = HeldOutLoss(config, models[0], split)
    soup = KINDS[kind](recipe, evaluate)
    losses = soup.losses or {model: evaluate(model) for model in models}
    answer = {**asdict(soup), "losses": losses, "kind": kind, "method": method, "split": split}
    if not json_output:
        _show(soup, losses, answer)
    return answer


def _config(files: Sequence[str], models: Sequence[str], overrides: Sequence[str]) -> "RunConfig":
    """The configuration given, or that of the first model that is a run's."""
    from mixgym.trainer.config import load_config

    if len(files) > 1:
        raise ConfigError(f"command line: {', '.join(files)}: one configuration file is read")
    owned = [Path(model) / "config.yaml" for model in models]
    owned += [Path(model).parent / "config.yaml" for model in models]  # a run of a study
    found = [Path(file) for file in files] or [path for path in owned if path.is_file()]
    if not found:
        raise ConfigError(
            "command line: none of the models is a run folder, whose config.yaml would name the "
            "held-out rows; give a configuration file"
        )
    return load_config(found[0], overrides)


def _show(soup: Soup, losses: dict[str, float], answer: dict[str, Any]) -> None:
    from mixgym.trainer.runs.tables import number, show, table

    rows = [
        [model, number(loss, 4), "yes" if model in soup.chosen else "no"]
        for model, loss in sorted(losses.items(), key=lambda item: item[1])
    ]
    rows.append([f"soup: {soup.out}", number(soup.loss, 4), f"{len(soup.chosen)} models"])
    title = f"{answer['kind']} soup ({answer['method']}), NLL on the {answer['split']} split"
    show(table(title, ["model", "NLL", "in it"], rows))
