"""A trained agent beside references on the frozen tasks of the fast world.

    python benchmarks/schedulers.py RUN [--tasks test] [--json]

RUN is the folder of a ``mixgym train`` run. Every schedule meets the same tasks with the same
measurement noise; differences to uniform are paired by task. Select on ``validation``; report
``test`` once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixgym.agents.mixers.bandits import Exp3
from mixgym.agents.mixers.curricula import EasyToHard
from mixgym.agents.policies.export import ExportedPolicy
from mixgym.agents.rules import Proportional, Temperature, Uniform
from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA
from mixgym.trainer.runs import RunFolder
from mixgym.trainer.tables import show
from mixgym.trainer.validation import TaskScores, comparison, score, task_table
from mixgym.trainer.worlds import agent_options


def scores(run: RunFolder, tasks: str) -> dict[str, TaskScores]:
    """Scores of every schedule, by name."""
    options = agent_options(run.config.environment, padded=False)
    rules_see = options.model_copy(update={"action": "weights", "observation": "dict"})
    found = {"uniform": score(Uniform().predict, rules_see, tasks)}
    for label, name in (("agent", "agent"), ("frozen twin", "twin")):
        policy = ExportedPolicy(run.path / name, shape=(MAX_SOURCES, MAX_STRATA))
        found[label] = score(policy.predict, options, tasks)
    for label, rule in {
        "proportional": Proportional(),
        "temperature 3": Temperature(),
        "exp3": Exp3(),
        "easy_to_hard": EasyToHard(),
    }.items():
        found[label] = score(rule.predict, rules_see, tasks)
    return found


def against(found: dict[str, TaskScores], other: str) -> dict[str, Any]:
    """The agent's paired differences to another schedule: target mean, and worst excess."""
    row: dict[str, Any] = {"agent minus": other}
    for name in ("mean", "worst"):
        gap = getattr(found["agent"], name) - getattr(found[other], name)
        row[name] = float(gap.mean())
        row[f"{name}_standard_error"] = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks", choices=["validation", "test"], default="test")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = scores(RunFolder.open(arguments.run), arguments.tasks)
    rows = comparison(found)
    gaps = [against(found, name) for name in found if name not in ("agent", "uniform")]
    if arguments.json:
        print(json.dumps({"rows": rows, "agent_against": gaps}, indent=2))
        return
    show(
        task_table(rows, arguments.tasks),
        *(
            f"agent minus {gap['agent minus']}: target mean {gap['mean']:+.4f} "
            f"(s.e. {gap['mean_standard_error']:.4f}), worst excess {gap['worst']:+.4f} "
            f"(s.e. {gap['worst_standard_error']:.4f})"
            for gap in gaps
        ),
    )


if __name__ == "__main__":
    main()
