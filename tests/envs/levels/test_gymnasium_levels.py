"""The levels as batches for Gymnasium: what single ones do, whoever decides at the other level."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.curves.task import LEAST_SOURCES
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.tasks.sets import TASK_SETS, drawn, least_sources
from mixgym.envs.errors import ConfigError
from mixgym.envs.levels.gymnasium_vector import GlobalVectorEnv, LocalVectorEnv
from mixgym.envs.levels.single import LocalEnv, make_global_env, make_local_env
from mixgym.envs.registration import make_mixture_env

DRAWN = {"environment": {"tasks": "train"}, "training": {"steps": 10, "interval": 2}}


class Counting:
    """Decides by how often it was asked in an episode, and by what it sees; of one or of many."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, _: bool = True
    ) -> tuple[NDArray[np.float32], Any]:
        self.asked += 1
        rows = np.atleast_2d(observation)
        count = np.zeros(len(rows)) if state is None else state[0]
        count = np.where(episode_start, 0.0, count) + 1.0
        entries = np.linspace(-1, 1, 60)
        action = 0.1 * count[:, None] * entries + 0.1 * rows[:, 1:2]
        return action.reshape(*np.shape(observation)[:-1], 60).astype(np.float32), (count,)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mixgym/Global-v0", {"local": "them"}),
        ("mixgym/Global-v0", {"local": "them", "period": 3, "discount": 0.5}),
        ("mixgym/Local-v0", {"other": "them", "source": 1}),
    ],
)
def test_the_other_level_decides_as_in_single_environments(
    name: str, options: dict[str, Any], mode: AutoresetMode
) -> None:
    def batch(**kwargs: Any) -> Any:
        them = {key: Counting() if own == "them" else own for key, own in options.items()}
        return gym.make_vec(name, num_envs=3, **DRAWN, **them, **kwargs)

    ours = batch(autoreset_mode=mode)
    theirs = batch(vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    np.testing.assert_allclose(ours.reset(seed=7)[0], theirs.reset(seed=7)[0], atol=1e-6)
    for t in range(12):
        if t == 4:
            for env in (ours, theirs):
                env.reset(options={"reset_mask": np.array([False, True, False])})
        ours.action_space.seed(t)
        action = ours.action_space.sample()
        a, b = ours.step(action), theirs.step(action)
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)
        np.testing.assert_allclose(a[1], b[1], atol=1e-9)
        assert a[2].tolist() == b[2].tolist()


def test_a_span_is_summed_and_lists_its_records() -> None:
    env = gym.make_vec("mixgym/Global-v0", num_envs=2, period=4, discount=0.5, **DRAWN)
    assert isinstance(env, GlobalVectorEnv)
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape or (), np.float32)
    _, rewards, ends, _, infos = env.step(zero)
    assert not ends.any()
    for i, records in enumerate(infos["decisions"]):
        assert [record["decision"] for record in records] == [1, 2, 3, 4]
        paid = sum(0.5**n * record["reward"]["global"] for n, record in enumerate(records))
        assert rewards[i] == pytest.approx(paid)
        assert infos["decision"][i]["decision"] == 4
    _, _, ends, _, infos = env.step(zero)
    assert ends.all()
    assert [len(records) for records in infos["final_info"]["decisions"]] == [1, 1]


def test_a_source_is_paid_its_own_part() -> None:
    env = gym.make_vec("mixgym/Local-v0", num_envs=2, source="source2", **DRAWN)
    assert isinstance(env, LocalVectorEnv)
    assert env.single_observation_space == make_local_env(2, **DRAWN).observation_space
    env.reset(seed=0)
    _, rewards, _, _, infos = env.step(np.ones(env.action_space.shape or (), np.float32))
    for reward, record in zip(rewards, infos["decision"], strict=True):
        assert reward == pytest.approx(record["reward"]["local"]["source2"])


# sources that some tasks lack


@pytest.mark.parametrize("tasks", TASK_SETS)
def test_the_sources_of_all_tasks_are_known_without_drawing_them(tasks: str) -> None:
    few = [drawn(task).size.shape[0] for task in TASK_SETS[tasks][:200]]
    assert min(few) >= least_sources(TASK_SETS[tasks]) == LEAST_SOURCES
    given = [sample_task(0, sources=n) for n in (5, 4)]
    assert least_sources(given) == 4
    assert least_sources([*given, 7]) == LEAST_SOURCES


@pytest.mark.parametrize("source", [LEAST_SOURCES, 7, -1, "source3", "source11", "math"])
def test_a_source_that_a_drawn_task_lacks_is_refused_at_once(source: str | int) -> None:
    for make in (gym.make, lambda name, **kw: gym.make_vec(name, num_envs=2, **kw)):
        with pytest.raises(ConfigError, match="not one of source0, source1, source2, the sources"):
            make("mixgym/Local-v0", source=source, **DRAWN)


def test_a_source_that_all_drawn_tasks_have_is_there_in_every_episode() -> None:
    env = make_local_env(LEAST_SOURCES - 1, **DRAWN)
    counts = set()
    for seed in range(30):
        observation, info = env.reset(seed=seed)
        counts.add(len(env.joint.world.names))
        assert observation.any()
        assert f"source{LEAST_SOURCES - 1}" in info["start"]
    assert min(counts) == LEAST_SOURCES < max(counts)


def test_an_episode_without_the_source_says_so() -> None:
    joint = make_mixture_env(**DRAWN)
    env = LocalEnv(joint, 2)
    env.source = "source11"
    with pytest.raises(ConfigError, match="source='source11'"):
        env.reset(seed=1)


def test_batches_of_levels_refuse_what_single_ones_do() -> None:
    for name in ("mixgym/Global-v0", "mixgym/Local-v0"):
        with pytest.raises(ConfigError, match="need logits and flat"):
            gym.make_vec(name, num_envs=2, environment={"action": "delta"})
    for make in (make_global_env, GlobalVectorEnv):
        with pytest.raises(ConfigError, match="period=0"):
            make(period=0)
    with pytest.raises(ConfigError, match="a batch has no picture"):
        gym.make_vec("mixgym/Local-v0", num_envs=2, render_mode="ansi")
