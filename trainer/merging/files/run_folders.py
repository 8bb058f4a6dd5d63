"""Run folders in place of model folders: the model that a run left, and the one it started from."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgym.trainer.merging.errors import MergeError

if TYPE_CHECKING:
    from mixgym.trainer.config import RunConfig

START = "start"
"""Given as the base: the model that the runs began with."""

_CONFIG, _MODEL, _BASE = "config.yaml", "model", "base"
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template*")


def model_in(folder: str) -> str:
    """Return the model that a run left, if the folder is a run's; otherwise the folder itself.

    Raises:
        MergeError: if the run has not left one.
    """
    path = Path(folder).expanduser()
    if (path / _MODEL / "config.json").is_file():
        return str(path / _MODEL)
    if not (path / _CONFIG).is_file():
        return folder
    if (path / "run-0").is_dir():
        raise MergeError(
            f"{folder} is a study of orders; give the runs in it: {folder}/run-0 {folder}/run-1 ..."
        )
    raise MergeError(
        f"{folder} is a run that has left no model; finish it with "
        f"`mixgym finetune {folder} --resume`"
    )


def base_of(base: str | None, models: Sequence[str]) -> str | None:
    """Return the base's folder.

    Args:
        base: a model or run folder; ``start`` for the model that the runs began with; or None.
        models: what is merged, as it was given.

    Raises:
        MergeError: if ``start`` cannot be known, or the runs began with different models.
    """
    if base is None:
        return None
    if base != START or Path(START).is_dir():
        return model_in(base)
    if not models:
        raise MergeError("--base start: name the run folders that it is to be the start of")
    starts = {model: _start_of(Path(model).expanduser()) for model in models}
    (first, wanted), *rest = starts.items()
    for model, start in rest:
        if start != wanted:
            raise MergeError(
                f"--base start: {first} began with {_shown(wanted)} and {model} with "
                f"{_shown(start)}; merge runs that began alike, or name a base folder"
            )
    folder = wanted.get("folder")
    return str(folder) if folder else _built(Path(first).expanduser())


def _start_of(run: Path) -> dict[str, Any]:
    """What tells one start from another: a folder, or all that a preset is made of."""
    if (run.parent / _BASE / "config.json").is_file() and not (run / _CONFIG).is_file():
        return {"folder": run.parent / _BASE}  # a run of a study
    if not (run / _CONFIG).is_file():
        raise MergeError(f"--base start: {run} is not a run folder; name the base's own folder")
    from mixgym.envs.learners.models import smollm2
    from mixgym.envs.learners.models.small_models import PRESETS

    config = _config_of(run)
    name = config.model.name
    if name in PRESETS:
        return {"preset": name, "init_seed": config.model.init_seed}
    folder = smollm2.folder() if name == smollm2.NAME else Path(name).expanduser()
    if not folder.is_dir():
        raise MergeError(
            f"--base start: {run} began with {name}, which is not a folder here; download it and "
            "name its folder"
        )
    return {"folder": folder}


def _shown(start: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in start.items())


def _built(run: Path) -> str:
    """Build the preset that a run began with into the run's folder, once."""
    from mixgym.envs import storage
    from mixgym.envs.learners.models.loading import load_model

    target = run / _BASE
    if not target.is_dir():
        config = _config_of(run)
        with storage.atomic_folder(target) as temporary:
            load_model(config.model, config.data.max_length).save_pretrained(temporary)
            for pattern in _TOKENIZER:
                for file in (run / _MODEL).glob(pattern):
                    shutil.copyfile(file, temporary / file.name)
    return str(target)


def _config_of(run: Path) -> "RunConfig":
    from mixgym.trainer.config import load_config

    return load_config(run / _CONFIG)
