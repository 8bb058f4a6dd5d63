"""What trains the two levels best: the ways of ``mixgym train --level`` at equal decisions.

    python benchmarks/levels.py --out FOLDER [--seeds 3] [--levels joint,together] [KEY=VALUE ...]

Every way is trained with the same seeds for the same number of decisions of the environment, judged
once, at the end, on the validation tasks of the fast world, and compared with uniform, paired by
task. Standard errors are over tasks, of the mean over seeds; the spread is over seeds. Finished
runs are kept: the same command goes on.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.common import parse

from mixgym.agents.rules import Uniform
from mixgym.envs import storage
from mixgym.trainer.config import load_config
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.training.learner_group import LEVELS
from mixgym.trainer.training.supervisor import score_agent, score_rule
from mixgym.trainer.training.train import train

COST = "cpu_seconds.json"
SMOKE = ["train.decisions=1024", "train.environments=16"]


def run(folder: Path, level: str, seed: int, overrides: list[str]) -> tuple[Any, float]:
    """Train one agent, if it is not there yet; its scores, and the CPU seconds it took."""
    never = "train.evaluate_every=1000000000"  # the last agent counts, not the best of several
    own = [f"train.level={level}", f"seed={seed}", f"run.dir={json.dumps(str(folder))}", never]
    config = load_config(None, [*own, *overrides])
    if not (folder / COST).is_file():
        start = time.process_time()
        train(config, resume=(folder / "config.yaml").is_file())
        storage.write_json(folder / COST, {"seconds": time.process_time() - start})
    seconds = json.loads((folder / COST).read_text())["seconds"]
    return score_agent(folder / "agent", config), float(seconds)


def row(level: str, gaps: list[Any], seconds: list[float]) -> dict[str, Any]:
    """Mean difference to uniform over tasks and seeds, with its error and its spread."""
    stacked = np.stack(gaps)
    mean = stacked.mean(0)
    return {
        "level": level,
        "difference": float(mean.mean()),
        "standard_error": float(mean.std(ddof=1) / np.sqrt(len(mean))),
        "seeds": [float(gap.mean()) for gap in gaps],
        "spread": float(stacked.mean(1).std(ddof=1)) if len(gaps) > 1 else None,
        "better_on": float((mean < 0).mean()),
        "cpu_seconds": float(np.mean(seconds)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/levels"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parse(parser, out=Path("runs/smoke/levels"), seeds=1, levels="global", overrides=SMOKE)
    uniform = score_rule(Uniform(), load_config(None, given.overrides))
    rows = []
    for level in given.levels.split(","):
        gaps, seconds = [], []
        for seed in range(given.seeds):
            found, spent = run(given.out / f"{level}-{seed}", level, seed, given.overrides)
            gaps.append(found.mean - uniform.mean)
            seconds.append(spent)
        rows.append(row(level, gaps, seconds))
    if given.json:
        json.dump(rows, sys.stdout, indent=2)
        return
    cells = [
        [
            one["level"],
            number(one["difference"], 4),
            number(one["standard_error"], 4),
            number(one["spread"], 4),
            f"{100 * one['better_on']:.0f}%",
            f"{one['cpu_seconds']:.0f}",
        ]
        for one in rows
    ]
    names = ["level", "minus uniform", "s.e.", "sd of seeds", "better on", "CPU seconds"]
    show(table(f"validation tasks, {given.seeds} seeds: NLL at the end", names, cells))


if __name__ == "__main__":
    main()
