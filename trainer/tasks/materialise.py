"""A real task as a folder: JSONL files, a configuration that runs, and what was drawn.

The same task of the same pool gives the same bytes; a folder that holds them is left as it is::

    TASK/SOURCE/train.jsonl, valid.jsonl, test.jsonl
    TASK/config.yaml    of a run, with a preset as model
    TASK/task.json      what was drawn, and a digest by which the folder is known again
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.rows.row import Row
from mixgym.trainer.config import RunConfig, dump_config
from mixgym.trainer.tasks.changes import Rows, lengthen_prompts, repeat, shuffle_answers, take
from mixgym.trainer.tasks.pool import ROLES, Pool
from mixgym.trainer.tasks.real_tasks import RealTask, TaskSource

CONFIG, TASK = "config.yaml", "task.json"
MAX_LENGTH, PACKS = 256, 4
HELD_OUT_ROWS = 8
JUDGED_TOKENS = 2000
"""Supervised tokens per source in select and test: what judges is not to be noise."""

_LAYOUT = 1  # raise it when other bytes are written for the same task


def materialise(task: RealTask, pool: Pool, folder: Path, *, model: str = "0.1m") -> Path:
    """Write a task, unless it is there.

    Args:
        task: drawn from the pool.
        pool: its rows.
        folder: the task gets a folder of its own name in it.
        model: a preset, in ``config.yaml``.

    Returns:
        The task's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home, digest = folder / task.name, _digest(task, pool)
    if not _is_there(home, digest):
        with storage.atomic_folder(home) as temporary:
            for source, splits in task_rows(task, pool).items():
                _write_source(temporary / source, splits)
            storage.write_json(temporary / TASK, {"digest": digest, "task": asdict(task)})
    text = dump_config(RunConfig.model_validate(task_settings(task, home, model=model)))
    if not (home / CONFIG).is_file() or (home / CONFIG).read_text(encoding="utf-8") != text:
        storage.write_text(home / CONFIG, text)
    return home


def task_settings(task: RealTask, home: Path, *, model: str = "0.1m") -> dict[str, Any]:
    """What a run on the task is configured by; all that is left out keeps its default.

    Args:
        task: what was drawn.
        home: the task's folder.
        model: a preset.
    """
    return {
        "sources": {
            source.name: {"path": str(home.resolve() / source.name), "target": source.target}
            for source in task.sources
        },
        "data": {
            "max_length": MAX_LENGTH,
            "held_out_tokens": task.held_out_tokens,
            "held_out_rows": HELD_OUT_ROWS,
            "judged_tokens": JUDGED_TOKENS,
            "duplicates": "drop",
        },
        "model": {"name": model},
        "training": {
            "steps": task.steps,
            "interval": task.interval,
            "packs": PACKS,
            "learning_rate": task.learning_rate,
        },
        "run": {"dir": f"runs/{task.name}"},
    }


def on_task(config: RunConfig, task: RealTask, home: Path) -> RunConfig:
    """The configuration of a run on a task.

    Args:
        config: what it gives counts, but its sources; the task fills in what it leaves open, such
            as budget, learning rate and held-out sizes.
        task: what was drawn.
        home: the task's folder.
    """
    given = config.model_dump(exclude_unset=True, exclude={"sources"})
    return RunConfig.model_validate(_over(task_settings(task, home), given))


def _over(lower: Any, upper: Any) -> Any:
    """Nested settings, the upper ones before the lower ones."""
    if not (isinstance(lower, dict) and isinstance(upper, dict)):
        return upper
    both = {name: _over(lower[name], upper[name]) for name in lower.keys() & upper.keys()}
    return {**lower, **upper, **both}


def task_rows(task: RealTask, pool: Pool) -> dict[str, dict[str, Rows]]:
    """The rows of a task: source -> role -> rows. No row in train is held out in any source."""
    found = {source.name: _source_rows(task, source, pool) for source in task.sources}
    held = set(pool.held_out)
    for splits in found.values():
        held |= {row.content for role in ROLES[1:] for row in splits[role]}
    for splits in found.values():
        splits["train"] = tuple(row for row in splits["train"] if row.content not in held)
    return found


def _source_rows(task: RealTask, source: TaskSource, pool: Pool) -> dict[str, Rows]:
    splits = pool.sources[source.name].splits
    rng = {role: stream(task.seed, "real rows", source.name, role) for role in ROLES}
    found = {role: tuple(splits[role]) for role in ROLES}
    if source.change == "repeated":
        found["train"] = repeat(splits["train"], source.distinct, source.rows, rng["train"])
        return found
    found["train"] = take(splits["train"], source.rows, rng["train"])
    if source.change == "shuffled":
        return {role: shuffle_answers(rows, rng[role]) for role, rows in found.items()}
    if source.donor is not None:
        donor = pool.sources[source.donor].splits
        return {
            role: lengthen_prompts(rows, donor[role], source.padding, rng[role])
            for role, rows in found.items()
        }
    return found


def _is_there(home: Path, digest: str) -> bool:
    return (home / TASK).is_file() and storage.read_json(home / TASK)["digest"] == digest


def _digest(task: RealTask, pool: Pool) -> str:
    """Of what a task's rows come from: what was drawn, and every file of the pool."""
    stamps = {name: source.stamp for name, source in pool.sources.items()}
    text = storage.json_text({"layout": _LAYOUT, "task": asdict(task), "pool": stamps})
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _write_source(folder: Path, splits: dict[str, Rows]) -> None:
    folder.mkdir()
    for role, rows in splits.items():
        (folder / f"{role}.jsonl").write_text(_lines(rows), encoding="utf-8")


def _lines(rows: Sequence[Row]) -> str:
    return "".join(storage.json_text(_record(row)) + "\n" for row in rows)


def _record(row: Row) -> dict[str, Any]:
    """A row as it is read back: the same turns and tools, muted ones, and further columns."""
    if row.text is not None:
        return {**row.columns, "text": row.text}
    turns = row.turns()
    for index in row.muted:
        turns[index]["weight"] = 0
    tools = {} if row.extras.tools is None else {"tools": row.tools()}
    return {**row.columns, "messages": turns, **tools}
