"""Run folders as recordings leave them, of a world that is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.curves.dynamics import CurveState, Pace, advance, nll
from mixgym.envs.curves.task import CurveTask, simple

NAMES = ("red", "green", "blue")
DECISIONS, STEPS = 12, 120.0


def known_world() -> CurveTask:
    """Three sources that forget, with a common part, at a learning rate that matters."""
    column = np.ones((3, 1))
    cells = np.ones((3, 2))
    return CurveTask(
        **{
            **simple(3, 2),
            "targets": np.ones(3),
            "size": np.array([[9e3], [3e3], [6e4]]) * cells,
            "cost": np.array([[1.5], [8.0], [2.0]]) * cells,
            "floor": np.array([[1.0, 1.2], [0.8, 1.0], [1.5, 1.6]]),
            "amplitude": np.array([[2.0, 1.8], [2.4, 2.2], [1.5, 1.4]]),
            "scale": np.array([[1.5e3], [2.5e3], [1e3]]) * cells,
            "exponent": 0.8 * cells,
            "base": 1.5 * column,
            "base_scale": 2e3 * column,
            "base_exponent": 0.9 * column,
            "transfer": np.array([[1.0, 0.2, 0.1], [0.0, 1.0, 0.1], [0.3, 0.1, 1.0]]),
            "spread": np.array([[1.0, 0.7], [0.7, 1.0]]),
            "threshold": 0 * column,
            "lasting": np.array(0.3),
            "forgetting": np.array(3 / 3e4),
            "warmth": 0.1 * column,
            "cooling": np.array(10 / 3e4),
            "patience": 8.0 * column,
            "overfit": 0.1 * column,
            "budget": np.array(1e5),
            "batch": np.array(250.0),
            "batch_power": np.array(0.7),
            "noise": np.zeros((3, 2)),
        }
    )


def leave_run(folder: Path, seed: int, error: float = 0.01) -> None:
    """One run under a random mixture that changes once, as ``mixgym record`` writes it."""
    task, rng = known_world(), np.random.default_rng(seed)
    pieces = [rng.dirichlet(np.ones(3)) for _ in range(2)]
    turn = int(rng.integers(1, DECISIONS))
    state, rate, rows = CurveState.start(task), float(rng.uniform(0.5, 1.5)), []
    off = 1.0 + error * np.random.default_rng(0).normal(size=(3, 2))  # of the same held-out rows
    for decision in range(DECISIONS):
        share = np.repeat(pieces[decision >= turn][:, None] / 2, 2, 1)
        read = 1e5 / DECISIONS
        tokens = share * read / (share * task.cost).sum()
        lowered = rate * (1.0 - decision / DECISIONS)
        state = advance(task, state, tokens, Pace(STEPS / DECISIONS, lowered))
        rows.append(_row(decision + 1, tokens, nll(task, state) * off, lowered, error))
    start = nll(task, CurveState.start(task)) * off
    folder.mkdir(parents=True)
    (folder / "world.json").write_text(json.dumps(_world(task, start)))
    (folder / "decisions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(number: int, tokens: Any, loss: Any, rate: float, error: float) -> dict[str, Any]:
    steps = STEPS / DECISIONS
    return {
        "decision": number,
        "steps": int(steps * number),
        "cells": {
            "supervised": _named(tokens),
            "loss": _named(loss),
            "error": _named(error * loss),
        },
        "optimizer": {"rates": 1e-3 * rate * steps},
        "cost": {"train_tokens": 1e5 / DECISIONS * number},
    }


def _world(task: CurveTask, start: Any) -> dict[str, Any]:
    return {
        "names": list(NAMES),
        "strata": 2,
        "train": {"supervised": _named(task.size)},
        "cells": {"cost": _named(task.cost)},
        "start": {"cells": {"loss": _named(start)}},
        "held_out": {"reward": {"supervised": _named(np.full((3, 2), 400.0))}},
    }


def _named(values: Any) -> dict[str, Any]:
    return dict(zip(NAMES, np.asarray(values).tolist(), strict=True))
