import gymnasium as gym
import numpy as np
import pytest

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.rewards import REWARDS, RewardInput, make_reward, progress, target_mean


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
    with pytest.raises(ConfigError, match=r"environment\.reward=speed: choose one of .*progress"):
        make_reward("speed")


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
