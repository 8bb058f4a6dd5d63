"""One run of a study: trained from checkpoint to checkpoint, measured, and never done twice.

::

    run-0/
      step-12/         the model after 12 steps, with its validation.json
      model/           the model after the last step
      summary.json     places, final losses and validation; written last
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import DivergenceError
from mixgym.envs.interval_plan import Budget
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.learners.causal_lm import OPTIMIZER_FILE, CausalLM
from mixgym.trainer.orders.plane import Batches, positions
from mixgym.trainer.orders.shared_setup import Setting, StudySetup

MODEL, SUMMARY, VALIDATION = "model", "summary.json", "validation.json"


@dataclass(frozen=True)
class RunRecord:
    """What a finished run left.

    Attributes:
        folder: its folder.
        first, last: float64[n], place of each sample in the first and the last epoch.
        losses: float64[n], final loss of each sample, nats per supervised token.
        held_out: float64[m], final loss of each row of the select split.
        validation: (step, select loss) of each checkpoint and of the end.
        test: target-weighted mean loss on the test split.
    """

    folder: Path
    first: FloatArray
    last: FloatArray
    losses: FloatArray
    held_out: FloatArray
    validation: list[tuple[int, float]]
    test: float


def marks(steps: int, checkpoints: int) -> list[int]:
    """Steps after which a model is kept, evenly apart; the last is the end of the run.

    >>> marks(100, 3)
    [25, 50, 75, 100]
    """
    parts = checkpoints + 1
    return sorted({round(steps * part / parts) for part in range(1, parts + 1)} - {0})


def checkpoint(folder: Path, step: int, steps: int) -> Path:
    """Where a run keeps the model of a step."""
    return folder / (MODEL if step == steps else f"step-{step}")


def _finished_run(folder: Path, setup: StudySetup, setting: Setting, run: int) -> RunRecord | None:
    """What the run left, if it is finished."""
    if not (folder / SUMMARY).is_file():
        return None
    found: dict[str, Any] = storage.read_json(folder / SUMMARY)
    batches = setup.batches(setting, run)
    return RunRecord(
        folder,
        positions(batches[0]),
        positions(batches[-1]),
        np.array(found["losses"]),
        np.array(found["held_out"]),
        [(int(step), float(loss)) for step, loss in found["validation"]],
        float(found["test"]),
    )


def train_run(setup: StudySetup, setting: Setting, run: int, folder: Path) -> RunRecord:
    """Train one model in the run's order, or continue it, or read what it left.

    Raises:
        DivergenceError: naming the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    storage.clean(folder)
    done = _finished_run(folder, setup, setting, run)
    if done is not None:
        return done
    learner = setup.learner(setting)
    try:
        _train(setup, learner, setup.batches(setting, run), folder)
        summary = _measured(setup, learner, folder)
    except DivergenceError as error:
        raise DivergenceError(
            f"{folder}: {error}; lower training.learning_rate, in another folder"
        ) from error
    storage.write_json(folder / SUMMARY, summary)
    _drop_optimizers(folder)
    record = _finished_run(folder, setup, setting, run)
    assert record is not None
    return record


def _train(setup: StudySetup, learner: CausalLM, batches: list[Batches], folder: Path) -> None:
    """Train to the last mark; each mark leaves a checkpoint that a killed run goes on from."""
    plane = setup.plane(batches, learner.shape)
    total = setup.steps
    step = _continue(learner, folder, total, setup)
    plane.restore({"next": step})
    for mark in marks(total, setup.config.orders.checkpoints):
        if mark <= step:
            continue
        plan = plane.plan(setup.mixture, Budget(mark - step))
        learner.train(plan, PlainStep(), step / total)
        step = mark
        validation = {"step": step, "select": setup.mean(learner.evaluate("select"))}
        with storage.atomic_folder(checkpoint(folder, step, total)) as temporary:
            learner.save(temporary)
            storage.write_json(temporary / VALIDATION, validation)
        _drop_optimizers(folder, but=checkpoint(folder, step, total))


def _continue(learner: CausalLM, folder: Path, total: int, setup: StudySetup) -> int:
    """Load the newest checkpoint that can be gone on from; return its step, or 0."""
    for mark in reversed(marks(total, setup.config.orders.checkpoints)):
        kept = checkpoint(folder, mark, total)
        if (kept / OPTIMIZER_FILE).is_file():
            learner.load(kept)
            return mark
    return 0


def _drop_optimizers(folder: Path, but: Path | None = None) -> None:
    """Keep the optimiser of the newest checkpoint only: it is twice the model's size."""
    for file in folder.glob(f"*/{OPTIMIZER_FILE}"):
        if file.parent != but:
            file.unlink()


def _measured(setup: StudySetup, learner: CausalLM, folder: Path) -> dict[str, Any]:
    """The summary of a run whose training is over."""
    kept = [
        json.loads((checkpoint(folder, mark, setup.steps) / VALIDATION).read_text())
        for mark in marks(setup.steps, setup.config.orders.checkpoints)
    ]
    return {
        "validation": [[found["step"], found["select"]] for found in kept],
        "test": setup.mean(learner.evaluate("test")),
        "losses": setup.training_losses(learner),
        "held_out": setup.held_out_losses(learner),
    }
