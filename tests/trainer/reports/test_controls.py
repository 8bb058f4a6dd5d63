"""Controls: the same decisions in other orders, where order is known to matter or not to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixgym.agents.rules import Proportional, Scripted, Uniform
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.reports.controls import controlled_score, own_mean
from mixgym.trainer.training.validation import (
    Controls,
    TaskScores,
    comparison,
    drive,
    ending,
    fast_world,
    task_table,
)

RULE = EnvironmentOptions(learner="curves", action="weights", observation="dict")
SEEDS = range(1_000_000, 1_000_006)


def gated(seed: int) -> CurveTask:
    """A task whose strata open only after the easier ones."""
    task = sample_task(seed, sources=4, strata=3, noise_sources=0)
    return replace(task, threshold=np.full((4, 1), 0.4), spread=np.eye(3))


def test_a_mixture_that_stays_is_its_own_control() -> None:
    for rule in (Uniform(), Proportional()):
        own, controls = controlled_score(rule.predict, RULE, SEEDS)
        assert controls.held == pytest.approx(np.zeros(len(SEEDS)), abs=1e-9)
        assert controls.backwards == pytest.approx(np.zeros(len(SEEDS)), abs=1e-9)
        core = fast_world(RULE, SEEDS)
        drive(rule.predict, core)
        assert own.mean.tolist() == ending(core).mean.tolist()


def test_where_strata_open_one_after_the_other_easy_to_hard_is_worth_its_order() -> None:
    rule = Scripted(strata={0.0: [1, 0, 0], 0.4: [0.1, 1, 0.0], 1.0: [0, 0.1, 1]})
    _, controls = controlled_score(rule.predict, RULE, [gated(seed) for seed in range(6)])
    assert (controls.held > 0.01).all()
    assert (controls.backwards > controls.held).all()


def test_every_control_trains_on_the_same_tokens() -> None:
    rule = Scripted(strata={0.0: [1, 0, 0], 1.0: [0, 0, 1]})
    tasks = [gated(seed) for seed in range(3)]
    core = fast_world(RULE, tasks)
    drive(rule.predict, core)
    given = core.last.given
    again, held = fast_world(RULE, tasks), own_mean(given)
    drive(lambda *_: (held, None), again)
    assert again.last.given == pytest.approx(given, rel=1e-9)


def test_the_mean_is_over_tokens_by_hand() -> None:
    given = np.array([[[30.0, 10.0], [0.0, 60.0], [0.0, 0.0]]])
    assert own_mean(given).tolist() == [[0.4, 0.6, 0.0, 0.75, 0.25, 0.0, 1.0, 0.0, 0.0]]


def test_flat_actions_that_learn_nothing_are_replayed_too() -> None:
    flat = RULE.model_copy(update={"action": "logits", "observation": "flat"})
    moves = np.random.default_rng(0).uniform(-1, 1, (40, len(SEEDS), 60))
    steps = iter(moves)
    _, controls = controlled_score(lambda *_: (next(steps), None), flat, SEEDS)
    assert np.isfinite(controls.held).all()
    assert (controls.held != 0).all()


def row(held: float, error: float) -> dict[str, Any]:
    gap = held + error * np.sqrt(2.0) * np.array([1.0, -1.0]) / np.sqrt(2.0)
    one = TaskScores(np.array([1.0, 2.0]), np.ones(2), np.zeros(2))
    scores = {"uniform": one, "agent": one}
    return comparison(scores, controls={"agent": Controls(gap, -gap)})[1]


def test_the_table_shows_both_controls_with_their_errors() -> None:
    found = row(0.25, 0.5)
    assert found["own_mean_held"] == pytest.approx(0.25)
    assert found["own_mean_held_standard_error"] == pytest.approx(0.5)
    assert found["backwards"] == pytest.approx(-0.25)
    plain = {k: v for k, v in found.items() if not k.startswith(("own_mean", "backwards"))}
    table = task_table([{**plain, "agent": "uniform"}, found], "test")
    assert [str(column.header) for column in table.columns][-2:] == ["own mean held", "backwards"]
    assert list(table.columns[-2].cells) == ["", "+0.2500 (0.5000)"]
    assert len(task_table([plain], "test").columns) == 7, "no columns without controls"
