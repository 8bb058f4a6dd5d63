"""One level of HBO: updates as the paper and its code make them, masks, trust region, sharing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.agents.hbo.level import Level, LevelState, LevelView, divergence, make_actor
from mixgym.agents.hbo.settings import GlobalOptions, LocalOptions
from mixgym.envs.arrays import FloatArray

P = np.array([[0.5, 0.3, 0.2]])
R = np.array([[2.0, 1.0, 1.0]])


def view_of(prior: FloatArray, features: int = 0) -> LevelView:
    random = np.random.default_rng(0)
    return LevelView(random.standard_normal((*prior.shape, features)), prior > 0, prior)


def level(**options: Any) -> Level:
    read = GlobalOptions(**options)
    return Level(read, make_actor(read, "global"))


def updated(
    own: Level, view: LevelView, *rewards: FloatArray, seed: int = 0
) -> tuple[FloatArray, LevelState]:
    state = own.start(view, np.random.default_rng(0))
    for count, values in enumerate(rewards):
        state, _ = own.update(state, view, values, np.random.default_rng([seed, count]))
    return own.weights(state, view), state


def test_the_papers_step_on_a_table() -> None:
    weights, _ = updated(level(learning_rate=0.1), view_of(P), R)
    np.testing.assert_allclose(weights, [[0.500952, 0.294619, 0.204429]], atol=1e-6)


def test_before_any_update_the_weights_are_the_prior() -> None:
    for options in ({}, {"actor": "mlp"}, {"floor": 0.3}):
        weights, _ = updated(level(**options), view_of(P, 2))
        np.testing.assert_allclose(weights, P, atol=1e-12)


def test_the_released_update_moves_every_logit_by_about_two_hundredths() -> None:
    released = level(optimizer="adam", learning_rate=1e-4, inner_steps=200)
    view = view_of(np.full((1, 4), 0.25))
    _, state = updated(released, view, np.array([[0.1, 0.9, 1.1, 5.0]]))
    np.testing.assert_allclose(np.abs(state.parameters), 0.02, rtol=0.1)
    np.testing.assert_array_equal(np.sign(state.parameters), [[-1, -1, -1, 1]])


def test_adams_state_lives_on_or_not() -> None:
    view = view_of(np.full((1, 4), 0.25))
    up, down = np.array([[0.5, 1.0, 1.0, 1.5]]), np.array([[1.5, 1.0, 1.0, 0.5]])
    common = {"optimizer": "adam", "learning_rate": 1e-3, "inner_steps": 5}
    kept, state = updated(level(**common), view, up, down)
    fresh, _ = updated(level(**common, keep_state=False), view, up, down)
    assert state.moments.steps[0] == 10
    np.testing.assert_allclose(fresh, 0.25, atol=1e-4)  # there and back again
    assert np.abs(kept - fresh).max() > 1e-4


def test_at_the_starting_model_every_ratio_is_one_and_nothing_moves() -> None:
    uniform = np.full((1, 4), 0.25)
    for options in (
        {"learning_rate": 0.1},
        {"optimizer": "adam", "learning_rate": 1e-4, "inner_steps": 200},
        {"update": "closed_form"},
    ):
        weights, _ = updated(level(**options, normalize="mean"), view_of(uniform), np.ones((1, 4)))
        np.testing.assert_array_equal(weights, uniform)


@pytest.mark.parametrize("actor", ["table", "mlp"])
@pytest.mark.parametrize("update", ["enumerated", "closed_form"])
def test_actors_come_to_rest_at_the_share_of_rewards(actor: str, update: str) -> None:
    own = level(actor=actor, update=update, optimizer="adam", learning_rate=0.02, inner_steps=300)
    weights, _ = updated(own, view_of(P, 4), *[R] * 4)
    np.testing.assert_allclose(weights, R / R.sum(), atol=5e-3)


@pytest.mark.parametrize("update", ["sampled_importance_weighted", "sampled", "expected"])
def test_other_updates_go_where_they_should(update: str) -> None:
    own = level(update=update, learning_rate=0.02, inner_steps=2000, normalize="mean")
    weights, _ = updated(own, view_of(P), R)
    rest = R / R.sum() if "weighted" in update else np.array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(weights, rest, atol=0.2)


def test_draws_depend_on_the_stream_that_is_passed() -> None:
    own = level(update="sampled", learning_rate=0.1)
    first, _ = updated(own, view_of(P), R, R, seed=1)
    again, _ = updated(own, view_of(P), R, R, seed=1)
    other, _ = updated(own, view_of(P), R, R, R, seed=3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_units_that_do_not_exist_get_nothing_and_change_nothing() -> None:
    wide = np.concatenate([P, np.zeros((1, 2))], axis=-1)
    rewards = np.concatenate([R, np.full((1, 2), 7.0)], axis=-1)
    for options in ({"learning_rate": 0.1, "normalize": "mean"}, {"update": "closed_form"}):
        narrow, _ = updated(level(**options), view_of(P), R)
        found, _ = updated(level(**options), view_of(wide), rewards)
        np.testing.assert_allclose(found[:, :3], narrow, atol=1e-12)
        assert (found[:, 3:] == 0).all()


def test_nothing_moves_where_nothing_is_known() -> None:
    both = np.concatenate([P, P])
    rewards = np.concatenate([R, np.full((1, 3), np.nan)])
    own = level(learning_rate=0.1)
    state = own.start(view_of(both), np.random.default_rng(0))
    after, moved = own.update(state, view_of(both), rewards, np.random.default_rng(0))
    assert (after.parameters[0] != 0).any()
    assert (after.parameters[1] == 0).all()
    assert np.isfinite(moved[0]).all()
    assert np.isnan(moved[1]).all()


def test_moving_average_starts_at_one() -> None:
    own = level(ema=0.9, learning_rate=0.1)
    view = view_of(np.ones((1, 1)))
    state = own.start(view, np.random.default_rng(0))
    for reward, average in ((3.0, 2.8), (2.0, 2.08)):
        state, moved = own.update(state, view, np.array([[reward]]), np.random.default_rng(0))
        assert moved[0, 0] == pytest.approx(average)


@given(st.floats(1e-4, 0.2), st.sampled_from(["enumerated", "expected", "closed_form"]))
def test_an_update_stays_in_its_trust_region(radius: float, update: str) -> None:
    own = level(update=update, learning_rate=1.0, inner_steps=3, trust_region=radius)
    rewards = np.array([[9.0, 1.0, 0.1]])
    weights, state = updated(own, view_of(P), rewards)
    assert divergence(weights, P)[0] <= radius * (1 + 1e-9)
    assert (state.parameters != 0).any()


def test_rewards_within_their_noise_move_nothing() -> None:
    uniform = np.full((1, 4), 0.25)
    own = level(update="closed_form", learning_rate=0.5, significance=2.0)
    there, back = np.array([[0.9, 1.1, 1.0, 1.0]]), np.array([[1.1, 0.9, 1.0, 1.0]])
    one, _ = updated(own, view_of(uniform), there)
    two, _ = updated(own, view_of(uniform), there, back)
    np.testing.assert_array_equal(one, two)
    steady, _ = updated(own, view_of(uniform), there, there)
    assert np.abs(steady - one).max() > 1e-3


def test_a_floor_keeps_a_share_of_the_prior() -> None:
    own = level(update="expected", learning_rate=5.0, inner_steps=200, floor=0.1)
    weights, _ = updated(own, view_of(P), R)
    np.testing.assert_allclose(weights, 0.9 * np.array([[1, 0, 0]]) + 0.1 * P, atol=1e-2)
    assert weights.sum() == pytest.approx(1)


def test_environments_and_sources_do_not_disturb_each_other() -> None:
    random = np.random.default_rng(5)
    prior = random.dirichlet(np.ones(4), (3, 2))
    rewards = random.uniform(0.5, 2, (3, 2, 4))
    options = LocalOptions(actor="mlp", learning_rate=0.1, inner_steps=3)
    own = Level(options, make_actor(options, "local"))
    view = view_of(prior, 5)
    whole, _ = updated(own, view, rewards)
    for i in range(3):
        alone = LevelView(view.features[i : i + 1], view.mask[i : i + 1], prior[i : i + 1])
        one, _ = updated(own, alone, rewards[i : i + 1])
        np.testing.assert_allclose(whole[i], one[0], atol=1e-12)


def test_shared_actors_move_by_the_mean_of_the_sources_that_have_rewards() -> None:
    prior = np.full((1, 3, 4), 0.25)
    rewards = np.array([[[1.0, 2, 3, 4], [4, 3, 2, 1], [np.nan] * 4]])
    options = LocalOptions(learning_rate=0.1, shared=True)
    own = Level(options, make_actor(options, "local"), shared=True)
    weights, state = updated(own, view_of(prior), rewards)
    assert state.parameters.shape == (1, 1, 4)
    np.testing.assert_allclose(weights, 0.25, atol=1e-12)  # the two cancel
    rewards[0, 1] = np.nan
    moved, _ = updated(own, view_of(prior), rewards)
    separate = LocalOptions(learning_rate=0.1)
    alone, _ = updated(Level(separate, make_actor(separate, "local")), view_of(prior), rewards)
    np.testing.assert_allclose(moved, np.broadcast_to(alone[:, :1], moved.shape), atol=1e-12)


def test_equal_rewards_times_the_prior_are_the_prior() -> None:
    own = level(update="closed_form", learning_rate=1.0, times_prior=True, normalize="mean")
    even, _ = updated(own, view_of(P), np.full((1, 3), 7.0))
    np.testing.assert_allclose(even, P, atol=1e-12)
    weights, _ = updated(own, view_of(P), R)
    np.testing.assert_allclose(weights, P * R / (P * R).sum(), atol=1e-12)


def test_warm_start_by_regression() -> None:
    own = level(warm_start="mse_fit", learning_rate=1e-2)
    weights, state = updated(own, view_of(P))
    assert ((weights - P) ** 2).mean() <= 1e-10
    assert state.moments.steps[0] > 0
