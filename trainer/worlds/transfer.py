"""Does a fast world rank schedulers as real runs do? Pure functions over tables of scores.

A score is the target-weighted NLL at the end of a run, lower is better; schedulers are ranked by
their mean difference to a reference on the same tasks. Two things keep two rankings apart: the
world may be wrong, and the real ranking is itself noisy. So beside Spearman's rank correlation
stands what the real tasks say of themselves, the correlation of rankings by halves of them
(stepped up to their full number by Spearman and Brown), and beside the whole each scheduler's part:
its squared difference of ranks, as a share of what it takes from 1.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.random_streams import stream
from mixgym.trainer.orders.analysis import correlation, ranks

Scores = Mapping[str, Mapping[str, float]]
"""Scheduler -> task -> NLL."""
RESAMPLES = 1000
LEVELS = (0.025, 0.975)
_SPLITS = 200


@dataclass(frozen=True)
class Transfer:
    """How two rankings of the same schedulers agree.

    Attributes:
        agents: names, the best in the real tasks first.
        real, world: float64[n], mean differences to the reference, nats; negative is better.
        real_error: float64[n], standard errors over tasks.
        real_rank, world_rank: float64[n], from 0, the best.
        correlation: of the ranks.
        low, high: its 95 % interval, by a bootstrap over the real tasks.
        ceiling: correlation of the real ranking with that of as many other real tasks.
        share: float64[n], what each takes from a correlation of 1, summing to 1.
    """

    agents: tuple[str, ...]
    real: FloatArray
    real_error: FloatArray
    world: FloatArray
    real_rank: FloatArray
    world_rank: FloatArray
    correlation: float
    low: float
    high: float
    ceiling: float
    share: FloatArray


def spearman(one: FloatArray, other: FloatArray) -> float:
    """Rank correlation; ties share their mean rank; 0 where one of them does not vary.

    >>> round(spearman(np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])), 3)
    0.8
    """
    return correlation(ranks(one), ranks(other))


def compared(real: Scores, world: Scores, reference: str, seed: int = 0) -> Transfer:
    """The rankings of the schedulers that both tables hold.

    Args:
        real: on real tasks.
        world: on tasks of a fast world.
        reference: whose NLL is subtracted, task by task.
        seed: of the bootstrap.

    Raises:
        ConfigError: for fewer than three common schedulers, or no reference among them.
    """
    agents = [name for name in real if name in world]
    if len(agents) < 3 or reference not in agents:
        raise ConfigError(
            f"rankings of {', '.join(agents) or 'nobody'}: give at least three schedulers that "
            f"both tables hold, {reference} among them"
        )
    seen = differences(real, agents, reference)
    agents = [agents[i] for i in np.argsort(seen.mean(-1), kind="stable")]
    seen = differences(real, agents, reference)
    fast = differences(world, agents, reference).mean(-1)
    low, high = _interval(seen, fast, seed)
    away = (ranks(seen.mean(-1)) - ranks(fast)) ** 2
    return Transfer(
        agents=tuple(agents),
        real=seen.mean(-1),
        real_error=seen.std(-1, ddof=1) / np.sqrt(seen.shape[1]),
        world=fast,
        real_rank=ranks(seen.mean(-1)),
        world_rank=ranks(fast),
        correlation=spearman(seen.mean(-1), fast),
        low=low,
        high=high,
        ceiling=ceiling(seen, seed),
        share=away / max(float(away.sum()), 1e-300),
    )


def differences(scores: Scores, agents: Sequence[str], reference: str) -> FloatArray:
    """float64[n, tasks], NLL minus the reference's, on the tasks that all of them finished.

    Raises:
        ConfigError: if there are fewer than two such tasks.
    """
    tasks = sorted(set.intersection(*(set(scores[name]) for name in agents)))
    if len(tasks) < 2:
        raise ConfigError(
            f"{len(tasks)} tasks were finished by all of {', '.join(agents)}: two are needed"
        )
    table = np.array([[scores[name][task] for task in tasks] for name in agents])
    return np.asarray(table - table[list(agents).index(reference)])


def ceiling(seen: FloatArray, seed: int = 0) -> float:
    """What a perfect world could reach: the rank correlation of halves, stepped up to the whole.

    The mean over random halves is r; the ranking by all tasks agrees with that by as many others
    by 2 r / (1 + r) (Spearman and Brown 1910). Of fewer than four tasks nothing can be said: NaN.

    Args:
        seen: float64[n, tasks].
        seed: of the halves.
    """
    count = seen.shape[1]
    if count < 4:
        return float("nan")
    random, found = stream(seed, "transfer: halves"), []
    for _ in range(_SPLITS):
        order = random.permutation(count)
        half = order[: count // 2], order[count // 2 :]
        found.append(spearman(*(seen[:, tasks].mean(-1) for tasks in half)))
    mean = max(float(np.mean(found)), -0.5)
    return 2.0 * mean / (1.0 + mean)


def _interval(seen: FloatArray, fast: FloatArray, seed: int) -> tuple[float, float]:
    random, count = stream(seed, "transfer: bootstrap"), seen.shape[1]
    found = [
        spearman(seen[:, random.integers(0, count, count)].mean(-1), fast) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, LEVELS)
    return float(low), float(high)


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Scores from a CSV with a row per run, as comparisons write it; means over seeds.

    Columns: ``agent``, ``target_mean`` (or ``mean``, where that is missing), and ``task``; without
    it every seed is a task. Runs without a loss, which diverged, are left out.

    Raises:
        ConfigError: if a column is missing.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = set(rows[0]) if rows else set()
    value = next((name for name in ("target_mean", "mean") if name in known), None)
    task = next((name for name in ("task", "seed") if name in known), None)
    if "agent" not in known or value is None or task is None:
        raise ConfigError(
            f"{path}: columns agent, task (or seed) and target_mean (or mean) are needed, found "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row[value]:
            by_task = found.setdefault(row["agent"], {})
            by_task.setdefault(row[task], []).append(float(row[value]))
    return {
        agent: {name: float(np.mean(losses)) for name, losses in by_task.items()}
        for agent, by_task in found.items()
    }
