"""The leaderboard of a comparison: means, paired differences, and what can be said of them.

Runs that diverged have no test loss: they are counted, and take no part in any mean. Runs are
paired by seed, or by real task and seed; a difference is taken where both finished. On real tasks
a task's seeds are averaged first, so that errors are those over tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.trainer.runs.tables import number, table

RESAMPLES = 10_000
PAIRS = 8
"""Pairs from which on a bootstrap says something; below, it is far too narrow."""

_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)
"""The 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom, for up to seven pairs."""

Rows = Sequence[Mapping[str, Any]]
Pair = tuple[Any, int]
Run = Mapping[str, Any]

_UNITS = {"tokens": "tokens read", "supervised_tokens": "supervised tokens"}


def leaderboard(rows: Rows, labels: Sequence[str]) -> list[dict[str, Any]]:
    """A row per agent: means and spreads over finished runs, paired difference to the first agent.

    Args:
        rows: a run each, with ``agent``, ``seed``, ``status``, ``steps``, ``tokens``, ``mean``,
            ``target_mean`` and ``worst``, perhaps ``task``, ``extra_compute`` and what
            :func:`mixgym.trainer.comparing.rows.rows_of` says of the way to the reference's loss;
            losses are None where the run diverged.
        labels: the agents in order, the reference first.

    Returns:
        For each agent counts, means of figures over its finished runs, and

        ``difference``, ``low``, ``high``, ``interval``, ``difference_spread``, ``standard_error``
            the mean of paired differences of the target mean, its 95 % interval, their standard
            deviation and its standard error; ``worst_difference`` and ``worst_standard_error``
            likewise of the worst source.
        ``better``, ``most_worse``
            the share of pairs in which it is better, and by which share of the reference's loss it
            is worse where it is worst (negative: it never is).
        ``tokens_to_reference``, ``share_to_reference``, ``reached``
            tokens until the reference's final loss, their share of the budget, and how often it
            was reached.
    """
    done: dict[str, dict[Pair, Run]] = {
        label: {_pair(row): row for row in rows if row["agent"] == label and _finished(row)}
        for label in labels
    }
    return [_standing(rows, label, done[label], done[labels[0]]) for label in labels]


def _pair(row: Run) -> Pair:
    return row.get("task"), row["seed"]


def _finished(row: Run) -> bool:
    return bool(row["status"] != "diverged")


def _standing(
    rows: Rows, label: str, mine: Mapping[Pair, Run], reference: Mapping[Pair, Run]
) -> dict[str, Any]:
    scores = np.array([row["target_mean"] for row in mine.values()], np.float64)
    gap, worst = (_gaps(mine, reference, key) for key in ("target_mean", "worst"))
    low, high, kind = interval(gap)
    all_of_it = [row for row in rows if row["agent"] == label]
    done = list(mine.values())
    return {
        "agent": label,
        "seeds": len({row["seed"] for row in all_of_it}),
        "tasks": len({row["task"] for row in all_of_it if "task" in row}),
        "runs": len(all_of_it),
        "diverged": len(all_of_it) - len(mine),
        "pairs": len(gap),
        **{key: _mean(done, key) for key in ("steps", "tokens", "extra_compute")},
        **{key: _mean(done, key) for key in ("mean", "target_mean")},
        "spread": _spread(scores),
        "worst": _mean(done, "worst"),
        "difference": float(gap.mean()) if len(gap) else None,
        "difference_spread": _spread(gap),
        "standard_error": _standard_error(gap),
        "low": low,
        "high": high,
        "interval": kind,
        "worst_difference": float(worst.mean()) if len(worst) else None,
        "worst_standard_error": _standard_error(worst),
        "better": float((gap < 0).mean()) if len(gap) else None,
        "most_worse": _most_worse(mine, reference),
        **{k: _mean(done, k) for k in ("tokens_to_reference", "share_to_reference", "reached")},
    }


def _gaps(mine: Mapping[Pair, Run], reference: Mapping[Pair, Run], key: str) -> FloatArray:
    """Paired differences: one per seed, or one per task, the mean over its seeds."""
    found: dict[Any, list[float]] = {}
    for pair in mine:
        if pair in reference:
            task, seed = pair
            unit = ("seed", seed) if task is None else ("task", task)
            found.setdefault(unit, []).append(mine[pair][key] - reference[pair][key])
    return np.array([np.mean(gaps) for gaps in found.values()], np.float64)


def _most_worse(mine: Mapping[Pair, Run], reference: Mapping[Pair, Run]) -> float | None:
    """The largest relative rise of the target mean over the reference's, over all pairs."""
    shares = [
        mine[pair]["target_mean"] / reference[pair]["target_mean"] - 1
        for pair in mine
        if pair in reference
    ]
    return float(max(shares)) if shares else None


