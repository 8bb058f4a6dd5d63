"""``mixgym compare``: schedulers on equal terms, paired by seed, or by real task and seed.

The budget is compute: every run trains as many steps, of as many tokens. What its scheduler spent
on probes and on measuring beyond the common evaluation stands beside it. Every run keeps its
folder, so that finished ones are not run again; the CSV holds a row per run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.trainer.comparing.entries import (
    BUDGETS,
    SUPERVISED,
    TOKENS,
    Entry,
    TaskChoice,
    agent_options,
    entries,
    labels_of,
)
from mixgym.trainer.comparing.rows import SPLITS, rows_of, write_csv
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.finetuning.finetune import quiet_transformers
from mixgym.trainer.finetuning.job import finetune_job
from mixgym.trainer.reports.leaderboard import leaderboard, leaderboard_table
from mixgym.trainer.runs.jobs import report_progress, run_jobs, values_of
from mixgym.trainer.runs.tables import show

_ADVICE = "correct what is wrong and run the same command again: finished runs are kept"


def compare_command(
    config: RunConfig,
    *,
    agents: Sequence[str],
    seeds: int,
    budget: str = TOKENS,
    tasks: TaskChoice | None = None,
    split: str = "test",
    processes: int = 1,
    json_output: bool = False,
) -> dict[str, Any]:
    """Compare, and print the leaderboard unless JSON is wanted."""
    quiet_transformers()
    report = compare(
        config,
        agents=agents,
        seeds=seeds,
        budget=budget,
        tasks=tasks,
        split=split,
        processes=processes,
        progress=True,
    )
    if not json_output:
        show(leaderboard_table(report), f"every run: {report['csv']}")
    return report


def compare(
    config: RunConfig,
    *,
    agents: Sequence[str],
    seeds: int,
    budget: str = TOKENS,
    tasks: TaskChoice | None = None,
    split: str = "test",
    processes: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Run every agent at every seed; finished runs in the folder are not run again.

    Args:
        config: of each run; ``run.dir`` holds them all.
        agents: names of algorithms or folders of training runs; the first is the reference.
        seeds: how many, counted from ``config.seed``.
        budget: what all runs have as much of: tokens read (equal compute), or supervised tokens,
            which are set from the steps under the first agent if the configuration has none.
        tasks: real tasks to run on instead of the configuration's sources.
        split: that judges: test, or select while agents are still being chosen.
        processes: runs at a time.
        progress: show bars, or a line for each run that ended.

    Returns:
        ``rows`` (a dict per run), ``leaderboard`` (a dict per agent), ``csv`` (the path), and what
        was compared: ``budget``, its amount, ``split`` and ``tasks``.

    Raises:
        ConfigError: for fewer than two agents, agents named twice, no seeds, or an unknown word.
        RunError: naming runs that failed; the others are kept.
    """
    labels = labels_of(agents)
    for option, word, known in (("budget", budget, BUDGETS), ("split", split, SPLITS)):
        if word not in known:
            raise ConfigError(f"--{option} {word}: unknown; {did_you_mean(word, known)}")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: give at least one (three show a spread)")
    for agent in agents:
        find_agent(agent_options(config, agent))  # a mistake shows before anything is trained
    runs = entries(config, labels, seeds, budget, tasks)
    rows = rows_of(runs, _summaries(runs, processes, progress), next(iter(labels)), split)
    folder = Path(config.run.dir)
    write_csv(folder / "runs.csv", rows)
    report = {
        "budget": budget,
        **_amount(runs[0], budget, tasks),
        "split": split,
        "tasks": None if tasks is None else tasks.name,
        "rows": rows,
        "leaderboard": leaderboard(rows, list(labels)),
        "csv": str(folder / "runs.csv"),
    }
    storage.write_json(folder / "compare.json", report)
    return report


def _summaries(runs: Sequence[Entry], processes: int, progress: bool) -> list[dict[str, Any]]:
    """Do the runs, and return what each ended with."""
    bars = progress and processes == 1
    jobs = [finetune_job(run.name, run.config, progress=bars) for run in runs]
    told = report_progress if progress else None
    return values_of(run_jobs(jobs, processes=processes, progress=told), _ADVICE)


def _amount(run: Entry, budget: str, tasks: TaskChoice | None) -> dict[str, int | None]:
    """How much each run has of the budget; None where every task has its own."""
    training, data = run.config.training, run.config.data
    room = training.steps * training.packs * data.max_length  # of the steps; rows leave some empty
    amounts = {
        TOKENS: room if training.tokens is None else training.tokens,
        SUPERVISED: training.supervised_tokens,
    }
    one = tasks is None
    return {f"budget_{n}": a if one and n == budget else None for n, a in amounts.items()}
