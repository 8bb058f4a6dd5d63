"""Scores on the frozen tasks, against numbers from the world itself."""

from typing import Any

import numpy as np
import pytest

from mixgym.agents.rules import Proportional, Uniform
from mixgym.envs.curves.tasks.sets import TASK_SETS, drawn
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.training.validation import TaskScores, comparison, score

RULE = EnvironmentOptions(learner="curves", action="weights", observation="dict")


TASKS = TASK_SETS["validation"][:6]


def test_scores_start_where_the_tasks_do_and_are_paired() -> None:
    scores = score(Uniform().predict, RULE, TASKS)
    for i, seed in enumerate(TASKS):
        task = drawn(seed)
        start = np.average((task.floor + task.amplitude).mean(-1), weights=task.targets)
        assert scores.start[i] == pytest.approx(start)
    again = score(Uniform().predict, RULE, TASKS)
    assert scores.mean.tolist() == again.mean.tolist()
    other = score(Proportional().predict, RULE, TASKS)
    assert other.start.tolist() == scores.start.tolist()
    assert (scores.mean < scores.start).all()
    assert (scores.worst > 0).all()


def test_a_zero_action_is_the_uniform_rule() -> None:
    def zero(observation: Any, *_: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation), 12 + 48), np.float32), None

    flat = RULE.model_copy(update={"action": "logits", "observation": "flat"})
    assert score(zero, flat, TASKS).mean == pytest.approx(
        score(Uniform().predict, RULE, TASKS).mean, rel=1e-6
    )


def test_the_comparison_by_hand() -> None:
    nothing = np.zeros(4)
    scores = {
        "uniform": TaskScores(np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 0.5), nothing),
        "agent": TaskScores(np.array([0.8, 2.0, 2.6, 4.2]), np.full(4, 0.25), nothing),
    }
    reference, agent = comparison(scores)
    assert (reference["difference"], reference["standard_error"]) == (0, 0)
    assert agent["mean"] == pytest.approx(2.4)
    assert agent["worst"] == 0.25
    assert agent["difference"] == pytest.approx(-0.1)
    # gaps -.2 0 -.4 .2: variance (.01 + .01 + .09 + .09) / 3
    assert agent["standard_error"] == pytest.approx((0.2 / 3 / 4) ** 0.5)
    assert agent["better_on"] == 0.5
    assert agent["tasks"] == 4
