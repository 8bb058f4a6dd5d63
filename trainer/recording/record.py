"""``mixgym record``: short real runs under random mixtures, and what was drawn for each.

``record.json`` in the folder of all runs says what was drawn and how each run ended; everything
else stands in the run folders (``world.json``, ``decisions.jsonl``). Models and checkpoints are not
kept: a library is for curves. Finished runs are not run again, and a longer library begins with
the shorter one.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.job import finetune_job
from mixgym.trainer.recording.draws import RunDraw, check_vary, configured, draw_run
from mixgym.trainer.runs.jobs import Outcome, Progress, report_progress, run_jobs, values_of
from mixgym.trainer.runs.tables import number, show, table

RECORD = "record.json"
_ADVICE = "correct what is wrong and run the same command again: finished runs are kept"


def record_command(
    config: RunConfig,
    *,
    runs: int,
    processes: int = 1,
    vary: Collection[str] = (),
    json_output: bool = False,
) -> dict[str, Any]:
    """Record, and print a table of the runs unless JSON is wanted."""
    report = record(config, runs=runs, processes=processes, vary=vary, progress=report_progress)
    if not json_output:
        show(record_table(report), f"what was drawn: {Path(config.run.dir) / RECORD}")
    return report


def record(
    config: RunConfig,
    *,
    runs: int,
    processes: int = 1,
    vary: Collection[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Record a library of runs.

    Args:
        config: of each run; ``run.dir`` holds them all, ``seed`` draws, and is every run's own, so
            that all measure the same rows. The agent is not used.
        runs: how many, in all.
        processes: at most so many at a time.
        vary: of :data:`mixgym.trainer.recording.draws.VARY`.
        progress: called as runs end.

    Returns:
        ``vary`` and ``runs``: what was drawn for each, ``status``, and losses on the reward split.

    Raises:
        ConfigError: for no runs, or what cannot vary.
        RunError: naming runs that failed; the others are kept.
    """
    if runs < 1:
        raise ConfigError(f"--runs {runs}: give at least one")
    check_vary(vary)
    draws = [draw_run(config.seed, index, vary) for index in range(runs)]
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [finetune_job(draw.name, configured(config, draw)) for draw in draws]
    _write(folder, vary, draws, [None] * runs)
    outcomes = run_jobs(jobs, processes=processes, progress=progress)
    report = _write(folder, vary, draws, outcomes)
    values_of(outcomes, _ADVICE)
    return report


def _write(
    folder: Path,
    vary: Collection[str],
    draws: Sequence[RunDraw],
    outcomes: Sequence[Outcome | None],
) -> dict[str, Any]:
    """Write ``record.json``; returns what stands in it."""
    rows = [{**asdict(d), **_ending(o)} for d, o in zip(draws, outcomes, strict=True)]
    report = {"vary": sorted(vary), "runs": rows}
    storage.write_json(folder / RECORD, report)
    return report


def _ending(outcome: Outcome | None) -> dict[str, Any]:
    """How a run ended, as far as is known."""
    if outcome is None:
        return {"status": "waiting"}
    if outcome.error is not None:
        return {"status": "failed", "failure": outcome.error}
    summary = outcome.value
    losses = {name: row["reward_after"] for name, row in summary["sources"].items()}
    return {
        "status": summary["status"],
        "steps": summary["steps"],
        "decisions": summary["decisions"],
        "tokens": summary["cost"]["train_tokens"],
        "return": summary.get("return"),
        "reward_after": losses,
    }


def record_table(report: dict[str, Any]) -> Any:
    """The runs for the terminal."""
    rows = [
        [
            row["name"],
            row["kind"],
            row["centre"],
            number(row["concentration"], 1),
            str(len(row["at"])),
            number(row["rate_factor"], 2),
            number(row.get("steps"), 0),
            number(row.get("tokens"), 0),
            number(row.get("return"), 4),
            row["status"],
        ]
        for row in report["runs"]
    ]
    columns = [
        "run",
        "kind",
        "centre",
        "concentration",
        "changes",
        "rate x",
        "steps",
        "tokens read",
    ]
    return table("recorded runs", [*columns, "fall of the held-out mean (nats)", "status"], rows)
