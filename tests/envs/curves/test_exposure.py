"""What being left out costs a source, against numbers worked by hand and small steps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.curves.dynamics import CurveState, advance, nll
from mixgym.envs.curves.exposure import exposed, rarity_nll, rarity_slope
from mixgym.envs.curves.probes import Seen, target_falls
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.curves.tasks.prior import sample_task

from ..synthetic import hand_task


def strange(fading: float = 0.0, kinship: float = 0.0, begun: float = 1e-9) -> CurveTask:
    """Two sources that cost each other half a nat per e-fold."""
    return replace(
        hand_task(),
        rarity=np.full((2, 1), 0.5),
        kinship=np.full((2, 1), kinship),
        fading=np.array(fading),
        begun=np.array(begun),
    )


def cost(task: CurveTask, *tokens: tuple[float, float]) -> list[float]:
    """Nats that rarity costs both sources after intervals of so many tokens."""
    shown, time = np.zeros(2), np.zeros(())
    for amount in tokens:
        passed = np.array(float(sum(amount)))
        shown, time = exposed(task, shown, np.array(amount)[:, None], passed), time + passed
    return [float(x) for x in rarity_nll(task, shown, time).ravel()]


def test_nothing_before_training_and_nothing_for_a_source_alone() -> None:
    assert cost(strange(begun=10.0)) == [0.0, 0.0]
    assert cost(strange(), (40.0, 0.0))[0] == pytest.approx(0.0)
    assert cost(replace(strange(), rarity=np.zeros((2, 1))), (40.0, 0.0)) == [0.0, 0.0]


def test_a_fixed_mixture_costs_the_logarithm_of_the_share() -> None:
    assert cost(strange(), (10.0, 30.0)) == pytest.approx([0.5 * np.log(4), 0.5 * np.log(4 / 3)])
    # of the other's text a fifth counts: 1/4 + 3/4 / 5 = 0.4
    assert cost(strange(kinship=0.2), (10.0, 30.0))[0] == pytest.approx(0.5 * np.log(1 / 0.4))


def test_a_dropped_source_loses_more_and_more() -> None:
    # only what there was before training counts for it: 10 exp(-T / 20) of 20 (1 - exp(-T / 20))
    # and that, which is linear in time in the end
    task = strange(fading=0.05, begun=10.0)
    seen = [cost(task, (time, 0.0))[1] for time in (20.0, 200.0, 400.0)]
    left = 10 * np.exp(-1)
    assert seen[0] == pytest.approx(0.5 * np.log((20 * (1 - np.exp(-1)) + left) / left))
    assert seen[2] - seen[1] == pytest.approx(0.5 * 0.05 * 200, rel=1e-3)


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_intervals_may_be_cut_anywhere(seed: int) -> None:
    task = replace(strange(fading=0.03, kinship=0.1, begun=5.0))
    amount = np.random.default_rng(seed).uniform(0, 50, 2)
    part = tuple(amount / 4)
    assert cost(task, tuple(amount)) == pytest.approx(cost(task, part, part, part, part))


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_the_slope_is_what_small_steps_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task, shown, time = strange(0.02, 0.3, 4.0), rng.uniform(1, 50, 2), np.array(60.0)
    slope = rarity_slope(task, shown, time)
    for j in range(2):
        step = np.zeros(2)
        step[j] = 1e-4
        fall = rarity_nll(task, shown - step, time) - rarity_nll(task, shown + step, time)
        assert slope[:, j] == pytest.approx(fall[:, 0] / 2e-4, rel=1e-5)


def test_the_worth_of_tokens_counts_what_rarity_costs() -> None:
    plain = sample_task(3, sources=3, strata=1)
    rare = replace(plain, rarity=np.full((3, 1), 0.3), begun=plain.budget * 0.05)
    tokens = plain.budget * np.array([[0.5], [0.5], [0.0]]) * 0.2
    states = [advance(task, CurveState.start(task), tokens) for task in (plain, rare)]
    losses = [nll(task, state) for task, state in zip((plain, rare), states, strict=True)]
    assert (losses[1] - losses[0]).argmax() == 2, "the one that was left out"
    worth = [
        target_falls(Seen(task, state, np.zeros_like(tokens)))
        for task, state in zip((plain, rare), states, strict=True)
    ]
    assert (worth[1] - worth[0]).argmax() == 2, "and it is worth most to show it again"
