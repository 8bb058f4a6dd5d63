"""``mixgym tasks``: real tasks as folders, each with a configuration that runs."""

from pathlib import Path
from typing import Any

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.learners.models.small_models import PRESETS
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.tasks.materialise import CONFIG, materialise
from mixgym.trainer.tasks.pool import find_pool
from mixgym.trainer.tasks.real_tasks import RealTask, TaskSource, real_tasks


def tasks_command(
    name: str,
    *,
    pool: Path | None = None,
    limit: int = 8,
    model: str = "0.1m",
    out: Path,
    json_output: bool = False,
) -> dict[str, Any]:
    """Write the first tasks of a set, and print what they are unless JSON is wanted.

    Returns:
        ``tasks``: for each its name, ``config`` (the file) and what was drawn.

    Raises:
        ConfigError: for an unknown set or model, or a pool that cannot be used.
        SourceError: for rows of the pool that cannot be read.
    """
    if model not in PRESETS:
        raise ConfigError(f"--model {model}: no preset; {did_you_mean(model, PRESETS)}")
    found = find_pool(pool)
    drawn = real_tasks(name, found, limit)
    homes = [materialise(task, found, out, model=model) for task in drawn]
    if not json_output:
        show(_table(name, drawn), f"run one: mixgym finetune {homes[0] / CONFIG}")
    return {
        "tasks": [
            {"name": task.name, "config": str(home / CONFIG), "sources": _plain(task)}
            for task, home in zip(drawn, homes, strict=True)
        ]
    }


def _plain(task: RealTask) -> dict[str, dict[str, Any]]:
    return {s.name: {"rows": s.rows, "target": s.target, "change": s.change} for s in task.sources}


def _table(name: str, drawn: list[RealTask]) -> Any:
    rows = [
        [
            task.name,
            ", ".join(map(_shown, task.sources)),
            str(task.steps),
            number(1000 * task.learning_rate, 2),
            str(task.held_out_tokens),
        ]
        for task in drawn
    ]
    columns = ["task", "sources (rows)", "steps", "rate x 1000", "held-out tokens"]
    return table(f"real tasks: {name}", columns, rows)


def _shown(source: TaskSource) -> str:
    """A source with its rows, its target unless that is 1, and what is wrong with it."""
    marks = [str(source.rows)]
    if source.target != 1:
        marks.append(f"target {source.target:g}")
    if source.change != "none":
        marks.append(source.change)
    return f"{source.name} ({', '.join(marks)})"
