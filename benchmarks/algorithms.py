"""Every trained algorithm on equal terms: the same number of decisions, held-out tasks, CPU time.

    python benchmarks/algorithms.py [--decisions 61440] [--only ppo,sac] [--tasks world-validation]

Each algorithm is trained by `mixgym train` with its preset, in a run folder under --out; its best
agent by validation is scored, beside its frozen twin. Finished runs are kept, and killed ones go
on, so the same command can be repeated. Differences to uniform are paired by task. Select on
``validation``; report ``test`` once.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from support.common import parse

from mixgym.agents.algorithm_presets import PRESETS
from mixgym.envs import storage
from mixgym.envs.curves.tasks.sets import TASK_SETS
from mixgym.trainer.config import RunConfig
from mixgym.trainer.reports.controls import controlled_score
from mixgym.trainer.reports.schedulers import schedulers
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.training.train import train
from mixgym.trainer.training.validation import comparison

SECONDS = "cpu_seconds.json"


def trained(algo: str, arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The run folder of an algorithm, trained, and what its training cost.

    The seconds of a killed training are lost with it; one that was resumed says so.
    """
    folder = arguments.out / f"{algo}-{arguments.seed}"
    config = RunConfig.model_validate(
        {
            "seed": arguments.seed,
            "train": {
                "algo": algo,
                "decisions": arguments.decisions,
                "evaluate_every": max(1, arguments.decisions // 6),
                "save_every": arguments.decisions,
            },
            "run": {"dir": str(folder), "tensorboard": True},
        }
    )
    known = folder / SECONDS
    if known.is_file():
        return folder, storage.read_json(known)
    resumed = (folder / "config.yaml").is_file()
    start = time.process_time()
    train(config, resume=resumed)
    cost = {"seconds": time.process_time() - start, "whole": not resumed}
    storage.write_json(known, cost)
    return folder, cost


def row_of(folder: Path, algo: str, tasks: str) -> dict[str, Any]:
    """Scores of an agent and of its frozen twin, against uniform."""
    found, controls = {}, {}
    for name, one in schedulers([folder, folder / "twin"], ["uniform"]).items():
        label = {str(folder): "agent", str(folder / "twin"): "twin"}.get(name, name)
        drawn = TASK_SETS[tasks]
        found[label], controls[label] = controlled_score(one.predict, one.options, drawn)
    rows = {row["agent"]: row for row in comparison(found, controls=controls)}
    summary = RunFolder.open(folder).read_summary() or {}
    return {
        "algorithm": algo,
        "start": float(found["uniform"].start.mean()),
        "uniform": rows["uniform"]["mean"],
        "twin": rows["twin"]["mean"],
        "best_at_decision": summary.get("best_at_decision"),
        **{k: v for k, v in rows["agent"].items() if k not in ("agent", "tasks")},
    }


def results(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> Any:
    """The table."""
    uniform = number(rows[0]["uniform"], 4)
    return table(
        f"{arguments.decisions:,} decisions each; {arguments.tasks} tasks; uniform {uniform}",
        [
            "algorithm",
            "target mean",
            "worst excess",
            "minus uniform",
            "s.e.",
            "better on",
            "own mean held",
            "backwards",
            "frozen twin",
            "CPU s",
        ],
        [
            [
                row["algorithm"],
                number(row["mean"], 4),
                number(row["worst"], 4),
                number(row["difference"], 4),
                number(row["standard_error"], 4),
                f"{100 * row['better_on']:.0f}%",
                *(f"{row[name]:+.4f}" for name in ("own_mean_held", "backwards")),
                number(row["twin"], 4),
                number(row["seconds"], 0) + ("" if row["whole"] else " (resumed)"),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=61_440)
    parser.add_argument("--only", help="names, A,B,...", type=lambda text: text.split(","))
    parser.add_argument("--tasks", choices=list(TASK_SETS), default="world-validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, decisions=1024, only=["ppo"], out=Path("runs/smoke/algorithms"))
    torch.set_num_threads(1)
    rows = []
    for algo in arguments.only or PRESETS:
        folder, cost = trained(algo, arguments)
        rows.append({**row_of(folder, algo, arguments.tasks), **cost})
    rows.sort(key=lambda row: row["mean"])
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        show(results(rows, arguments))


if __name__ == "__main__":
    main()
