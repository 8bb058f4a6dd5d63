"""One world, three faces: a single environment and two kinds of batches do the same."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, VectorEnv
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.vec_env import SubprocVecEnv

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.gymnasium_vector import CurvesVectorEnv
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.tasks.sets import TASK_SETS
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError, MixgymError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BILEVEL_GAIN, PROBES
from mixgym.envs.registration import ENVIRONMENTS, make_mixture_env

ID = "mixgym/Mixture-v0"
SHORT = {"steps": 12, "interval": 2}  # six decisions
UNEVEN = {"steps": 11, "interval": 3}  # four, the last one shorter
SOURCES = [f"source{k}" for k in range(4)]  # of the task that is not drawn


ALL = {name: 1 + i % 3 for i, name in enumerate(PROBES) if name != BILEVEL_GAIN}
PROBED: list[dict[str, Any]] = [
    {
        "environment": {
            "tasks": "validation",
            "observation": "dict",
            "probes": ALL,
            "probe_at_start": True,
            "reference": "here",
            "reward": "log_utility",
            "penalties": {"kl_prior": 0.1, "epochs": 0.1, "epoch_cap": 0.1, "probe_cost": 0.01},
        }
    },
    {"environment": {"tasks": "train", "reward": "arm", "reward_sources": "gradient_alignment"}},
    {"environment": {"reward": "linear", "reward_strata": "nll_difference"}},
    {"environment": {"tasks": "train", "reward": "worst"}},
    {"environment": {"tasks": "train", "reward": "progress_normalised"}},
    {"environment": {"tasks": "train", "step_rule": "bilevel"}},
    {
        "environment": {
            "step_rule": "bilevel",
            "action": "delta",
            "observation": "dict",
            "probes": {BILEVEL_GAIN: 1},
            "reward": "bilevel_gap",
        },
        "bilevel": {"travel": 3.0, "update": "mirror", "decay": 0.1},
    },
]


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
        {"environment": {"tasks": "world-train"}, "training": UNEVEN},
        {"environment": {"tasks": "test", "observation": "dict", "prior": "proportional"}},
        {"environment": {"tasks": "train", "action": "weights", "observation": "dict"}},
        {"environment": {}, "seed": 5, "data": {"strata": 3}},
        {"environment": {"tasks": "train"}, "training": UNEVEN},
        {"environment": {"tasks": "train", "step_rule": "bilevel"}, "training": UNEVEN},
        {"environment": {"reward": "arm", "penalties": {"probe_cost": 0.1}}, "training": UNEVEN},
        *PROBED,
    ],
)
def test_a_batch_does_what_single_environments_do(count: int, options: dict[str, Any]) -> None:
    options = {"training": SHORT, **options}
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
    """Key by key and value by value; what is read first is made without the rest."""
    for key in ("decision", "mixture", "reward"):
        compare_parts(batched[key], single[key], key)
    assert list(batched) == list(single)
    assert len(batched) == len(single)
    for key, value in single.items():
        compare_parts(batched[key], value, key)


def compare_parts(batched: Any, single: Any, where: str) -> None:
    if isinstance(single, dict):
        assert batched.keys() == single.keys(), where
        for key, value in single.items():
            compare_parts(batched[key], value, f"{where}.{key}")
    elif isinstance(single, list):
        assert len(batched) == len(single), where
        for one, other in zip(batched, single, strict=True):
            compare_parts(one, other, where)
    else:
        assert type(batched) is type(single), where
        near = 1e-6 if where == "observation" else 1e-9  # that is in single precision
        assert single is None or batched == pytest.approx(single, rel=1e-6, abs=near), where


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


# the contract of Stable-Baselines3's face


def small(count: int = 3, **options: Any) -> CurvesVecEnv:
    kept = {name: options.pop(name) for name in ("seed", "decisions") if name in options}
    tasks = [sample_task(s, sources=3, strata=2) for s in range(5)]
    padded = EnvironmentOptions(learner="curves", max_sources=4, max_strata=3, **options)
    return CurvesVecEnv(count, tasks, padded, **{"decisions": 4, **kept})


def test_making_one_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = small()
    assert env.get_attr("render_mode") == [None] * 3
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert env.env_method("seed", 3, indices=[1]) == [[3] * 3]
    assert env.get_attr("num_envs", indices=0) == [3]
    env.close()


def test_an_episode_ends_and_begins_in_one_step() -> None:
    env = small()
    observation = env.reset()
    assert observation.dtype == np.float32
    assert env.observation_space.contains(observation[0])
    total = np.zeros(3)
    zero = np.zeros((3, *env.action_space.shape), np.float32)  # type: ignore[misc]
    for decision in range(1, 9):
        observation, rewards, dones, infos = env.step(zero)
        assert rewards.dtype == np.float32
        total += rewards
        at_end = decision % 4 == 0
        assert dones.tolist() == [at_end] * 3
        remaining = 1.0 if at_end else 1 - decision % 4 / 4
        assert observation[:, 0].tolist() == [remaining] * 3
        for i, info in enumerate(infos):
            assert ("terminal_observation" in info) == ("episode" in info) == at_end
            if at_end:
                assert info["terminal_observation"][0] == 0
                assert info["terminal_observation"].shape == observation[i].shape
                assert info["TimeLimit.truncated"] is False
                assert info["episode"]["l"] == 4
                assert info["episode"]["r"] == pytest.approx(total[i], abs=1e-5)
        if at_end:
            total[:] = 0


def test_the_reward_is_the_fall_of_the_measured_loss() -> None:
    env = small(2)
    env.reset()
    core = env.core
    weights = core.task.targets / core.task.targets.sum(-1, keepdims=True)
    before = (core.view.nll * weights).sum(-1)
    total = np.zeros(2)
    for action in drawn_actions(env.action_space, 3, 2):  # type: ignore[arg-type]
        total += env.step(action)[1]
    assert total == pytest.approx(before - (core.view.nll * weights).sum(-1), abs=1e-5)


def test_records_stay_as_they_were() -> None:
    env = small(seed=2)
    env.reset()
    actions = drawn_actions(env.action_space, 9, 3)  # type: ignore[arg-type]
    lazy, eager, seen, kept = [], [], [], []
    for action in actions:
        observation, _, _, infos = env.step(action)
        seen.append(observation)
        kept.append(observation.tolist())
        lazy.append(infos)
        eager.append([{k: info["decision"][k] for k in info["decision"]} for info in infos])
    assert [[dict(i["decision"]) for i in infos] for infos in lazy] == eager
    assert [observation.tolist() for observation in seen] == kept
    record = lazy[0][0]["decision"]
    assert len(record) == len(set(record)) > 10
    assert list(record["mixture"]) == ["source0", "source1", "source2"]
    assert sum(record["mixture"].values()) == pytest.approx(1)
    assert [len(row) for row in record["strata"].values()] == [2, 2, 2]
    with pytest.raises(KeyError):
        record["nothing"]


def test_absent_cells_get_nothing() -> None:
    for action in ("logits", "weights"):
        env = small(action=action)
        env.reset()
        for drawn in drawn_actions(env.action_space, 3, 3):  # type: ignore[arg-type]
            env.step(drawn)
            last = env.core.last
            assert (last.weight[:, 3:] == 0).all()
            assert (last.strata[:, 3:] == 0).all()
            assert (last.strata[:, :, 2:] == 0).all()
            assert last.weight.sum(-1) == pytest.approx(1)
            assert last.strata[:, :3].sum(-1) == pytest.approx(1)
            assert (last.given[~last.present] == 0).all()


@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_a_state_goes_on_bit_equal(observation: str) -> None:
    env, other = (small(observation=observation, seed=seed) for seed in (1, 77))
    env.reset()
    other.reset()
    actions = drawn_actions(env.action_space, 13, 3)  # type: ignore[arg-type]
    for action in actions[:3]:
        env.step(action)
    other.set_state(env.state())
    for action in actions[3:]:
        a, b = env.step(action), other.step(action)
        assert flattened(a[0]).tolist() == flattened(b[0]).tolist()
        assert (a[1] == b[1]).all()
        for mine, theirs in zip(a[3], b[3], strict=True):
            assert mine.get("episode") == theirs.get("episode")
            assert dict(mine["decision"]) == dict(theirs["decision"])


def test_seeds_decide_everything() -> None:
    def run(seed: int) -> list[Any]:
        env = small()
        assert env.seed(seed) == [seed] * 3
        first = env.reset().tolist()
        zero = np.zeros((3, *env.action_space.shape), np.float32)  # type: ignore[misc]
        return [first, *(env.step(zero)[0].tolist() for _ in range(6))]

    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert run(3) == run(3)
    assert run(3) != run(4)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_a_nan_names_its_index_and_infinite_entries_are_clipped() -> None:
    env = small()
    env.reset()
    action = np.zeros((3, *env.action_space.shape), np.float32)  # type: ignore[misc]
    action[1, 2] = np.nan
    with pytest.raises(MixgymError, match=r"action\[1, 2\] is NaN"):
        env.step(action)
    action[1, 2] = np.inf
    clipped = np.where(np.isinf(action), 1.0, action)
    twin = small()
    twin.reset()
    assert env.step(action)[0].tolist() == twin.step(clipped)[0].tolist()


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"prior": {"source0": 1.0}}, "prior"),
        ({"reward": "other"}, "reward"),
        ({"max_sources": 2}, "max_sources"),
    ],
)
def test_what_a_batch_does_not_have_is_refused(environment: dict[str, Any], word: str) -> None:
    def core() -> CurvesCore:
        options = EnvironmentOptions.model_validate({"learner": "curves", **environment})
        return CurvesCore(2, [sample_task(0, sources=3)], options)

    with pytest.raises((ConfigError, ValidationError), match=f"environment.{word}"):
        core()


# the contract of Gymnasium's face


def test_gymnasiums_face_declares_and_keeps_its_autoreset() -> None:
    env = gym.make_vec(
        ID,
        num_envs=3,
        vectorization_mode="vector_entry_point",
        training={"steps": 4, "interval": 2},
    )
    assert isinstance(env, VectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.unwrapped.spec is not None
    observation, info = env.reset(seed=[1, 2, 3])
    assert sorted(name for name in info["start"] if name[0] != "_") == SOURCES
    assert info["_start"].all()
    assert env.observation_space.contains(observation)
    env.action_space.seed(0)
    for decision in (1, 2, 3, 4):
        observation, rewards, ends, cuts, infos = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert rewards.dtype == np.float64
        assert ends.tolist() == [decision % 2 == 0] * 3
        assert not cuts.any()
        assert ("final_obs" in infos) == (decision % 2 == 0)
        if ends.any():
            assert infos["final_obs"].shape == (3,)
            assert infos["_final_obs"].tolist() == [True] * 3
            assert infos["final_obs"][0][0] == 0
            assert infos["final_info"]["decision"][2]["decision"] == 2
            assert (observation[:, 0] == 1).all()
    env.close()


def test_gymnasiums_own_batch_gives_the_same() -> None:
    batch = gym.make_vec(ID, num_envs=3)
    sync = gym.make_vec(
        ID, num_envs=3, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )  # fmt: skip
    assert batch.single_observation_space == sync.single_observation_space
    assert batch.single_action_space == sync.single_action_space
    np.testing.assert_allclose(batch.reset(seed=5)[0], sync.reset(seed=5)[0], atol=1e-6)
    for action in drawn_actions(batch.single_action_space, 32, 3):  # type: ignore[arg-type]
        a, b = batch.step(action), sync.step(action)
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)
        np.testing.assert_allclose(a[1], b[1], atol=1e-9)
        assert a[2].tolist() == b[2].tolist()
    sync.close()


@pytest.mark.parametrize(
    "options",
    [
        {"environment": {"learner": "causal_lm"}},
        {"training": {"supervised_tokens": 1000}},
        {"training": {"tokens": 1000}},
        {"render_mode": "ansi"},
    ],
)
def test_batches_of_other_things_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        gym.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", **options)


@pytest.mark.slow
def test_single_environments_vectorise_in_processes() -> None:
    options = {"environment": {"tasks": "train"}, "training": SHORT}
    batch = gym.make_vec(ID, num_envs=2, **options)
    first, _ = batch.reset(seed=3)
    processes = gym.make_vec(ID, num_envs=2, vectorization_mode="async",
                             vector_kwargs={"context": "spawn"}, **options)  # fmt: skip
    both = SubprocVecEnv([lambda: make_mixture_env(**options)] * 2, start_method="spawn")
    both.seed(3)
    np.testing.assert_allclose(processes.reset(seed=3)[0], first, atol=1e-6)
    np.testing.assert_allclose(both.reset(), first, atol=1e-6)
    for action in drawn_actions(batch.single_action_space, 4, 2):  # type: ignore[arg-type]
        expected = batch.step(action)
        np.testing.assert_allclose(processes.step(action)[0], expected[0], atol=1e-6)
        np.testing.assert_allclose(both.step(action)[0], expected[0], atol=1e-6)
    processes.close()
    both.close()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_checkers_pass_where_tasks_are_drawn(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    env = gym.make(name, environment={"tasks": "train"}, training=SHORT)
    gymnasium_check(env.unwrapped, skip_render_check=True)
    sb3_check(env.unwrapped)
    assert [str(w.message) for w in recwarn] == []
