"""How schedulers do on the frozen tasks of the fast world, side by side.

All schedulers meet the same tasks with the same measurement noise; what counts is the NLL at the
end without noise, weighted by the target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.curves.core import DECISIONS
from mixgym.envs.curves.task import TASK_SETS
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.mixture import FloatArray
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.tables import number, table

Predict = Callable[..., tuple[NDArray[np.float32], Any]]
VALIDATION_SEED = 1_234


@dataclass(frozen=True)
class TaskScores:
    """The end of one episode per task.

    Attributes:
        mean: float64[tasks], target-weighted mean NLL.
        worst: float64[tasks], largest NLL of a target above its floor.
        start: float64[tasks], target-weighted mean NLL before training.
    """

    mean: FloatArray
    worst: FloatArray
    start: FloatArray


def score(predict: Predict, options: EnvironmentOptions, tasks: str = "validation") -> TaskScores:
    """Let a scheduler drive one episode of every task of a set.

    Args:
        predict: as of an agent: ``(observation, state, episode_start, deterministic)``.
        options: action kind and observation that it wants.
        tasks: ``validation`` or ``test``.
    """
    seeds = TASK_SETS[tasks]
    env = CurvesVecEnv(len(seeds), seeds, options, seed=VALIDATION_SEED, in_order=True)
    core = env.core
    observation = env.reset()
    state, start = None, np.ones(len(seeds), np.bool_)
    for _ in range(DECISIONS):
        action, state = predict(observation, state, start, True)
        core.step(action)
        observation = core.observe()
        start = np.zeros(len(seeds), np.bool_)
    targets = core.task.targets
    weights = targets / targets.sum(-1, keepdims=True)
    end, first = core.final_nll(), core.start_nll()
    floor = (core.task.floor * core.task.present).sum(-1) / np.maximum(core.task.present.sum(-1), 1)
    excess = np.where(targets > 0, np.nan_to_num(end) - floor, -np.inf)
    return TaskScores(
        (np.nan_to_num(end) * weights).sum(-1),
        excess.max(-1),
        (np.nan_to_num(first) * weights).sum(-1),
    )


def task_table(rows: Sequence[Mapping[str, Any]], tasks: str) -> Any:
    """The rows of :func:`comparison` for the terminal."""
    return table(
        f"{tasks} tasks of the fast world: NLL at the end (nats per token)",
        ["schedule", "tasks", "target mean", "worst excess", "minus uniform", "s.e.", "better on"],
        [
            [
                row["agent"],
                str(row["tasks"]),
                number(row["mean"], 4),
                number(row["worst"], 4),
                number(row["difference"], 4),
                number(row["standard_error"], 4),
                f"{100 * row['better_on']:.0f}%",
            ]
            for row in rows
        ],
    )


def comparison(
    scores: Mapping[str, TaskScores], reference: str = "uniform"
) -> list[dict[str, Any]]:
    """One row per scheduler: mean, and the paired difference to the reference.

    Args:
        scores: by name, all on the same tasks.
        reference: whose mean is subtracted, task by task (negative: better).
    """
    base = scores[reference].mean
    rows = []
    for name, found in scores.items():
        gap = found.mean - base
        rows.append(
            {
                "agent": name,
                "tasks": len(base),
                "mean": float(found.mean.mean()),
                "worst": float(found.worst.mean()),
                "difference": float(gap.mean()),
                "standard_error": float(gap.std(ddof=1) / np.sqrt(len(gap))),
                "better_on": float((gap < 0).mean()),
            }
        )
    return rows
