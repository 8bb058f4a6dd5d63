"""The leaderboard of a comparison: means, paired differences, and what can be said of them.

Runs that diverged have no test loss: they are counted, and take no part in any mean. A difference
is taken over the seeds at which both runs finished.
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


def leaderboard(rows: Rows, labels: Sequence[str]) -> list[dict[str, Any]]:
    """A row per agent: means and spreads over finished runs, paired difference to the first agent.

    Args:
        rows: a run each, with ``agent``, ``seed``, ``status``, ``steps``, ``tokens``, ``mean``,
            ``target_mean`` and ``worst``; losses are None where the run diverged.
        labels: the agents in order, the reference first.
    """
    done = {
        label: {row["seed"]: row for row in rows if row["agent"] == label and _finished(row)}
        for label in labels
    }
    return [_standing(rows, label, done[label], done[labels[0]]) for label in labels]


def _finished(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] != "diverged")


def _standing(
    rows: Rows,
    label: str,
    mine: Mapping[int, Mapping[str, Any]],
    reference: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    scores = np.array([row["target_mean"] for row in mine.values()], np.float64)
    gap = np.array(
        [mine[s]["target_mean"] - reference[s]["target_mean"] for s in mine if s in reference],
        np.float64,
    )
    low, high, kind = interval(gap)
    all_of_it = [row for row in rows if row["agent"] == label]
    return {
        "agent": label,
        "seeds": len(all_of_it),
        "diverged": len(all_of_it) - len(mine),
        "pairs": len(gap),
        "steps": _mean(mine, "steps"),
        "tokens": _mean(mine, "tokens"),
        "mean": _mean(mine, "mean"),
        "target_mean": _mean(mine, "target_mean"),
        "spread": _spread(scores),
        "worst": _mean(mine, "worst"),
        "difference": float(gap.mean()) if len(gap) else None,
        "difference_spread": _spread(gap),
        "low": low,
        "high": high,
        "interval": kind,
    }


def _mean(rows: Mapping[int, Mapping[str, Any]], key: str) -> float | None:
    return float(np.mean([row[key] for row in rows.values()])) if rows else None


def _spread(values: FloatArray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


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
    rows = [
        [
            row["agent"],
            str(row["seeds"]) + (f" ({row['diverged']} diverged)" if row["diverged"] else ""),
            number(row["steps"], 0),
            number(row["tokens"], 0),
            number(row["mean"], 4),
            number(row["target_mean"], 4),
            number(row["spread"], 4),
            number(row["worst"], 4),
            number(row["difference"], 4),
            number(row["difference_spread"], 4),
            _shown_interval(row),
        ]
        for row in board
    ]
    few = min(row["pairs"] for row in board)
    caution = f"; t-intervals: fewer than {PAIRS} pairs support no claim" if few < PAIRS else ""
    columns = ["agent", "seeds", "steps", "tokens read", "mean", "target mean", "sd", "worst"]
    return table(
        f"test NLL after {report['budget_supervised_tokens']:,} supervised tokens; "
        f"differences to {board[0]['agent']}, paired by seed (negative: better){caution}",
        [*columns, "difference", "its sd", "95 %"],
        rows,
    )


def _shown_interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "one pair" if row["pairs"] else "no pair"
    return f"{row['low']:+.4f} .. {row['high']:+.4f} ({row['interval']})"
