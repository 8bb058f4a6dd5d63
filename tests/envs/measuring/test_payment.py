"""The input of a reward, and the book of probes: a batch does what its environments do alone."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from mixgym.envs.measuring.payment import Spent, paid, reward_input
from mixgym.envs.measuring.probe_book import ProbeBook
from mixgym.envs.options import EnvironmentOptions, PenaltyOptions
from mixgym.envs.rewards import REWARDS
from mixgym.envs.spaces.view import View

PROBES = {"bilevel_gain": 1, "gradient_norm": 1, "perplexity_ratio": 2}


def view(rng: np.random.Generator, count: int, sources: int = 3, strata: int = 2) -> View:
    """What ``count`` environments booked, drawn."""
    rows, cells = (count, sources), (count, sources, strata)
    weight = rng.dirichlet(np.ones(sources), count)
    inner = rng.dirichlet(np.ones(strata), rows)
    nll = [rng.uniform(1, 3, rows) for _ in range(3)]
    cell_nll = [rng.uniform(1, 3, cells) for _ in range(3)]
    return View(
        remaining=rng.random(count),
        reward=np.zeros(count),
        targets=np.ones(rows),
        prior=rng.dirichlet(np.ones(sources), count),
        weight=weight,
        share=weight,
        nll=nll[0],
        nll_before=nll[1],
        nll_start=nll[2],
        nll_train=nll[0],
        mean_nll=nll[0].mean(-1),
        mean_nll_start=nll[2].mean(-1),
        cell_size=rng.uniform(10, 100, cells),
        cell_prior=inner,
        cell_weight=inner,
        cell_epochs=rng.uniform(0, 9, cells),
        cell_nll=cell_nll[0],
        cell_nll_before=cell_nll[1],
        cell_nll_start=cell_nll[2],
        cost=np.ones(rows),
        cell_cost=np.ones(cells),
        error=rng.uniform(0.01, 0.1, rows),
        cell_error=rng.uniform(0.01, 0.1, cells),
        available=np.ones(cells, np.bool_),
        probes={
            "bilevel_gain": rng.normal(size=rows),
            "gradient_norm": rng.uniform(1, 2, rows),
            "perplexity_ratio": rng.uniform(0.5, 1, cells),
        },
    )


def one_of(values: Any, index: int) -> Any:
    """The part of one environment."""
    if isinstance(values, dict):
        return {name: part[index] for name, part in values.items()}
    return values[index] if isinstance(values, np.ndarray) else values


def alone(whole: View, index: int) -> View:
    """What one of the environments booked."""
    return View(**{f.name: one_of(getattr(whole, f.name), index) for f in fields(View)})


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_of_a_batch_are_those_of_its_environments(name: str) -> None:
    rng = np.random.default_rng(0)
    whole, kind = view(rng, 4), REWARDS[name]
    penalties = PenaltyOptions(kl_prior=0.1, epochs=0.2, probe_cost=0.3)
    options = EnvironmentOptions(reward=name, penalties=penalties)
    tokens, probed, draws = rng.uniform(10, 99, 4), rng.uniform(1, 9, 4), rng.random((4, 4))
    seconds = rng.uniform(1, 2, 4)
    together = paid(whole, Spent(tokens, probed, seconds, draws), kind, options)
    for i in range(4):
        spent = Spent(tokens[i], probed[i], seconds[i], draws[i])
        reward = paid(alone(whole, i), spent, kind, options)
        assert np.asarray(together.value)[i] == pytest.approx(float(reward.value), abs=1e-12)
        assert together.local[i] == pytest.approx(reward.local, nan_ok=True)
        assert together.components.keys() == reward.components.keys()


def test_the_input_by_hand() -> None:
    seen = view(np.random.default_rng(1), 2)
    options = EnvironmentOptions(reward="log_utility")
    found = reward_input(seen, Spent(np.array([10.0, 20.0]), 6.0), REWARDS["log_utility"], options)
    assert found.probe_cost == pytest.approx([6 / 30, 6 / 60])  # training counts thrice
    assert found.before is seen.nll_before
    assert found.strata is seen.cell_weight
    epochs = (seen.cell_epochs * seen.cell_size).sum(-1) / seen.cell_size.sum(-1)
    assert found.epochs == pytest.approx(epochs)
    assert found.gains is None, "this reward reads no gains"
    plain = reward_input(replace(seen, probes=None), Spent(1.0), REWARDS["progress"], options)
    assert plain.source_probe is None


def test_a_book_of_many_environments_is_as_many_books() -> None:
    rng = np.random.default_rng(2)
    many = ProbeBook(PROBES, (3, 2), (2,))
    ones = [ProbeBook(PROBES, (3, 2)) for _ in range(2)]
    decisions = np.array([0, 1])  # out of step
    for _ in range(5):
        decisions = decisions + 1
        due = many.due(decisions)
        found = {name: rng.normal(size=many.values[name].shape) for name in due}
        many.enter(found, due)
        for i, book in enumerate(ones):
            mine = book.due(int(decisions[i]))
            book.enter({name: found[name][i] for name in mine})
    many.clear(np.array([False, True]))
    ones[1].clear()
    for i, book in enumerate(ones):
        assert many.age[i].tolist() == book.age.tolist()
        assert {n: bool(w[i]) for n, w in many.fresh.items()} == {
            n: bool(w) for n, w in book.fresh.items()
        }
        for name, values in book.values.items():
            np.testing.assert_array_equal(many.values[name][i], values)
    again = ProbeBook(PROBES, (3, 2), (2,))
    again.set_state(many.state())
    assert again.age.tolist() == many.age.tolist()
