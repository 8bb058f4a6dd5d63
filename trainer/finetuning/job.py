"""A fine-tuning run as one of many: finished ones are kept, killed ones resumed.

A process that does several in turn encodes rows that they share once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixgym.envs.errors import DivergenceError
from mixgym.envs.learners.corpus import keep_last_corpus
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune, quiet_transformers
from mixgym.trainer.runs.folder import CONFIG, RunFolder
from mixgym.trainer.runs.jobs import Job

DIVERGED = "diverged"


def finetune_job(name: str, config: RunConfig, *, progress: bool = False) -> Job:
    """The run of a configuration, to be done by :func:`mixgym.trainer.runs.jobs.run_jobs`.

    Args:
        name: what it is called in reports.
        config: of the run; ``run.dir`` is its folder.
        progress: show a bar.
    """
    arguments = {"config": config.model_dump(), "progress": progress}
    return Job(name, f"{__name__}:run_job", arguments)


def run_job(config: Mapping[str, Any], progress: bool = False) -> dict[str, Any]:
    """Do the run, or what is left of it.

    Args:
        config: of the run, as plain data.
        progress: show a bar.

    Returns:
        The summary. A run that diverged has one as well: how far it came, and no losses.
    """
    quiet_transformers()
    keep_last_corpus()
    own = RunConfig.model_validate(config)
    folder = Path(own.run.dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    resume = (folder / CONFIG).is_file()
    if resume:
        summary = RunFolder.open(folder).read_summary()
        if summary is not None and summary["status"] == DIVERGED:
            return diverged(folder, summary["failure"])  # it would do so again
    try:
        return finetune(own, resume=resume, progress=progress)
    except DivergenceError as error:
        return diverged(folder, str(error))


def diverged(folder: Path, reason: str) -> dict[str, Any]:
    """What a diverged run has to tell: how far it came. It has no test loss."""
    records = RunFolder.open(folder).read_decisions()
    last: dict[str, Any] = records[-1] if records else {}
    return {
        "status": DIVERGED,
        "failure": reason,
        "decisions": len(records),
        "steps": last.get("steps", 0),
        "supervised_tokens": last.get("supervised_tokens", 0),
        "cost": last.get("cost", {"train_tokens": 0}),
        "test": {"mean_after": None, "worst_after": None},
        "select": {"mean_after": None, "worst_after": None},
        "sources": {},
    }
