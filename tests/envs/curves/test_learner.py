"""The closed-form learner and its data plane."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.build import build_environment
from mixgym.envs.curves.learner import CurveLearner, TokenPlane
from mixgym.envs.curves.task import LINEAR, tokens_per_step
from mixgym.envs.curves.task_tables import Clock
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Budget
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.options import WorldOptions
from mixgym.envs.spaces.mixture import Mixture

from ..synthetic import hand_task

SEEDS = st.integers(0, 2**31)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_tokens_are_handed_out_by_the_mixture(
    seed: int, sources: int, strata: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    task = sample_task(seed, sources=sources, strata=strata)
    plane, per_step = TokenPlane(task, 40), int(tokens_per_step(task, 40))
    assert per_step == round(float(task.budget) / 40)
    weights = rng.dirichlet(np.full(sources, 0.3))
    mixture = Mixture(weights / weights.sum(), rng.dirichlet(np.full(strata, 0.3), sources))
    supervised = int(rng.integers(1, 8 * per_step))
    plan = plane.plan(mixture, Budget(steps, supervised))
    total = min(steps * per_step, supervised)
    assert plan.supervised.sum() == pytest.approx(total, rel=1e-12)
    assert len(plan.steps) == -(-total // per_step)
    assert plan.supervised == pytest.approx(mixture.cells * total)
    assert (plan.supervised[mixture.cells == 0] == 0).all()
    assert plane.epochs() == pytest.approx(plan.supervised / task.size)
    assert plan.balanced
    assert not plan.exhausted


def test_the_learner_reports_and_goes_back(tmp_path: Path) -> None:
    task = hand_task(noise=0.01)
    learner, plane = CurveLearner(task, 7), TokenPlane(task, 100)
    before, start = learner.evaluate("test"), learner.evaluate("reward")
    plan = plane.plan(Mixture.of([0.75, 0.25], [[1.0], [1.0]]), Budget(4))
    report = learner.train(plan, PlainStep(), 0.0)
    after, measured = learner.evaluate("test"), learner.evaluate("reward")
    assert report.supervised.ravel().tolist() == [30, 10]
    assert report.source_nll == pytest.approx((before.source_nll + after.source_nll) / 2)
    assert report.step_loss[0] == pytest.approx(report.loss_sum.sum() / 40)
    assert plane.epochs().ravel().tolist() == [0.3, 0.1]
    kept = learner.snapshot()
    learner.save(tmp_path / "learner")
    twin = learner.fork()
    learner.train(plan, PlainStep(), 0.5)
    later = learner.evaluate("reward").loss_sum.tolist()
    assert (learner.evaluate("test").source_nll < after.source_nll).all()
    assert twin.evaluate("reward").loss_sum.tolist() == measured.loss_sum.tolist()
    twin.train(plan, PlainStep(), 0.5)
    assert twin.evaluate("reward").loss_sum.tolist() == later, "its stream goes on by itself"
    for back in (lambda: learner.restore(kept), lambda: learner.load(tmp_path / "learner")):
        back()
        assert learner.evaluate("reward").loss_sum.tolist() == measured.loss_sum.tolist()
        learner.train(plan, PlainStep(), 0.5)
        assert learner.evaluate("reward").loss_sum.tolist() == later
    learner.reset()
    assert learner.evaluate("reward").loss_sum.tolist() == start.loss_sum.tolist()


def test_only_the_reward_split_is_measured_with_noise() -> None:
    quiet, task = hand_task(), hand_task(noise=0.05)
    truth = CurveLearner(quiet).evaluate("reward").nll
    ratio = [CurveLearner(task, seed).evaluate("reward").nll / truth - 1 for seed in range(400)]
    assert np.std(ratio) == pytest.approx(0.05, rel=0.1)
    assert np.mean(ratio) == pytest.approx(0, abs=0.01)
    for split in ("select", "test"):
        assert CurveLearner(task).evaluate(split).nll.tolist() == truth.tolist()
    learner = CurveLearner(task, 3)
    assert (learner.evaluate("reward").nll == learner.evaluate("reward").nll).all(), "idempotent"


def test_learning_rates_are_reported_relative_to_the_fit() -> None:
    task = replace(hand_task(), rate=np.array(2.0), schedule=np.array(LINEAR))
    learner, plane = CurveLearner(task, steps=4), TokenPlane(task, 4)
    mixture = Mixture.of([0.5, 0.5], [[1.0], [1.0]])
    # from 2 to 0 in four steps, each with the mean of its ends
    for steps, rates, last in ((1, 1.75, 1.75), (2, 2.0, 0.75), (1, 0.25, 0.25)):
        report = learner.train(plane.plan(mixture, Budget(steps)), PlainStep(), 0.0)
        assert report.rates == pytest.approx(rates)
        assert report.learning_rate == pytest.approx(last)


def test_a_clock_stands_still_after_the_last_decision() -> None:
    clock = Clock(decisions=3, interval=4, steps=10)
    assert clock.used.tolist() == [0, 4, 8, 10]
    assert clock.steps.tolist() == [4, 4, 2, 0]
    assert clock.done.tolist() == [0, 0.4, 0.8, 1]
    assert clock.steps[clock.at(np.array([0, 2, 3, 9]))].tolist() == [4, 2, 0, 0]


def test_a_count_below_one_is_still_a_mean() -> None:
    learner = CurveLearner(hand_task())
    plan = TokenPlane(hand_task(), 100).plan(
        Mixture.of([1 - 1e-6, 1e-6], [[1.0], [1.0]]), Budget(1)
    )
    report = learner.train(plan, PlainStep(), 0.0)
    assert report.supervised[1, 0] < 1
    assert report.source_nll[1] == pytest.approx(2.5, rel=0.1)


def test_curves_have_no_use_for_sources() -> None:
    options = WorldOptions.model_validate(
        {"sources": {"a": {"path": "a.jsonl"}}, "environment": {"learner": "curves"}}
    )
    with pytest.raises(ConfigError, match="leave sources out"):
        build_environment(options)


@pytest.mark.parametrize(
    "environment",
    [
        {"learner": "causal_lm", "tasks": "train"},
        {"learner": "curves", "tasks": "train", "max_sources": 11},
        {"learner": "curves", "tasks": "train", "max_strata": 3},
    ],
)
def test_sets_of_tasks_are_for_curves_with_room_for_them(environment: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="tasks"):
        build_environment(WorldOptions.model_validate({"environment": environment}))


def test_a_single_task_has_the_same_spaces_for_every_seed() -> None:
    def shape(seed: int) -> tuple[int, ...]:
        options = {"seed": seed, "environment": {"learner": "curves"}, "data": {"strata": 3}}
        return build_environment(WorldOptions.model_validate(options)).world.cell_size.shape

    assert {shape(seed) for seed in range(8)} == {(4, 3)}
