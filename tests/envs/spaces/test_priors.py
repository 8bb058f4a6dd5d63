"""Priors by their word: numbers worked by hand, and one mixture in batches and alone."""

import numpy as np
import pytest

from mixgym.envs.build import _make_prior
from mixgym.envs.curves.task_tables import priors
from mixgym.envs.curves.tasks.sets import drawn, named_tasks, stacked
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.priors import POOL, cost_power, prior_weights

ONES = np.ones(2)


def shares(size, cost, target, **options):
    return cost_power(
        np.array(size, float), np.array(cost, float), np.array(target, float), **options
    )


def test_sizes_and_costs_by_hand():
    half = {"size_exponent": 0.5, "cost_exponent": 0.5}
    assert shares([1, 16], [1, 1], [1, 1], **half).tolist() == pytest.approx([0.2, 0.8])
    assert shares([1, 1], [1, 16], [1, 1], **half).tolist() == pytest.approx([0.8, 0.2])
    assert shares([4, 4], [2, 8], [1, 1], size_exponent=0, cost_exponent=1).tolist() == (
        pytest.approx([0.8, 0.2])
    )


def test_an_unknown_cost_is_the_geometric_mean_of_the_known_ones():
    found = shares([1, 1, 1], [1, 16, 0], [1, 1, 1], cost_exponent=0.5)
    assert found.tolist() == pytest.approx((np.array([1, 0.25, 0.5]) / 1.75).tolist())


def test_what_does_not_count_keeps_the_pool_and_what_cannot_be_trained_on_nothing():
    assert shares([1, 1], [1, 1], [1, 0]).tolist() == pytest.approx(
        [1 / (1 + POOL), POOL / (1 + POOL)]
    )
    assert shares([1, 1], [1, 1], [1, 0], pool=0).tolist() == [1, 0]
    assert shares([1, 1], [1, 1], [0, 0], pool=0).tolist() == [0.5, 0.5], "none counts"
    assert shares([0, 1], [1, 1], [1, 0], pool=0).tolist() == [0, 1], (
        "the other cannot be trained on"
    )
    assert prior_weights("uniform", np.array([0.0, 3.0]), ONES, ONES).tolist() == [0, 1]
    assert prior_weights("proportional", np.array([1.0, 3.0]), ONES, ONES).tolist() == [1, 3]


@pytest.mark.parametrize("word", ["uniform", "proportional", "cost_power"])
def test_batches_have_the_priors_of_single_environments(word):
    tasks = list(named_tasks("world-validation"))[:6]
    options = EnvironmentOptions(learner="curves", prior=word)
    top, inner = priors(stacked(tasks, 12, 4), options)
    for row, cells, seed in zip(top, inner, tasks, strict=True):
        task = drawn(seed)
        alone = _make_prior(task.names, task.size, task.source_cost, task.targets, options)
        sources, groups = task.size.shape
        assert row[:sources] == pytest.approx(alone.sources)
        assert not row[sources:].any()
        assert cells[:sources, :groups] == pytest.approx(alone.strata)
