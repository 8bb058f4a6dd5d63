"""How schedulers do: on the frozen tasks of the fast world, and on a language model.

In the fast world all schedulers meet the same tasks with the same measurement noise; what counts is
the NLL at the end without noise, weighted by the target. On a language model they drive runs of the
same seeds, and what counts is the NLL of the select split, which no reward and no observation sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.policies.composed import load_agent
from mixgym.envs.arrays import FloatArray
from mixgym.envs.build import build_environment
from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.tasks.sets import Tasks
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.rewards import target_mean
from mixgym.trainer.config import RunConfig
from mixgym.trainer.runs.tables import number, table

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


@dataclass(frozen=True)
class Controls:
    """What the order of a scheduler's decisions is worth: other orders minus its own.

    Attributes:
        held: float64[tasks], nats more under its own mean mixture, held fixed.
        backwards: float64[tasks], nats more under its decisions played backwards.
    """

    held: FloatArray
    backwards: FloatArray


def score(predict: Predict, options: EnvironmentOptions, tasks: Tasks) -> TaskScores:
    """Let a scheduler drive one episode of every task of a set.

    Args:
        predict: as of an agent: ``(observation, state, episode_start, deterministic)``.
        options: action kind and observation that it wants.
        tasks: that it drives an episode of each.
    """
    core = fast_world(options, tasks)
    drive(predict, core)
    return ending(core)


def fast_world(
    options: EnvironmentOptions, tasks: Tasks, seed: int = VALIDATION_SEED
) -> CurvesCore:
    """One episode of each task is about to begin, with the noise that ``seed`` says."""
    core = CurvesCore(len(tasks), tasks, options, seed=seed, in_order=True)
    core.reset()
    return core


def drive(
    predict: Predict, core: CurvesCore, watch: Callable[[CurvesCore], object] | None = None
) -> None:
    """Let a scheduler drive all environments to the end.

    Args:
        predict: see :func:`score`.
        core: reset.
        watch: called after every decision.
    """
    observation, state = core.observe(), None
    start = np.ones(core.count, np.bool_)
    for _ in range(core.decisions):
        action, state = predict(observation, state, start, True)
        core.step(action)
        if watch is not None:
            watch(core)
        observation, start = core.observe(), np.zeros(core.count, np.bool_)


def ending(core: CurvesCore) -> TaskScores:
    """The scores of episodes that have ended."""
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


class LanguageJudge:
    """Judges agents by fine-tuning runs: the select split's NLL at the end, lower is better.

    The environment is built when it is first needed, beside the one that agents are trained in.

    Args:
        config: with the environment that agents act in.
        runs: fine-tuning runs per agent; the i-th has the same seed for all of them.
    """

    def __init__(self, config: RunConfig, runs: int) -> None:
        self._config = config
        self._runs = runs
        self._built: MixtureEnv | None = None
        self._prior: float | None = None

    @property
    def _env(self) -> MixtureEnv:
        if self._built is None:
            self._built = build_environment(self._config)
        return self._built

    @property
    def shape(self) -> tuple[int, int]:
        """(K_max, G_max) of what an agent sees."""
        return self._env.padded

    def prior(self) -> float:
        """The score of an agent that leaves everything at the prior."""
        if self._prior is None:
            idle = np.zeros((1, *(self._env.action_space.shape or ())), np.float32)
            self._prior = self.score(lambda *_: (idle, None))
        return self._prior

    def score_folder(self, folder: Path) -> float:
        """The score of the agent in a folder."""
        return self.score(load_agent(folder, shape=self.shape).predict)

    def score(self, predict: Predict) -> float:
        """Target-weighted mean NLL of the select split; infinite where a run diverges."""
        return float(np.mean([self._run(predict, i) for i in range(self._runs)]))

    def _run(self, predict: Predict, index: int) -> float:
        env = self._env
        observation, info = env.reset(seed=VALIDATION_SEED + index)
        state, start, done = None, np.ones(1, np.bool_), False
        while not done:
            action, state = predict(observation[None], state, start, True)
            observation, _, done, _, info = env.step(np.asarray(action)[0])
            start = np.zeros(1, np.bool_)
        if "failure" in info:
            return float("inf")
        measured = env.world.learner.evaluate("select")
        return target_mean(measured.source_nll, env.world.targets)


def task_table(rows: Sequence[Mapping[str, Any]], tasks: str) -> Any:
    """The rows of :func:`comparison` for the terminal."""
    title = f"{tasks} tasks of the fast world: NLL at the end (nats per token)"
    heads = ["schedule", "tasks", "target mean", "worst excess", "minus uniform", "s.e."]
    heads.append("better on")
    controlled = any("own_mean_held" in row for row in rows)
    if controlled:
        title += "; by how much its own mean, and its decisions backwards, end higher (s.e.)"
        heads += ["own mean held", "backwards"]
    return table(title, heads, [_cells(row, controlled) for row in rows])


def _cells(row: Mapping[str, Any], controlled: bool) -> list[str]:
    numbers = [row[name] for name in ("mean", "worst", "difference", "standard_error")]
    cells = [row["agent"], str(row["tasks"]), *(number(value, 4) for value in numbers)]
    cells.append(f"{100 * row['better_on']:.0f}%")
    if controlled:
        cells += [_with_error(row, name) for name in ("own_mean_held", "backwards")]
    return cells


def _with_error(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return f"{row[name]:+.4f} ({row[f'{name}_standard_error']:.4f})"


def paired(one: TaskScores, other: TaskScores) -> tuple[float, float]:
    """Mean paired difference of NLL (negative: ``one`` is better), and its standard error."""
    return mean_and_error(one.mean - other.mean)


def mean_and_error(gap: FloatArray) -> tuple[float, float]:
    """Of paired differences, float64[tasks]."""
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap)))


def comparison(
    scores: Mapping[str, TaskScores],
    reference: str = "uniform",
    controls: Mapping[str, Controls] | None = None,
) -> list[dict[str, Any]]:
    """One row per scheduler: mean, and the paired difference to the reference.

    Args:
        scores: by name, all on the same tasks.
        reference: whose mean is subtracted, task by task (negative: better).
        controls: of those that were played again in other orders.
    """
    base = scores[reference].mean
    rows = []
    for name, found in scores.items():
        difference, error = paired(found, scores[reference])
        rows.append(
            {
                "agent": name,
                "tasks": len(base),
                "mean": float(found.mean.mean()),
                "worst": float(found.worst.mean()),
                "difference": difference,
                "standard_error": error,
                "better_on": float((found.mean < base).mean()),
                **_of_controls((controls or {}).get(name)),
            }
        )
    return rows


def _of_controls(found: Controls | None) -> dict[str, float]:
    """Means and standard errors of both controls."""
    if found is None:
        return {}
    row = {}
    for name, gap in (("own_mean_held", found.held), ("backwards", found.backwards)):
        row[name], row[f"{name}_standard_error"] = mean_and_error(gap)
    return row
