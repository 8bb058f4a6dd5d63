"""The placebo suite: what schedulers do where the right answer is known beforehand.

``identical``: all sources alike, so that nobody may differ from uniform beyond noise. ``noise``: a
source that cannot be learnt and does not count; whoever pays attention to targets must end below
half of uniform's share of it. ``duplicate``: one source under two names; what they get together,
and whether the two are treated alike. The first two come again as ``identical_few`` and
``noise_few``, with held-out sets of some fifty tokens, whose losses err by 12 %.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.core import DECISIONS
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.curves.tasks.controls import (
    NOISE,
    TWINS,
    duplicate_tasks,
    identical_tasks,
    noise_tasks,
    with_few_tokens,
)
from mixgym.trainer.reports.schedulers import Scheduler
from mixgym.trainer.training.validation import drive, ending, fast_world

SEED = 4_321
_MARGIN = 0.005
"""Nats of the mean NLL that are too few to matter."""
ERRORS = 3.0
"""Standard errors that are beyond noise, with some thirty schedulers looked at."""
_LATE = DECISIONS // 4
"""Decisions at the end of an episode by which a scheduler has made up its mind."""


def _few(make: Callable[[int], list[CurveTask]]) -> Callable[[int], list[CurveTask]]:
    return lambda count: [with_few_tokens(task) for task in make(count)]


_CONTROLS: dict[str, Callable[[int], list[CurveTask]]] = {
    "identical": identical_tasks,
    "identical_few": _few(identical_tasks),
    "noise": noise_tasks,
    "noise_few": _few(noise_tasks),
    "duplicate": duplicate_tasks,
}


@dataclass(frozen=True)
class Course:
    """What a scheduler did on tasks.

    Attributes:
        weights: float64[decisions, tasks, K].
        mean: float64[tasks], target-weighted mean NLL at the end, without noise.
    """

    weights: FloatArray
    mean: FloatArray


def course(one: Scheduler, tasks: Sequence[CurveTask], seed: int = SEED) -> Course:
    """Let a scheduler drive one episode of each task, all with the same measurement noise."""
    core, weights = fast_world(one.options, tasks, seed), []
    sources = tasks[0].targets.shape[-1]
    drive(one.predict, core, lambda core: weights.append(core.last.weight[:, :sources]))
    return Course(np.array(weights), ending(core).mean)


def report(found: Mapping[str, Scheduler], tasks: int) -> list[dict[str, Any]]:
    """A row per scheduler, each measured against ``uniform``, which has to be among them.

    Args:
        found: the schedulers by name.
        tasks: how many of each control.
    """
    drawn = {name: make(tasks) for name, make in _CONTROLS.items()}
    base = {name: course(found["uniform"], drawn[name]) for name in drawn}
    rows = []
    for name, one in found.items():
        done = {control: course(one, drawn[control]) for control in drawn}
        rows.append(
            {
                "agent": name,
                "target_aware": one.target_aware,
                **_both("identical", done, base, identical_row),
                **_both("noise", done, base, partial(noise_row, aware=one.target_aware)),
                **duplicate_row(done["duplicate"], base["duplicate"]),
            }
        )
    return rows


def _both(
    name: str,
    done: Mapping[str, Course],
    base: Mapping[str, Course],
    row: Callable[[Course, Course], dict[str, Any]],
) -> dict[str, Any]:
    """The row of a control, and that of the same with few held-out tokens."""
    few = row(done[f"{name}_few"], base[f"{name}_few"])
    renamed = {key.replace(name, f"{name}_few", 1): value for key, value in few.items()}
    return {**row(done[name], base[name]), **renamed}


def identical_row(done: Course, base: Course) -> dict[str, Any]:
    """Difference of the NLL, and the largest mean tilt of a source, with their standard errors."""
    gap, error = paired(done.mean, base.mean)
    over = done.weights.mean(0) - base.weights.mean(0)  # [tasks, K]
    tilt = over.mean(0)
    errors = over.std(0, ddof=1) / np.sqrt(len(over))
    which = int(np.abs(tilt).argmax())
    count = over.shape[1]
    nll_same = abs(gap) <= max(_MARGIN, ERRORS * error)
    tilted = abs(tilt[which]) > max(0.01 / count, ERRORS * errors[which])
    return {
        "identical_nll": gap,
        "identical_nll_error": error,
        "identical_tilt": float(tilt[which] * count),
        "identical_tilt_error": float(errors[which] * count),
        "identical_passed": bool(nll_same and not tilted),
    }


def noise_row(done: Course, base: Course, aware: bool) -> dict[str, Any]:
    """Weight of the noise over uniform's, in the whole episode and in its last quarter."""
    share = done.weights[..., NOISE].mean(-1) * done.weights.shape[-1]
    gap, error = paired(done.mean, base.mean)
    late = float(share[-_LATE:].mean())
    return {
        "noise_share": float(share.mean()),
        "noise_late": late,
        "noise_nll": gap,
        "noise_nll_error": error,
        "noise_passed": late < 0.5 if aware else None,
    }


def duplicate_row(done: Course, base: Course) -> dict[str, Any]:
    """Weight of both names over uniform's two, and how far apart the two are."""
    first, second = (done.weights[..., twin].mean(0) for twin in TWINS)
    apart, error = paired(first, second)
    count = done.weights.shape[-1]
    gap, gap_error = paired(done.mean, base.mean)
    return {
        "duplicate_share": float((first + second).mean() * count / 2.0),
        "duplicate_apart": apart * count,
        "duplicate_apart_error": error * count,
        "duplicate_nll": gap,
        "duplicate_nll_error": gap_error,
    }


def paired(one: FloatArray, other: FloatArray) -> tuple[float, float]:
    """Mean of the differences, and its standard error."""
    gap = one - other
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap)))
