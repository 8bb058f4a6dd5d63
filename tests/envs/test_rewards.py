from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.measuring.payment import penalised
from mixgym.envs.options import PenaltyOptions
from mixgym.envs.rewards import (
    REWARDS,
    RewardInput,
    as_reward,
    drawn,
    linear_of,
    log_utility_of,
    make_reward,
    progress,
    relative,
    target_mean,
)

SEEDS = st.integers(0, 2**31)


def test_progress_by_hand() -> None:
    before, after = np.array([2.0, 4.0, np.nan]), np.array([1.0, 4.5, np.nan])
    reward = progress(RewardInput(before, after, np.array([3.0, 1.0, 5.0])))
    # (3 * 2 + 4) / 4 - (3 * 1 + 4.5) / 4
    assert reward.value == pytest.approx(2.5 - 1.875)
    assert reward.local[:2].tolist() == [1.0, -0.5]
    assert np.isnan(reward.local[2])
    assert reward.components == {"progress": reward.value}


def test_a_target_of_zero_counts_for_nothing() -> None:
    targets = np.array([1.0, 0.0])
    rewards = {
        progress(RewardInput(np.array([2.0, a]), np.array([1.5, b]), targets)).value
        for a, b in ((1.0, 9.0), (9.0, 1.0), (np.nan, np.nan))
    }
    assert rewards == {0.5}


def test_a_target_that_is_not_measured_is_left_out() -> None:
    assert target_mean(np.array([1.0, np.nan]), np.array([1.0, 3.0])) == 1.0


def test_no_measured_target_is_an_error() -> None:
    with pytest.raises(SourceError, match="no source with a target above 0 has held-out rows"):
        target_mean(np.array([1.0, np.nan]), np.array([0.0, 3.0]))


def test_rewards_by_name() -> None:
    assert make_reward("progress") is REWARDS["progress"]
    with pytest.raises(ConfigError, match=r"environment\.reward=speed: unknown reward; .*progress"):
        make_reward("speed")


P, R = np.array([0.5, 0.3, 0.2]), np.array([2.0, 1.0, 1.0])


def test_utilities_by_hand() -> None:
    assert log_utility_of(P, R) == pytest.approx(-1.049926, abs=1e-6)
    assert log_utility_of(relative(R), R) == pytest.approx(-1.039721, abs=1e-6)
    assert linear_of(P, R) * R.mean() == pytest.approx(1.5)
    assert linear_of(P, np.full(3, 7.0)) == pytest.approx(1.0)


