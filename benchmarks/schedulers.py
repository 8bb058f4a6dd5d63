"""Every registered rule, and trained agents, on the frozen tasks of the fast world.

    python benchmarks/schedulers.py [RUN ...] [--tasks world-test] [--only exp3,doge]
        [--csv F] [--json]

RUN is the folder of a ``mixgym train`` run. Every schedule meets the same tasks with the same
measurement noise; differences to uniform are paired by task. Select on ``validation``; report
``test`` once.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.common import parse

from mixgym.envs.curves.tasks.sets import TASK_SETS
from mixgym.trainer.reports.controls import controlled_score
from mixgym.trainer.reports.schedulers import Scheduler, schedulers
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.tables import show
from mixgym.trainer.training.validation import TaskScores, comparison, task_table


def needs(one: Scheduler) -> str:
    """What a schedule measures besides the losses that everybody sees."""
    probes = [f"{name} every {period}" for name, period in one.probes.items()]
    return ", ".join([*probes, *(["reference"] if one.reference else [])]) or "nothing"


def with_twins(runs: list[Path]) -> list[Path]:
    """Every run, and its frozen twin: the same policy before training."""
    found = [[RunFolder.open(run).path, run / "twin"] for run in runs]
    return [folder for pair in found for folder in pair if folder.is_dir()]


def against(found: dict[str, TaskScores], agent: str, other: str) -> dict[str, Any]:
    """An agent's paired differences to another schedule: target mean, and worst excess."""
    row: dict[str, Any] = {"agent": agent, "minus": other}
    for name in ("mean", "worst"):
        gap = getattr(found[agent], name) - getattr(found[other], name)
        row[name] = float(gap.mean())
        row[f"{name}_standard_error"] = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    return row


def write_csv(path: Path, found: dict[str, TaskScores]) -> None:
    """A row per schedule and task."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["agent", "task", "mean", "worst", "start"])
        for name, one in found.items():
            for task, values in enumerate(zip(one.mean, one.worst, one.start, strict=True)):
                rows.writerow([name, task, *(float(value) for value in values)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--tasks", choices=list(TASK_SETS), default="world-test")
    parser.add_argument("--only", help="names, A,B,...", type=lambda text: text.split(","))
    parser.add_argument("--csv", type=Path, help="a row per schedule and task")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, tasks="validation", only=["uniform", "exp3"])
    torch.set_num_threads(1)
    found, seconds, extras, controls = {}, {}, {}, {}
    for name, one in schedulers(with_twins(arguments.runs), arguments.only).items():
        start = time.process_time()
        tasks = TASK_SETS[arguments.tasks]
        found[name], controls[name] = controlled_score(one.predict, one.options, tasks)
        seconds[name], extras[name] = time.process_time() - start, needs(one)
    rows = comparison(found, controls=controls)
    for row in rows:
        row |= {"needs": extras[row["agent"]], "cpu_seconds": seconds[row["agent"]]}
    gaps = [
        against(found, str(run), other)
        for run in arguments.runs
        for other in found
        if other not in (str(run), "uniform")
    ]
    if arguments.csv:
        write_csv(arguments.csv, found)
    if arguments.json:
        print(json.dumps({"rows": rows, "agent_against": gaps}, indent=2))
        return
    lines = [f"{row['agent']}: {row['cpu_seconds']:.1f} s, needs {row['needs']}" for row in rows]
    lines += [
        f"{gap['agent']} minus {gap['minus']}: target mean {gap['mean']:+.4f} "
        f"(s.e. {gap['mean_standard_error']:.4f}), worst excess {gap['worst']:+.4f} "
        f"(s.e. {gap['worst_standard_error']:.4f})"
        for gap in gaps
    ]
    show(task_table(rows, arguments.tasks), *lines)


if __name__ == "__main__":
    main()
