from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.build import build_environment
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.learners.curves import CurveLearner, CurveTask, TokenPlane, sample_task
from mixgym.envs.mixture import Mixture
from mixgym.envs.options import WorldOptions
from mixgym.envs.plan import Budget

SEEDS = st.integers(0, 2**31)


def hand_task() -> CurveTask:
    """Two sources of one stratum: the second one gains half of what the first is given."""
    one = np.ones((2, 1))
    return CurveTask(
        names=("a", "b"),
        targets=np.ones(2),
        size=100 * one,
        floor=0.5 * one,
        amplitude=2.0 * one,
        scale=10.0 * one,
        exponent=0.5 * one,
        transfer=np.array([[1.0, 0.0], [0.5, 1.0]]),
        spread=np.ones((1, 1)),
    )


def test_the_curve_by_hand() -> None:
    task = hand_task()
    assert task.nll(np.zeros((2, 1))).ravel().tolist() == [2.5, 2.5]
    # 30 effective tokens: .5 + 2 / sqrt(4); 15: .5 + 2 / sqrt(2.5)
    assert task.nll(np.array([[30.0], [0.0]])).ravel() == pytest.approx([1.5, 0.5 + 2 / 2.5**0.5])


def test_repeated_tokens_are_worth_less_and_less() -> None:
    task = hand_task()
    passes = np.array([0.5, 1.0, 2.0, 4.0, 16.0, 1000.0])
    worth = [
        10 * (((task.nll(np.array([[100 * n], [0.0]]))[0, 0] - 0.5) / 2) ** -2 - 1) for n in passes
    ]
    assert worth[:2] == pytest.approx([50, 100])
    expected = [100 * (1 + 15 * (1 - np.exp(-(n - 1) / 15))) for n in passes[2:]]
    assert worth[2:] == pytest.approx(expected)
    assert worth[-1] == pytest.approx(1600)


@settings(max_examples=30)
@given(SEEDS)
def test_more_tokens_never_hurt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = sample_task(seed, sources=3, strata=2)
    tokens = rng.uniform(0, 1e6, (3, 2))
    more = tokens + rng.uniform(0, 1e6, (3, 2)) * (rng.random((3, 2)) < 0.5)
    assert (task.nll(more) <= task.nll(tokens) + 1e-12).all()
    assert (task.nll(more) >= task.floor).all()


def test_tasks_are_drawn_by_seed() -> None:
    one, two, other = sample_task(1), sample_task(1), sample_task(2)
    assert np.array_equal(one.size, two.size)
    assert not np.array_equal(one.size, other.size)
    assert one.size.shape == (4, 3)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_tokens_are_handed_out_to_the_last_one(
    seed: int, sources: int, strata: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    plane = TokenPlane(sample_task(seed, sources, strata), 1000)
    weights = rng.dirichlet(np.full(sources, 0.3))
    weights[rng.integers(sources)] = 0.0
    if not weights.any():
        weights[0] = 1.0
    mixture = Mixture(weights / weights.sum(), rng.dirichlet(np.full(strata, 0.3), sources))
    supervised = int(rng.integers(1, 8000))
    plan = plane.plan(mixture, Budget(steps, supervised))
    total = min(steps * 1000, supervised)
    assert plan.supervised.sum() == total
    assert len(plan.steps) == -(-total // 1000)
    assert (np.abs(plan.supervised - mixture.cells * total) < 1 + 1e-6).all()
    assert (plan.supervised[mixture.cells == 0] == 0).all()
    assert plan.balanced
    assert not plan.exhausted


def test_the_learner_reports_and_goes_back(tmp_path: Path) -> None:
    task = hand_task()
    learner, plane = CurveLearner(task), TokenPlane(task, 10)
    before = learner.evaluate("reward")
    plan = plane.plan(Mixture.of([0.75, 0.25], [[1.0], [1.0]]), Budget(4))
    report = learner.train(plan, PlainStep(), 0.0)
    after = learner.evaluate("reward")
    assert report.supervised.ravel().tolist() == [30, 10]
    assert report.source_nll == pytest.approx((before.source_nll + after.source_nll) / 2)
    assert report.step_loss[0] == pytest.approx(report.loss_sum.sum() / 40)
    assert plane.epochs().ravel().tolist() == [0.3, 0.1]
    kept = learner.snapshot()
    learner.save(tmp_path / "learner")
    twin = learner.fork()
    learner.train(plan, PlainStep(), 0.5)
    assert twin.evaluate("reward").source_nll.tolist() == after.source_nll.tolist()
    assert (learner.evaluate("reward").source_nll < after.source_nll).all()
    for back in (lambda: learner.restore(kept), lambda: learner.load(tmp_path / "learner")):
        back()
        assert learner.evaluate("reward").loss_sum.tolist() == after.loss_sum.tolist()
    learner.reset()
    assert learner.evaluate("reward").loss_sum.tolist() == before.loss_sum.tolist()


def test_curves_have_no_use_for_sources() -> None:
    options = WorldOptions.model_validate(
        {"sources": {"a": {"path": "a.jsonl"}}, "environment": {"learner": "curves"}}
    )
    with pytest.raises(ConfigError, match="leave sources out"):
        build_environment(options)
