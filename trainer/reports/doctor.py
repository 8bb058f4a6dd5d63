"""``mixgym doctor``: is an agent what it seems? Plain answers, and where they come from.

A training is asked whether its agent learnt anything: whether the distribution moved away from the
frozen twin's, whether actions depend on observations, whether it schedules better than the twin,
whether its order is worth anything beside its own mean mixture, whether sources are paid
differently, whether logits are at their bounds, and whether the value function is better than a
constant. A fine-tuning run is asked what its records can answer.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixgym.agents.policies.export import CARD
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import load_config
from mixgym.trainer.reports.diagnostics import examine_finetuning, examine_training
from mixgym.trainer.reports.findings import FAILED, Finding
from mixgym.trainer.runs.folder import CONFIG, DECISIONS, RunFolder
from mixgym.trainer.runs.tables import show
from mixgym.trainer.training.supervisor import AGENT, TWIN


def doctor_command(run: Path, *, json_output: bool = False) -> dict[str, Any]:
    """Examine a run, and print what was found unless JSON is wanted.

    Returns:
        ``{"run", "kind", "healthy", "findings"}``.

    Raises:
        MixgymError: if the folder holds nothing that can be examined.
    """
    folder = _reading(run)
    kind = "training" if (folder.path / TWIN / CARD).is_file() else "fine-tuning"
    found = examine(folder)
    if not json_output:
        show(f"{kind} in {run}", *(f"{f.status:<8} {f.check:<15} {f.sentence}" for f in found))
    return {
        "run": str(run),
        "kind": kind,
        "healthy": all(f.status != FAILED for f in found),
        "findings": [asdict(f) for f in found],
    }


def _reading(path: Path) -> RunFolder:
    """The run in a folder, for reading only: it may be under way, and is not tidied.

    Raises:
        ConfigError: if there is none.
    """
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path}: holds no run (no {CONFIG}); give the folder of one")
    return RunFolder(path, load_config(path / CONFIG))


def examine(run: RunFolder) -> list[Finding]:
    """All findings on a training or a fine-tuning run.

    Raises:
        ConfigError: if there is neither an agent nor a decision in it.
    """
    if (run.path / AGENT / CARD).is_file():
        return examine_training(run)
    if (run.path / DECISIONS).is_file():
        return examine_finetuning(run)
    raise ConfigError(
        f"{run.path}: has neither an agent nor decisions yet; give a run of `mixgym train` that "
        "was validated once, or a run of `mixgym finetune`"
    )
