"""One world, three faces: a single environment and two kinds of batches do the same."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.curves.gymnasium_vector import CurvesVectorEnv
from mixgym.envs.curves.task import TASK_SETS
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.environment import make_mixture_env
from mixgym.envs.options import EnvironmentOptions

ID = "mixgym/Mixture-v0"
SHORT = {"steps": 12, "interval": 2}  # six decisions


def flattened(observation: Any) -> np.ndarray:
    if isinstance(observation, dict):
        observation = np.concatenate([observation[name] for name in sorted(observation)], -1)
    return np.asarray(observation)


def drawn_actions(space: gym.spaces.Box, decisions: int, count: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.uniform(space.low, space.high, (decisions, count, *space.shape)).astype(np.float32)


def singles(count: int, first: int, actions: Any, **options: Any) -> list[list[Any]]:
    """What single environments do, each reset by hand when its episode ends."""
    found = []
    for i in range(count):
        env = gym.make(ID, **options)
        seen: list[Any] = [env.reset(seed=first + i)[0]]
        for action in actions[:, i]:
            observation, reward, done, truncated, info = env.step(action)
            last = observation
            if done:
                observation = env.reset()[0]
            assert not truncated
            seen.append((observation, reward, done, last, info["decision"]))
        found.append(seen)
    return found


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"environment": {"tasks": "train"}},
        {"environment": {"tasks": "test", "observation": "dict", "prior": "proportional"}},
        {"environment": {"tasks": "train", "action": "weights", "observation": "dict"}},
        {"environment": {}, "seed": 5, "data": {"strata": 3}},
    ],
)
def test_a_batch_does_what_single_environments_do(count: int, options: dict[str, Any]) -> None:
    options = {**options, "training": SHORT}
    batch = gym.make_vec(ID, num_envs=count, **options)
    assert isinstance(batch, CurvesVectorEnv)
    actions = drawn_actions(batch.single_action_space, 15, count)  # type: ignore[arg-type]
    observation, _ = batch.reset(seed=11)
    alone = singles(count, 11, actions, **options)
    exact = {"rtol": 1e-6, "atol": 1e-6}
    for i in range(count):
        first = flattened(alone[i][0])
        np.testing.assert_allclose(flattened(observation)[i], first, **exact)
    for t, action in enumerate(actions):
        observation, rewards, dones, _, infos = batch.step(action)
        for i in range(count):
            own, reward, done, last, record = alone[i][t + 1]
            np.testing.assert_allclose(flattened(observation)[i], flattened(own), **exact)
            assert rewards[i] == pytest.approx(reward, abs=1e-9)
            assert dones[i] == done
            compare_records(infos["decision"][i], record)
            if done:
                np.testing.assert_allclose(
                    flattened(infos["final_obs"][i]), flattened(last), **exact
                )


def compare_records(batched: Any, single: dict[str, Any]) -> None:
    assert batched["decision"] == single["decision"]
    assert batched["supervised_tokens"] == single["supervised_tokens"]
    assert batched["mixture"] == pytest.approx(single["mixture"])
    assert batched["reward"]["local"] == pytest.approx(single["reward"]["local"], abs=1e-9)
    assert batched["reward"]["components"] == pytest.approx(single["reward"]["components"])
    assert batched["loss"]["reward"] == pytest.approx(single["loss"]["reward"])
    for name, row in single["strata"].items():
        assert batched["strata"][name] == pytest.approx(row)


def test_both_batches_do_the_same() -> None:
    options = EnvironmentOptions(learner="curves")
    ours = CurvesVecEnv(5, TASK_SETS["train"], options, seed=9, decisions=6, interval=2)
    theirs = gym.make_vec(ID, num_envs=5, environment={"tasks": "train"}, training=SHORT)
    ours.seed(3)
    assert ours.reset().tolist() == theirs.reset(seed=3)[0].tolist()
    for action in drawn_actions(ours.action_space, 14, 5):  # type: ignore[arg-type]
        a, rewards, dones, infos = ours.step(action)
        b, others, ends, _, _ = theirs.step(action)
        assert a.tolist() == b.tolist()
        assert rewards.tolist() == others.astype(np.float32).tolist()
        assert dones.tolist() == ends.tolist()
        assert len(infos) == 5


def test_the_size_of_the_batch_changes_nothing() -> None:
    def run(count: int) -> list[Any]:
        env = CurvesVecEnv(count, TASK_SETS["train"], seed=4, decisions=5)
        seen = [env.reset()[:2].tolist()]
        for action in drawn_actions(env.action_space, 12, 9):  # type: ignore[arg-type]
            observation, rewards, _, _ = env.step(action[:count])
            seen.append([observation[:2].tolist(), rewards[:2].tolist()])
        return seen

    assert run(2) == run(9)


def test_tasks_are_drawn_at_every_reset_and_fixed_by_the_seed() -> None:
    env = make_mixture_env(environment={"tasks": "train"}, training=SHORT)
    sizes = []
    for seed in (3, None, None, 3):
        env.reset(seed=seed)
        sizes.append(env.world.cell_size.tolist())
        assert env.padded == (12, 4)
        assert sum(env.start_losses().values()) > 0
    assert sizes[0] == sizes[3]
    assert sizes[0] != sizes[1] != sizes[2] != sizes[0]


def test_an_episode_with_a_drawn_task_goes_on_after_forks_and_files(tmp_path: Any) -> None:
    def make() -> Any:
        return make_mixture_env(environment={"tasks": "train"}, training=SHORT)

    env = make()
    env.reset(seed=8)
    zero = np.zeros(env.action_space.shape, np.float32)
    env.step(zero)
    env.save(tmp_path)
    kept, twin, other = env.snapshot(), env.fork(), make()
    other.reset(seed=1)
    observation = other.load(tmp_path)
    again = make()
    again.reset(seed=2)
    again.restore(kept)
    assert observation.shape == env.observation_space.shape
    steps = [[e.step(zero) for _ in range(4)] for e in (env, twin, other, again)]
    for own in steps[1:]:
        for (a, r, d, *_), (b, s, e, *_) in zip(steps[0], own, strict=True):
            assert a.tolist() == b.tolist()
            assert (r, d) == (s, e)