def _mean(rows: Rows, key: str) -> float | None:
    """The mean of a figure over the rows that have it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def _spread(values: FloatArray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _standard_error(values: FloatArray) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def interval(gap: FloatArray) -> tuple[float | None, float | None, str]:
    """95 % interval of the mean of paired differences, and how it was found.

    From eight pairs on a percentile bootstrap (``bootstrap``); below, Student's t (``t``), which
    is wide where there is little to go by; of one pair none (``none``).

    >>> low, high, kind = interval(np.array([0.0, 2.0]))
    >>> round(low, 3), round(high, 3), kind
    (-11.706, 13.706, 't')
    """
    if len(gap) < 2:
        return None, None, "none"
    mean = float(gap.mean())
    if len(gap) < PAIRS:
        half = _T_QUANTILES[len(gap) - 2] * float(gap.std(ddof=1)) / len(gap) ** 0.5
        return mean - half, mean + half, "t"
    rng = np.random.default_rng(0)
    means = rng.choice(gap, (RESAMPLES, len(gap))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high), "bootstrap"


def leaderboard_table(report: Mapping[str, Any]) -> Any:
    """The leaderboard for the terminal."""
    board = report["leaderboard"]
    reference = board[0]["agent"]
    columns = ["agent", "runs", _read(report), "extra compute", "target mean", "worst"]
    columns += ["difference", "its se", "95 %", "better", "most worse", f"tokens to {reference}'s"]
    return table(_title(report), columns, [_shown(row) for row in board])


def _read(report: Mapping[str, Any]) -> str:
    """The column of tokens: it says what is equal."""
    return "tokens read (equal)" if report["budget"] == "tokens" else "tokens read"


def _title(report: Mapping[str, Any]) -> str:
    board, unit = report["leaderboard"], report["budget"]
    amount = report.get(f"budget_{unit}")
    equal = f"at equal {_UNITS[unit]}" if amount is None else f"after {amount:,} {_UNITS[unit]}"
    on_tasks = bool(report.get("tasks"))
    by = f"task ({report['tasks']}) and seed" if on_tasks else "seed"
    few = min(row["pairs"] for row in board)
    caution = f"; t-intervals: fewer than {PAIRS} pairs support no claim" if few < PAIRS else ""
    return (
        f"{report.get('split', 'test')} NLL {equal}; differences to {board[0]['agent']}, paired by "
        f"{by} (negative: better){caution}; extra compute: probes and measuring beyond the common "
        "evaluation, in forward passes, by that of training; tokens to: until the reference's "
        "final held-out loss, by the budget"
    )


def _shown(row: Mapping[str, Any]) -> list[str]:
    return [
        row["agent"],
        str(row["runs"]) + (f" ({row['diverged']} diverged)" if row["diverged"] else ""),
        number(row["tokens"], 0),
        _percent(row["extra_compute"]),
        number(row["target_mean"], 4),
        number(row["worst"], 4),
        number(row["difference"], 4),
        number(row["standard_error"], 4),
        _shown_interval(row),
        _percent(row["better"], 0),
        _percent(row["most_worse"]),
        _percent(row["share_to_reference"], 0),
    ]


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{number(100 * value, digits)}%"


def _shown_interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "one pair" if row["pairs"] else "no pair"
    return f"{row['low']:+.4f} .. {row['high']:+.4f} ({row['interval']})"
