"""The update rules against hand-worked numbers, finite differences and their own invariants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mixgym.agents.hbo.schedule import due, updates
from mixgym.agents.hbo.shaping import (
    averaged,
    differs,
    known_or_mean,
    normalised,
    sharpened,
    temperature_prior,
)
from mixgym.agents.hbo.updates import UPDATES, one_hot_draw, softmax
from mixgym.envs.arrays import FloatArray

P = np.array([0.5, 0.3, 0.2])
R = np.array([2.0, 1.0, 1.0])
ARM_DRAWS = (0.25, 0.65, 0.9)  # uniform draws that choose arm 0, 1, 2
ALL = np.ones(3, np.bool_)
NO_DRAW = np.zeros(())


def step(name: str, draw: float = 0.0, rewards: FloatArray = R, rate: float = 0.1) -> FloatArray:
    gradient = UPDATES[name].gradient(P, rewards, np.array(draw))
    return softmax(np.log(P) + rate * gradient, ALL)


def test_enumerated_is_the_papers_update() -> None:
    gradient = UPDATES["enumerated"].gradient(P, R, NO_DRAW)
    np.testing.assert_allclose(gradient, [0, -0.2, 0.2], atol=1e-12)
    np.testing.assert_allclose(
        np.log(P) + 0.1 * gradient, [-0.693147, -1.223973, -1.589438], atol=1e-6
    )
    np.testing.assert_allclose(step("enumerated"), [0.500952, 0.294619, 0.204429], atol=1e-6)


def test_enumerated_with_another_reward() -> None:
    rewards = np.array([3.0, 1.0, 1.0])
    gradient = UPDATES["enumerated"].gradient(P, rewards, NO_DRAW)
    np.testing.assert_allclose(gradient, [0.5, -0.5, 0], atol=1e-12)
    np.testing.assert_allclose(
        step("enumerated", rewards=rewards), [0.519914, 0.282263, 0.197823], atol=1e-6
    )


def test_expected_is_the_policy_gradient_proper_and_prefers_otherwise() -> None:
    gradient = UPDATES["expected"].gradient(P, R, NO_DRAW)
    np.testing.assert_allclose(gradient, [0.25, -0.15, -0.1], atol=1e-12)
    np.testing.assert_allclose(step("expected"), [0.509498, 0.293712, 0.196790], atol=1e-6)


@pytest.mark.parametrize(
    ("arm", "gradient", "after"),
    [
        (0, [1, -0.6, -0.4], [0.537915, 0.275029, 0.187056]),
        (1, [-0.5, 0.7, -0.2], [0.478771, 0.323888, 0.197341]),
        (2, [-0.5, -0.3, 0.8], [0.483640, 0.296046, 0.220313]),
    ],
)
def test_sampled(arm: int, gradient: list[float], after: list[float]) -> None:
    found = UPDATES["sampled"].gradient(P, R, np.array(ARM_DRAWS[arm]))
    np.testing.assert_allclose(found, gradient, atol=1e-12)
    np.testing.assert_allclose(step("sampled", ARM_DRAWS[arm]), after, atol=1e-6)


@pytest.mark.parametrize(
    ("arm", "gradient"),
    [
        (0, [2, -1.2, -0.8]),
        (1, [-1.666667, 2.333333, -0.666667]),
        (2, [-2.5, -1.5, 4]),
    ],
)
def test_importance_weighted(arm: int, gradient: list[float]) -> None:
    found = UPDATES["sampled_importance_weighted"].gradient(P, R, np.array(ARM_DRAWS[arm]))
    np.testing.assert_allclose(found, gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("sampling", "exact"),
    [("sampled", "expected"), ("sampled_importance_weighted", "enumerated")],
)
def test_the_mean_of_a_sampled_rule_is_its_exact_one(sampling: str, exact: str) -> None:
    drawn = [UPDATES[sampling].gradient(P, R, np.array(draw)) for draw in ARM_DRAWS]
    mean = sum(weight * gradient for weight, gradient in zip(P, drawn, strict=True))
    np.testing.assert_allclose(mean, UPDATES[exact].gradient(P, R, NO_DRAW), atol=1e-12)


@pytest.mark.parametrize(
    ("rewards", "shifts", "after"),
    [
        (
            [0.625, 0.875, 1.125, 1.375],
            [-0.0375, -0.0125, 0.0125, 0.0375],
            [0.240705, 0.246798, 0.253046, 0.259452],
        ),
        (
            [0.5, 0.7, 0.9, 1.1],
            [-0.03, -0.01, 0.01, 0.03],
            [0.242551, 0.247451, 0.252449, 0.257549],
        ),
    ],
)
def test_local_update(rewards: list[float], shifts: list[float], after: list[float]) -> None:
    uniform, mask = np.full(4, 0.25), np.ones(4, np.bool_)
    moved = 0.1 * UPDATES["enumerated"].gradient(uniform, np.array(rewards), NO_DRAW)
    np.testing.assert_allclose(moved, shifts, atol=1e-12)
    np.testing.assert_allclose(softmax(np.log(uniform) + moved, mask), after, atol=1e-6)


def test_enumerated_matches_finite_differences_of_its_objective() -> None:
    logits, rewards = np.array([0.1, -0.2, 0.3]), np.array([1.5, 0.5, 2.0])

    def objective(z: FloatArray) -> float:
        return float((rewards * (z - np.log(np.exp(z).sum()))).sum())

    gradient = UPDATES["enumerated"].gradient(softmax(logits, ALL), rewards, NO_DRAW)
    np.testing.assert_allclose(gradient, [0.149662, -0.500355, 0.350693], atol=1e-6)
    for k, unit in enumerate(np.eye(3)):
        slope = (objective(logits + 1e-5 * unit) - objective(logits - 1e-5 * unit)) / 2e-5
        assert gradient[k] == pytest.approx(slope, abs=1e-6)


rewards_of_five = arrays(np.float64, 5, elements=st.floats(0.1, 10))
logits_of_five = arrays(np.float64, 5, elements=st.floats(-3, 3))


@given(rewards_of_five, logits_of_five)
def test_enumerated_invariants(rewards: FloatArray, logits: FloatArray) -> None:
    mask = np.ones(5, np.bool_)
    weights = softmax(logits, mask)
    rule = UPDATES["enumerated"].gradient
    gradient = rule(weights, rewards, NO_DRAW)
    assert gradient.sum() == pytest.approx(0, abs=1e-9)
    rest = rule(rewards / rewards.sum(), rewards, NO_DRAW)
    np.testing.assert_allclose(rest, 0, atol=1e-12)
    np.testing.assert_allclose(rule(weights, 3 * rewards, NO_DRAW), 3 * gradient, atol=1e-9)
    shifted = rule(weights, rewards + 2, NO_DRAW)
    np.testing.assert_allclose(shifted - gradient, 2 * (1 - 5 * weights), atol=1e-9)


@given(rewards_of_five, logits_of_five)
def test_a_constant_reward_does_not_change_the_expected_gradient(
    rewards: FloatArray, logits: FloatArray
) -> None:
    weights = softmax(logits, np.ones(5, np.bool_))
    rule = UPDATES["expected"].gradient
    np.testing.assert_allclose(
        rule(weights, rewards + 2, NO_DRAW), rule(weights, rewards, NO_DRAW), atol=1e-9
    )


@given(rewards_of_five, logits_of_five, st.floats(0.05, 1))
def test_closed_form_is_geometric_tracking(
    rewards: FloatArray, logits: FloatArray, rate: float
) -> None:
    mask = np.ones(5, np.bool_)
    weights = softmax(logits, mask)
    gradient = UPDATES["closed_form"].gradient(weights, rewards, NO_DRAW)
    moved = softmax(np.log(weights) + rate * gradient, mask)
    other = weights ** (1 - rate) * (rewards / rewards.sum()) ** rate
    np.testing.assert_allclose(moved, other / other.sum(), atol=1e-9)


def test_closed_form_bears_rewards_that_are_not_positive() -> None:
    gradient = UPDATES["closed_form"].gradient(P, np.array([-1.0, 0.0, 3.0]), NO_DRAW)
    moved = softmax(np.log(P) + gradient, ALL)
    assert np.isfinite(moved).all()
    assert moved[2] > 0.99


@pytest.mark.parametrize("name", UPDATES)
def test_masked_units_do_not_move_and_do_not_count(name: str) -> None:
    mask = np.array([True, True, True, False])
    weights, rewards = np.append(P, 0.0), np.append(R, 0.0)
    wide = UPDATES[name].gradient(weights, rewards, np.array(0.65))
    narrow = UPDATES[name].gradient(P, R, np.array(0.65))
    np.testing.assert_allclose(wide[:3], narrow, atol=1e-12)
    assert softmax(np.append(np.log(P), 5.0) + wide, mask)[3] == 0


@pytest.mark.parametrize("name", UPDATES)
def test_rules_are_batched(name: str) -> None:
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(4), (3, 2))
    rewards, draws = random.uniform(0.1, 2, (3, 2, 4)), random.random((3, 2))
    whole = UPDATES[name].gradient(weights, rewards, draws)
    for index in np.ndindex(3, 2):
        one = UPDATES[name].gradient(weights[index], rewards[index], draws[index])
        np.testing.assert_array_equal(whole[index], one)


def test_units_are_drawn_as_often_as_their_weight_says() -> None:
    draws = np.random.default_rng(0).random(20_000)
    counts = one_hot_draw(np.broadcast_to(P, (20_000, 3)), draws)
    np.testing.assert_array_equal(counts.sum(-1), 1)
    np.testing.assert_allclose(counts.mean(0), P, atol=0.015)


def test_mean_normalisation() -> None:
    rewards, mask = np.array([0.5, 0.7, 0.9, 1.1]), np.ones(4, np.bool_)
    found = normalised(rewards, mask, "mean")
    np.testing.assert_allclose(found, [0.625, 0.875, 1.125, 1.375], atol=1e-12)
    assert found.sum() == pytest.approx(4)
    np.testing.assert_allclose(normalised(7 * rewards, mask, "mean"), found, atol=1e-12)


def test_other_normalisations() -> None:
    rewards, mask = np.array([1.0, 3.0, 100.0]), np.array([True, True, False])
    rewards = known_or_mean(rewards, mask)
    np.testing.assert_allclose(normalised(rewards, mask, "sum"), [0.25, 0.75, 0], atol=1e-12)
    np.testing.assert_allclose(normalised(rewards, mask, "zscore"), [-1, 1, 0], atol=1e-12)
    np.testing.assert_array_equal(normalised(rewards, mask, "none"), [1, 3, 0])
    flat = np.zeros(3)
    for how in ("mean", "sum", "zscore"):
        np.testing.assert_array_equal(normalised(flat, mask, how), flat)


def test_unknown_rewards_are_the_mean_of_the_known() -> None:
    mask = np.array([True, True, True, False])
    found = known_or_mean(np.array([1.0, np.nan, 3.0, 9.0]), mask)
    np.testing.assert_array_equal(found, [1, 2, 3, 0])
    np.testing.assert_array_equal(known_or_mean(np.full(4, np.nan), mask), np.zeros(4))


def test_moving_average_weighs_the_new_value() -> None:
    first = averaged(np.array([3.0]), np.ones(1), 0.9)
    np.testing.assert_allclose(first, 2.8)
    np.testing.assert_allclose(averaged(np.array([2.0]), first, 0.9), 2.08)


def test_a_power_sharpens_and_drops_what_is_negative() -> None:
    np.testing.assert_array_equal(sharpened(np.array([2.0, -1.0]), 2.0), [4, 0])
    np.testing.assert_array_equal(sharpened(np.array([2.0, -1.0]), 1.0), [2, -1])


def test_differences_within_the_noise_are_no_differences() -> None:
    mask = np.ones(4, np.bool_)
    random = np.random.default_rng(0)
    means = np.array([0.9, 1.0, 1.0, 1.1])
    quiet = means + 0.001 * random.standard_normal((200, 2, 4))
    loud = np.ones(4) + 0.3 * random.standard_normal((200, 2, 4))
    assert differs(quiet[:, 1], quiet[:, 0], mask, 2.0).all()
    assert differs(loud[:, 1], loud[:, 0], mask, 2.0).mean() < 0.2
    assert differs(loud[:, 1], loud[:, 0], mask, 0.0).all()
    assert differs(means, np.full(4, np.nan), mask, 2.0)


ML_SIZES = np.array([273, 12, 6, 15, 1, 49, 0.578, 102])
MT_SIZES = np.array([1196.0, 393, 256, 409])


@pytest.mark.parametrize(
    ("sizes", "tau", "prior"),
    [
        (np.array([80.0, 20.0]), 1, [0.8, 0.2]),
        (np.array([80.0, 20.0]), 2, [0.666667, 0.333333]),
        (np.array([80.0, 20.0]), np.inf, [0.5, 0.5]),
        (
            ML_SIZES,
            1,
            [0.59532, 0.02617, 0.01308, 0.03271, 0.00218, 0.10685, 0.00126, 0.22243],
        ),
        (
            ML_SIZES,
            10,
            [0.16606, 0.12150, 0.11336, 0.12424, 0.09477, 0.13986, 0.08971, 0.15049],
        ),
        (ML_SIZES, np.inf, [0.125] * 8),
        (MT_SIZES, 1, [0.53061, 0.17436, 0.11358, 0.18146]),
        (MT_SIZES, 10, [0.27397, 0.24511, 0.23483, 0.24609]),
    ],
)
def test_temperature_prior(sizes: FloatArray, tau: float, prior: list[float]) -> None:
    np.testing.assert_allclose(temperature_prior(sizes, tau), prior, atol=5.1e-6)


def test_absent_units_have_no_prior() -> None:
    sizes = np.array([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    for tau in (1.0, 2.0, np.inf):
        prior = temperature_prior(sizes, tau)
        assert prior[0, 1] == 0
        assert prior[0].sum() == pytest.approx(1)
        assert prior[1].sum() == 0


def count(level: str, last: int, *periods: int, at_start: bool = False) -> int:
    return sum(name == level for _, name in updates(last, *periods, at_start=at_start))


def test_schedule_counts() -> None:
    assert count("global", 400, 200, 200) == 2
    assert count("local", 400, 200, 200) == 2  # once per update point, whatever the micro-steps
    assert count("global", 400, 200, 200, at_start=True) == 3
    assert count("global", 399, 200, 200, at_start=True) == 2
    assert (count("global", 400, 200, 100), count("local", 400, 200, 100)) == (2, 4)


def test_the_global_actor_comes_first() -> None:
    shared = [level for at, level in updates(400, 200, 100) if at in (200, 400)]
    assert shared == ["global", "local"] * 2
    assert not due(0, 3, at_start=False)
    assert due(0, 3, at_start=True)
    assert [t for t in range(10) if due(t, 3, at_start=False)] == [3, 6, 9]
