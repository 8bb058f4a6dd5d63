"""Merging the models of a study at each checkpoint, and measuring what comes out.

Each measurement is a file of its own, so that a killed study does not measure twice::

    merged/
      linear/step-12.json     losses of the merge of all runs after 12 steps
      linear/model/           the merge of the final models
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.trainer.merging import MergeReport, Recipe, merge
from mixgym.trainer.merging.held_out import load_weights
from mixgym.trainer.orders.runs import MODEL, RunRecord, checkpoint, marks
from mixgym.trainer.orders.shared_setup import StudySetup

BASE = "base"
MERGES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "select": {"method": "select", "parameters": {"resample": 0}},
    "select, resampled": {"method": "select", "parameters": {"resample": "all"}},
}
"""Name -> what a recipe needs besides models, base and folders."""

FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclass(frozen=True)
class Merged:
    """One merge, measured.

    Attributes:
        name: of :data:`MERGES`.
        step: optimiser steps of the models that went in.
        precision: in which they were stored.
        select: target-weighted mean loss on the select split.
        test: the same on the test split; final models only.
        zero_share: mean share of a model's elements that equal the base; None if not measured.
        losses: final loss of each training sample; final float32 models only.
    """

    name: str
    step: int
    precision: str
    select: float
    test: float | None = None
    zero_share: float | None = None
    losses: list[float] | None = None


def merge_all(
    setup: StudySetup, learner: CausalLM, folder: Path, runs: Sequence[RunRecord]
) -> list[Merged]:
    """Merge and measure the runs at every mark, and their final models in bfloat16 as well.

    Args:
        setup: of the study.
        learner: takes the merged weights one after the other.
        folder: of the study; holds the base model.
        runs: finished ones, of the main set.
    """
    found = []
    final = marks(setup.steps, setup.config.orders.checkpoints)[-1]
    for step in marks(setup.steps, setup.config.orders.checkpoints):
        models = [checkpoint(run.folder, step, setup.steps) for run in runs]
        for name in MERGES:
            found.append(_merged(setup, learner, folder, name, models, step, FLOAT32))
    rounded = [_rounded(run.folder) for run in runs]
    for name in MERGES:
        found.append(_merged(setup, learner, folder, name, rounded, final, BFLOAT16))
    return found


def rounded_losses(setup: StudySetup, learner: CausalLM, run: RunRecord) -> dict[str, float]:
    """Select and test loss of a run's final model, stored in bfloat16."""
    file = run.folder / f"{BFLOAT16}.json"
    if not file.is_file():
        load_weights(learner, _rounded(run.folder))
        losses = {split: setup.mean(learner.evaluate(split)) for split in ("select", "test")}
        storage.write_json(file, losses)
    found: dict[str, float] = storage.read_json(file)
    return found


def _rounded(run: Path) -> Path:
    """A copy of a run's final model in bfloat16, made when it is missing."""
    target = run / f"{MODEL}-{BFLOAT16}"
    if not target.is_dir():
        data = {"method": "passthrough", "models": [str(run / MODEL)], "out_dtype": BFLOAT16}
        merge(Recipe.parse({**data, "out": str(target)}))
    return target


def _merged(
    setup: StudySetup,
    learner: CausalLM,
    folder: Path,
    name: str,
    models: Sequence[Path],
    step: int,
    precision: str,
) -> Merged:
    """Merge and measure, or read what an earlier call measured for as many models."""
    words = name.replace(", ", "-") + ("" if precision == FLOAT32 else f"-{precision}")
    place = folder / "merged" / words
    place.mkdir(parents=True, exist_ok=True)
    storage.clean(place)
    file = place / f"step-{step}.json"
    if file.is_file():
        kept = storage.read_json(file)
        if kept.pop("models") == len(models):
            return Merged(**kept)
    is_final = step == setup.steps
    out = place / (MODEL if is_final else f"step-{step}")
    report = _merge(setup, folder, name, models, out)
    load_weights(learner, out)
    zeros = report.zero_share
    measured: dict[str, Any] = {
        "name": name,
        "step": step,
        "precision": precision,
        "select": setup.mean(learner.evaluate("select")),
        "test": setup.mean(learner.evaluate("test")) if is_final else None,
        "zero_share": sum(zeros) / len(zeros) if zeros else None,
        "losses": setup.training_losses(learner).tolist()
        if is_final and precision == FLOAT32
        else None,
    }
    if not is_final:
        shutil.rmtree(out)
    storage.write_json(file, {**measured, "models": len(models)})
    return Merged(**measured)


def _merge(
    setup: StudySetup, folder: Path, name: str, models: Sequence[Path], out: Path
) -> MergeReport:
    return merge(
        Recipe.parse(
            {
                **MERGES[name],
                "models": [str(model) for model in models],
                "base": str(folder / BASE),
                "statistics": True,
                "seed": setup.config.seed,
                "overwrite": True,
                "out": str(out),
            }
        )
    )
