"""How much the order of the same mixtures matters: in recorded runs, and in the world."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.curves.task import CurveTask
from mixgym.trainer.recording.record import RECORD
from mixgym.trainer.worlds.fitting import predict
from mixgym.trainer.worlds.trajectories import Recorded, Trajectories


def order_effects(recorded: Recorded, task: CurveTask) -> dict[str, Any]:
    """Mean absolute difference of the final losses of sources between designed pairs, in nats.

    Returns:
        ``pairs``, how many there are; ``seen`` and ``predicted`` by the task (0 without pairs).
    """
    pairs = _pairs(recorded.folders)
    runs = recorded.runs
    predicted = Trajectories(
        runs.steps, runs.rate, runs.supervised, predict(task, runs), runs.error
    ).by_source
    rows = np.arange(len(runs))
    ends = {"seen": runs.by_source[rows, runs.last], "predicted": predicted[rows, runs.last]}
    found: dict[str, Any] = {"pairs": len(pairs)}
    for name, values in ends.items():
        gaps = [np.nanmean(np.abs(values[one] - values[other])) for one, other in pairs]
        found[name] = float(np.mean(gaps)) if gaps else 0.0
    return found


def _pairs(folders: tuple[Path, ...]) -> list[tuple[int, int]]:
    """Places of the runs that mixgym record made in either order."""
    drawn: dict[tuple[Path, int], dict[str, int]] = {}
    for place, folder in enumerate(folders):
        try:
            rows = json.loads((folder.parent / RECORD).read_text())["runs"]
            own = next(row for row in rows if row["name"] == folder.name)
        except (OSError, ValueError, KeyError, StopIteration):
            continue  # a run that was not recorded as part of a library
        if own["kind"].endswith("order"):
            drawn.setdefault((folder.parent, own["draw"]), {})[own["kind"]] = place
    return [(p["first order"], p["second order"]) for p in drawn.values() if len(p) == 2]
