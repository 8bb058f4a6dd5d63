"""Do fast worlds rank schedulers as real runs do? Rank correlations, and who is misplaced.

    mixgym compare CONFIG --tasks real-test --agents uniform,proportional,... (writes runs.csv)
    python benchmarks/transfer.py RUNS.csv [--sets test,world-test] [--worlds FILE ...]
        [--agents RUN ...] [--json]

RUNS.csv holds real runs at equal compute, a row per scheduler and task. Every scheduler in it that
acts without configuration, and every trained agent given by its folder, drives one episode of each
task of the sets of the fast world: ``validation`` and ``test`` of the wide prior, ``world-...``
around fitted worlds, those of the package or those of ``--worlds``. Rankings are by mean paired
difference to uniform.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from support.common import parse

from mixgym.envs.curves.tasks.sets import TASK_SETS, WORLD, Tasks, named_tasks
from mixgym.trainer.config import RunConfig
from mixgym.trainer.reports.compare import compare
from mixgym.trainer.reports.schedulers import schedulers
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.training.validation import score
from mixgym.trainer.worlds.transfer import Transfer, compared, read_scores

REFERENCE = "uniform"
NAMES = (
    "uniform",
    "proportional",
    "temperature",
    "cost_power",
    "exp3",
    "ucb",
    "ado",
    "aioli",
    "doge",
    "hbo",
    "closed_form",
)
"""Schedulers that a table of real runs should hold, and trained agents."""


def in_the_fast_world(
    agents: list[Path], only: list[str], tasks: Tasks
) -> dict[str, dict[str, float]]:
    """Scheduler -> task -> NLL at the end; trained agents by the name of their folder."""
    found = {}
    for name, one in schedulers(agents, only).items():
        ends = score(one.predict, one.options, tasks).mean
        label = Path(name).name if name in map(str, agents) else name
        found[label] = {str(i): float(end) for i, end in enumerate(ends)}
    return found


def shown(found: Transfer, tasks: str, count: int) -> Any:
    """The two rankings side by side, the best in real runs first."""
    title = (
        f"{count} real tasks against {tasks}: rank correlation {number(found.correlation, 2)} "
        f"({number(found.low, 2)} to {number(found.high, 2)}), ceiling {number(found.ceiling, 2)}"
    )
    heads = ["schedule", "real minus uniform", "s.e.", "world minus uniform"]
    heads += ["rank, real", "rank, world", "share of disagreement"]
    return table(
        title,
        heads,
        [
            [
                name,
                f"{found.real[i]:+.4f}",
                number(found.real_error[i], 4),
                f"{found.world[i]:+.4f}",
                number(found.real_rank[i] + 1, 1),
                number(found.world_rank[i] + 1, 1),
                f"{100 * found.share[i]:.0f}%",
            ]
            for i, name in enumerate(found.agents)
        ],
    )


def few_real_runs(folder: Path) -> Path:
    """A table of runs that are too short to say anything: three rules, two seeds."""
    config = RunConfig.model_validate(
        {
            "data": {"max_length": 128, "held_out_rows": 15},
            "model": {"name": "0.1m"},
            "training": {"steps": 4, "interval": 2, "packs": 2},
            "run": {"dir": str(folder), "tensorboard": False},
        }
    )
    return Path(compare(config, agents=["uniform", "proportional", "cost_power"], seeds=2)["csv"])


def main() -> None:
    """Print a table per set of tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, nargs="?", metavar="RUNS.csv")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["test", "world-test"])
    parser.add_argument("--worlds", nargs="*", default=[], metavar="FILE", help="fitted worlds")
    parser.add_argument("--agents", type=Path, nargs="*", default=[], metavar="RUN")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, sets=["validation"])
    unknown = [name for name in arguments.sets if name not in TASK_SETS]
    if unknown:
        parser.error(f"--sets {unknown[0]}: unknown (known: {', '.join(TASK_SETS)})")
    if arguments.real is None and not arguments.smoke:
        parser.error(f"give a table of real runs of {', '.join(NAMES)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        real = read_scores(arguments.real or few_real_runs(Path(folder)))
    only = [name for name in NAMES if name in real]
    found = {}
    for name in arguments.sets:
        tasks = named_tasks(name, arguments.worlds if name.startswith(WORLD) else ())
        fast = in_the_fast_world(arguments.agents, only, tasks)
        found[name] = compared(real, fast, REFERENCE)
    count = len(set.intersection(*(set(scores) for scores in real.values())))
    if arguments.json:
        plain = {tasks: asdict(one) for tasks, one in found.items()}
        print(json.dumps(plain, indent=2, default=lambda array: array.tolist()))
    else:
        show(*(shown(one, tasks, count) for tasks, one in found.items()))


if __name__ == "__main__":
    main()
