"""What each run of a comparison has to tell, as a row of the CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.trainer.comparing.curves import RunCurve, curve_of, tokens_to
from mixgym.trainer.comparing.entries import Entry
from mixgym.trainer.runs.world_record import WORLD

SPLITS = ("test", "select")
"""What can judge."""

FORWARD_PASSES = 3
"""Of a training token: one forward, and two backward."""

Row = dict[str, Any]
Pair = tuple[str | None, int]


def rows_of(
    runs: Sequence[Entry], summaries: Sequence[Mapping[str, Any]], reference: str, split: str
) -> list[Row]:
    """A row per run.

    Args:
        runs: of the comparison.
        summaries: of each.
        reference: label of the agent whose final loss is to be reached.
        split: that judges.
    """
    rows = [_row(run, summary, split) for run, summary in zip(runs, summaries, strict=True)]
    curves = [_curve(run, row) for run, row in zip(runs, rows, strict=True)]
    marks: dict[Pair, RunCurve] = {
        (run.task, run.seed): curve
        for run, curve in zip(runs, curves, strict=True)
        if run.agent == reference and curve is not None
    }
    return [
        {**row, **_reached(curve, marks.get((run.task, run.seed)))}
        for run, row, curve in zip(runs, rows, curves, strict=True)
    ]


def _row(run: Entry, summary: Mapping[str, Any], split: str) -> Row:
    sources, cost = summary["sources"], summary["cost"]
    after = {name: source[f"{split}_after"] for name, source in sources.items()}
    measured = [loss for loss in after.values() if loss is not None]
    return {
        **({} if run.task is None else {"task": run.task}),
        "agent": run.agent,
        "seed": run.seed,
        "status": summary["status"],
        "steps": summary["steps"],
        "tokens": cost["train_tokens"],
        "measure_tokens": cost.get("measure_tokens", 0),
        "probe_tokens": cost.get("probe_tokens", 0),
        "extra_compute": extra_compute(Path(run.config.run.dir), summary),
        "supervised_tokens": summary["supervised_tokens"],
        "mean": float(np.mean(measured)) if measured else None,
        "target_mean": summary[split]["mean_after"],
        "worst": summary[split]["worst_after"],
        **{f"nll/{name}": loss for name, loss in after.items()},
        **{f"exact/{name}": value for name, value in (summary.get("exact") or {}).items()},
    }


def extra_compute(folder: Path, summary: Mapping[str, Any]) -> float | None:
    """What probing and measuring cost beyond the evaluation that every run has, by its training.

    The common evaluation is the reward split before the first decision and after each. Both figures
    are in passes forward of a token; training a token takes three.

    Args:
        folder: of the run.
        summary: of the run.

    Returns:
        A share of the training's compute; None where nothing was trained or recorded.
    """
    cost = summary["cost"]
    if not cost["train_tokens"] or not (folder / WORLD).is_file():
        return None
    tokens = storage.read_json(folder / WORLD)["held_out"]["reward"].get("tokens", {})
    once = sum(value or 0 for strata in tokens.values() for value in strata)
    common = once * (summary["decisions"] + 1)
    beyond = max(0.0, cost.get("measure_tokens", 0) - common) if once else 0.0
    passes = cost.get("probe_tokens", 0) + beyond
    return float(passes / (FORWARD_PASSES * cost["train_tokens"]))


def _curve(run: Entry, row: Row) -> RunCurve | None:
    return None if row["status"] == "diverged" else curve_of(Path(run.config.run.dir))


def _reached(mine: RunCurve | None, reference: RunCurve | None) -> Row:
    """Tokens until the reference's final loss; the budget where it is never reached."""
    if mine is None or reference is None:
        return {"reached": None, "tokens_to_reference": None, "share_to_reference": None}
    budget = max(mine.tokens[-1], reference.tokens[-1])
    needed = tokens_to(mine, reference.final)
    spent = budget if needed is None else needed
    return {
        "reached": needed is not None,
        "tokens_to_reference": float(spent),
        "share_to_reference": float(spent / budget),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows; columns are those of all of them, in the order in which they come up."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    storage.write_text(path, text.getvalue())