@given(SEEDS)
def test_the_optimum_of_log_utility_is_the_relative_reward(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.uniform(0.1, 3, (4, 5)), rng.dirichlet(np.ones(5), 4)
    best = relative(values)
    gap = log_utility_of(best, values) - log_utility_of(weights, values)
    kl = (best * np.log(best / np.maximum(weights, 1e-6))).sum(-1)
    assert gap == pytest.approx(kl)
    assert (gap >= -1e-12).all()
    assert log_utility_of(weights, 3 * values) == pytest.approx(log_utility_of(weights, values))
    one_hot = np.eye(5)[values.argmax(-1)]
    assert (linear_of(one_hot, values) >= linear_of(weights, values) - 1e-12).all()


def test_progress_by_hand_telescopes() -> None:
    path = np.array([[2, 3, 1], [1.8, 2.5, 1], [1.5, 2.4, 1.1]])
    found = [
        progress(RewardInput(path[i], path[i + 1], np.ones(3))).value for i in range(len(path) - 1)
    ]
    assert found == pytest.approx([0.233333, 0.1], abs=1e-6)
    assert sum(found) == pytest.approx(0.333333, abs=1e-6)


def test_the_worst_target_and_the_normalised_fall_by_hand() -> None:
    seen = RewardInput(
        before=np.array([2.0, 3.0, 9.0]),
        after=np.array([1.5, 1.0, 8.0]),
        targets=np.array([1.0, 3.0, 0.0]),
        start=np.array([4.0, 5.0, 9.0]),
    )
    assert REWARDS["worst"].compute(seen).value == 3.0 - 1.5
    normalised = REWARDS["progress_normalised"].compute(seen)
    assert normalised.value == pytest.approx((0.5 / 4 + 3 * 2.0 / 5) / 4)
    assert normalised.local == pytest.approx([0.125, 0.4, 1 / 9])


def two_levels(**changes: Any) -> RewardInput:
    parts: dict[str, Any] = {
        "before": np.zeros(2),
        "after": np.zeros(2),
        "targets": np.array([1.0, 3.0]),
        "weight": np.array([0.5, 0.5]),
        "strata": np.array([[0.5, 0.5], [1.0, 0.0]]),
        "prior": np.array([0.5, 0.5]),
        "prior_strata": np.array([[0.5, 0.5], [1.0, 0.0]]),
        "source_probe": np.array([3.0, 1.0]),
        "stratum_probe": np.array([[1.0, 3.0], [2.0, np.nan]]),
        "draws": np.array([0.7, 0.2, 0.9]),
        "epochs": np.array([5.0, 1.0]),
        "probe_cost": 0.25,
    }
    return RewardInput(**{**parts, **changes})


def test_both_levels_of_the_utilities_by_hand() -> None:
    seen = two_levels()
    found = REWARDS["log_utility"].compute(seen)
    assert found.local == pytest.approx([np.log(0.5), 0.0])
    assert found.components == pytest.approx(
        {"log_utility_sources": np.log(0.5), "log_utility_strata": np.log(0.5) / 4}
    )
    found = REWARDS["linear"].compute(seen)
    assert found.components == pytest.approx({"linear_sources": 1.0, "linear_strata": 1.0})
    found = REWARDS["arm"].compute(seen)
    # draws fall into the second source, the first stratum of the first, the only one of the second
    assert found.components == pytest.approx({"arm_sources": 0.5, "arm_strata": 1.0})
    assert found.local == pytest.approx([0.5, 1.0])


def test_probes_that_are_unknown_pay_nothing() -> None:
    unknown = {"source_probe": np.full(2, np.nan), "stratum_probe": np.full((2, 2), np.nan)}
    for name in ("log_utility", "linear", "arm"):
        assert REWARDS[name].compute(two_levels(**unknown)).value == 0.0


def test_arms_are_drawn_as_often_as_their_weight() -> None:
    draws = (np.arange(1000) + 0.5) / 1000
    counts = drawn(np.broadcast_to(P, (1000, 3)), draws[:, None]).sum(0)
    assert counts.tolist() == [500, 300, 200]
    assert drawn(np.array([0.0, 1.0, 0.0]), np.array([0.0])).tolist() == [0, 1, 0]
    values = np.broadcast_to(R, (1000, 3))
    one_hot = drawn(np.broadcast_to(P, (1000, 3)), draws[:, None])
    assert linear_of(one_hot, values).mean() == pytest.approx(linear_of(P, R))


def test_logarithms_are_no_rewards() -> None:
    values = np.array([-1.0, 0.0])
    assert as_reward("nll_difference", values) == pytest.approx(np.exp(values))
    assert as_reward("perplexity_ratio", values) is values


def test_penalties_by_hand() -> None:
    seen = two_levels(weight=np.array([0.8, 0.2]), strata=np.array([[0.25, 0.75], [1.0, 0.0]]))
    plain = REWARDS["linear"].compute(seen)
    assert penalised(plain, seen, PenaltyOptions()) is plain
    asked = PenaltyOptions(kl_prior=2.0, epochs=0.1, epoch_cap=3.0, probe_cost=4.0)
    found = penalised(plain, seen, asked)
    top = 0.8 * np.log(1.6) + 0.2 * np.log(0.4)
    inner = 0.8 * (0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    assert found.components["kl_prior"] == pytest.approx(-2 * (top + inner))
    assert found.components["epochs"] == pytest.approx(-0.1 * 2.0)
    assert found.components["probe_cost"] == -1.0
    assert found.value == pytest.approx(sum(found.components.values()))
    assert found.local is plain.local


def test_progress_per_second_by_hand() -> None:
    seen = RewardInput(np.array([2.0, 3.0]), np.array([1.5, 3.0]), np.ones(2), seconds=0.5)
    found = REWARDS["progress_per_second"].compute(seen)
    assert found.value == pytest.approx(0.5)
    assert found.local.tolist() == [0.5, 0.0]


@settings(deadline=None)
@given(SEEDS)
def test_a_batch_is_paid_what_its_members_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells, rows = (3, 4, 2), (3, 4)
    batch = RewardInput(
        before=rng.uniform(1, 3, rows),
        after=rng.uniform(1, 3, rows),
        targets=rng.integers(0, 2, rows) + np.eye(4)[0],
        start=rng.uniform(1, 3, rows),
        weight=rng.dirichlet(np.ones(4), 3),
        strata=rng.dirichlet(np.ones(2), rows),
        prior=rng.dirichlet(np.ones(4), 3),
        prior_strata=rng.dirichlet(np.ones(2), rows),
        source_probe=np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
        stratum_probe=np.where(rng.random(cells) < 0.2, np.nan, rng.uniform(0, 1, cells)),
        draws=rng.random((3, 5)),
        gains=np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
        epochs=rng.uniform(0, 9, rows),
        probe_cost=rng.random(3),
        seconds=rng.uniform(0.5, 2, 3),
    )
    penalties = PenaltyOptions(kl_prior=0.5, epochs=0.1, probe_cost=1.0)
    for kind in REWARDS.values():
        together = penalised(kind.compute(batch), batch, penalties)
        for i in range(3):
            one = RewardInput(**{f.name: getattr(batch, f.name)[i] for f in fields(batch)})
            alone = penalised(kind.compute(one), one, penalties)
            assert float(np.asarray(together.value)[i]) == pytest.approx(float(alone.value))
            assert together.local[i] == pytest.approx(alone.local)


@pytest.mark.parametrize("name", ["progress"])
def test_the_rewards_of_an_episode_sum_to_the_fall_of_the_loss(name: str) -> None:
    training = {"steps": 95, "interval": 10}
    env = gym.make("mixgym/Mixture-v0", training=training, environment={"reward": name})
    world = env.unwrapped.world  # type: ignore[attr-defined]
    _, start = env.reset(seed=0)
    env.action_space.seed(0)
    total, terminated, local = 0.0, False, np.zeros(len(world.names))
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        record = info["decision"]["reward"]
        assert record["global"] == reward == sum(record["components"].values())
        local += [record["local"][name] for name in world.names]
        total += float(reward)
    first = np.array([start["start"][name] for name in world.names])
    last = np.array([info["decision"]["loss"]["reward"][name] for name in world.names])
    assert total > 0.01
    assert total == pytest.approx(
        target_mean(first, world.targets) - target_mean(last, world.targets), abs=1e-12
    )
    assert local == pytest.approx(first - last, abs=1e-12)


def test_bilevel_gap_by_hand() -> None:
    nothing = np.zeros(3)
    seen = RewardInput(
        nothing,
        nothing,
        np.ones(3),
        weight=np.array([0.5, 0.5, 0.0]),
        prior=np.array([0.25, 0.25, 0.5]),
        gains=np.array([0.2, -0.1, -0.1]),
    )
    found = REWARDS["bilevel_gap"].compute(seen)
    scale = 0.25 * 0.2 + 0.25 * 0.1 + 0.5 * 0.1
    assert found.value == pytest.approx((0.25 * 0.2 - 0.25 * 0.1 + 0.5 * 0.1) / scale)
    np.testing.assert_allclose(found.local, np.array([0.2, -0.1, -0.1]) / scale)
    for changes in ({"weight": seen.prior}, {"gains": np.full(3, np.nan)}):
        assert REWARDS["bilevel_gap"].compute(replace(seen, **changes)).value == 0.0


def test_bilevel_gap_needs_its_rule() -> None:
    with pytest.raises(ConfigError, match=r"set environment\.step_rule=bilevel"):
        gym.make("mixgym/Mixture-v0", environment={"reward": "bilevel_gap"})
