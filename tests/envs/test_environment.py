import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import mixgym
from mixgym.envs.curves.learner import CurveLearner
from mixgym.envs.curves.task import tokens_per_step
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.environment import FAILURE_PENALTY, MixtureEnv
from mixgym.envs.errors import DivergenceError, MixgymError
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.learners.base import Evaluation, PlainStep, StepRule, TrainReport
from mixgym.envs.measuring import episode
from mixgym.envs.options import EnvironmentOptions, TrainingOptions
from mixgym.envs.packing.costs.token_cost import tokens_read
from mixgym.envs.packing.plane import PackedPlane
from mixgym.envs.packing.whole_run import WholeRunPlane
from mixgym.envs.registration import ENVIRONMENTS, make_mixture_env
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces import observations
from mixgym.envs.spaces.mixture import Mixture
from mixgym.envs.world import World

from .synthetic import make_source

SHORT = {"steps": 50, "interval": 10}


def make(**options: Any) -> MixtureEnv:
    options.setdefault("training", SHORT)
    return make_mixture_env(**options)


def packed_env(
    sources: list[Source],
    training: dict[str, Any] | None = None,
    learner: CurveLearner | None = None,
    pool: str = "interval",
    **options: Any,
) -> MixtureEnv:
    """Real rows, sampled and packed, behind the closed-form learner."""
    strata = sources[0].n_strata
    task = sample_task(0, sources=len(sources), strata=strata)
    size = np.array(
        [
            [s.splits["train"].supervised[s.strata["train"] == g].sum() for g in range(strata)]
            for s in sources
        ]
    ).astype(float)
    prior = Mixture(np.full(len(sources), 1 / len(sources)), size / size.sum(-1, keepdims=True))
    cost, cell_cost = tokens_read(sources)
    chosen = training or SHORT

    def make_plane(seed: int) -> PackedPlane | WholeRunPlane:
        plane = PackedPlane(sources, unit="supervised_tokens", capacity=32, packs=2, seed=seed)
        whole = Budget(300, chosen.get("supervised_tokens"), chosen.get("tokens"))
        return plane if pool == "interval" else WholeRunPlane(plane, whole, sources)

    world = World(
        names=tuple(s.name for s in sources),
        targets=np.ones(len(sources)),
        prior=prior,
        cell_size=size,
        cost=cost,
        cell_cost=cell_cost,
        learner=learner or CurveLearner(task),
        make_plane=make_plane,
        step_rule=PlainStep(),
    )
    hook = options.pop("on_episode_end", None)
    return MixtureEnv(world, EnvironmentOptions(**options), TrainingOptions(**chosen), hook)


def two_sources(rows: int = 400, **options: Any) -> list[Source]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, (2, rows)).tolist()
    return [make_source(name, n, **options) for name, n in zip("ab", lengths, strict=True)]


def rollout(env: Any, seed: int, decisions: int = 5) -> list[Any]:
    """What an episode of random actions gives, as plain data."""
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    found: list[Any] = [plain(observation), info]
    for _ in range(decisions):
        step = env.step(env.action_space.sample())
        found.append([plain(step[0]), *step[1:]])
        if step[2]:
            break
    return found


def plain(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: values.tolist() for name, values in observation.items()}
    return observation.tolist()


def play(env: MixtureEnv, actions: Any) -> list[Any]:
    found = []
    for action in actions:
        observation, *rest = env.step(action)
        found.append([plain(observation), *rest])
    return found


# the contract of every registered id


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_both_checkers_pass_without_a_warning(name: str, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    env = gym.make(name)
    gymnasium_check(env.unwrapped)
    sb3_check(env.unwrapped)
    assert [str(w.message) for w in recwarn] == []
    assert env.spec is not None
    assert env.spec.max_episode_steps is None


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize("action", ["logits", "weights"])
def test_the_checkers_pass_with_padding(observation: str, action: str) -> None:
    options = {"max_sources": 6, "max_strata": 5, "observation": observation, "action": action}
    env = make(environment=options)
    with warnings.catch_warnings():
        # weights are for rules, which know that they are not symmetric
        warnings.filterwarnings("ignore", message=".*symmetric and normalized Box action space.*")
        gymnasium_check(env, skip_render_check=True)
        sb3_check(env)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_specification_goes_through_json(name: str) -> None:
    env = gym.make(name)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert rollout(again, 3, 2) == rollout(env, 3, 2)


def test_an_environment_is_made_by_name_without_importing_the_package_first() -> None:
    code = "import gymnasium; e = gymnasium.make('mixgym:mixgym/Mixture-v0'); e.reset(); e.close()"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_registering_twice_is_harmless() -> None:
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixgym.register_environments()
    assert gym.registry == before


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_two_seeded_episodes_are_the_same(name: str) -> None:
    one = rollout(gym.make(name), 5)
    assert rollout(gym.make(name), 5) == one


def test_a_seed_fixes_the_order_of_rows() -> None:
    env = packed_env(two_sources())
    one, two, other = rollout(env, 5), rollout(env, 5), rollout(env, 6)
    assert one == two
    assert one[2:] != other[2:]


@pytest.mark.parametrize("factory", [make, lambda: packed_env(two_sources())])
def test_the_global_random_state_is_left_alone(factory: Callable[[], MixtureEnv]) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    rollout(factory(), 0)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


# ends of an episode


def test_the_end_of_the_budget_is_terminal() -> None:
    env = make(training={"steps": 25, "interval": 10})
    env.reset(seed=0)
    ends, steps = [], []
    for _ in range(3):
        observation, _, terminated, truncated, info = env.step(np.zeros(20, np.float32))
        ends.append((terminated, truncated))
        steps.append(info["decision"]["steps"])
    assert ends == [(False, False), (False, False), (True, False)]
    assert steps == [10, 20, 25]
    assert observation[0] == 0.0, "nothing remains"
    with pytest.raises(MixgymError, match="call reset"):
        env.step(np.zeros(20, np.float32))
    env.reset()
    env.step(np.zeros(20, np.float32))


def test_the_budget_may_be_supervised_tokens() -> None:
    env = make(training={"supervised_tokens": 50_001, "interval": 3})
    env.reset(seed=0)
    used, terminated = [], False
    while not terminated:
        _, _, terminated, truncated, info = env.step(np.zeros(20, np.float32))
        used.append(info["decision"]["supervised_tokens"])
    assert used[-1] == 50_001
    assert isinstance(env.world.learner, CurveLearner)
    per_step = int(tokens_per_step(env.world.learner.task, env.training.steps))
    assert np.diff([0, *used])[:-1].tolist() == [3 * per_step] * (len(used) - 1)
    assert not truncated


def test_the_budget_may_be_tokens_read() -> None:
    env = make(training={"tokens": 50_001, "interval": 3})
    env.reset(seed=0)
    read, left, terminated = [], [], False
    while not terminated:
        observation, _, terminated, truncated, info = env.step(np.zeros(20, np.float32))
        read.append(info["decision"]["cost"]["train_tokens"])
        left.append(observation[0])
    assert read[-1] == 50_001
    assert isinstance(env.world.learner, CurveLearner)
    per_step = int(tokens_per_step(env.world.learner.task, env.training.steps))
    assert np.diff([0, *read])[:-1].tolist() == [3 * per_step] * (len(read) - 1)
    assert left == pytest.approx(1.0 - np.array(read) / 50_001, abs=1e-6)
    assert not truncated


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["supervised_tokens", "tokens"]),
    st.integers(20, 1500),
    st.sampled_from(["interval", "run"]),
)
def test_a_budget_of_tokens_is_never_passed_by_rows(
    seed: int, unit: str, budget: int, pool: str
) -> None:
    env = packed_env(two_sources(), {unit: budget, "interval": 3}, pool=pool)
    found = rollout(env, seed, 1000) if pool == "interval" else kept(env, seed)
    assert found[-1][2], "terminated"
    last = found[-1][4]["decision"]
    used = {**last, "tokens": last["cost"]["train_tokens"]}[unit]
    assert used == env.progress.used(unit)  # type: ignore[arg-type]
    assert budget - 60 <= used <= budget


def kept(env: Any, seed: int) -> list[Any]:
    """An episode under the prior, which never changes."""
    env.reset(seed=seed)
    zero = np.zeros(env.action_space.shape, np.float32)
    found = [env.step(zero)]
    while not found[-1][2]:
        found.append(env.step(zero))
    return found


def test_steps_add_up_to_the_budget_though_balance_points_leave_room() -> None:
    """A plan with fewer steps than the interval is not the end while there are rows."""
    sources = [make_source("a", [3] * 400), make_source("b", [32] * 400)]
    env = packed_env(sources, {"steps": 60, "interval": 7})
    found = rollout(env, 0, 100)
    assert found[-1][4]["decision"]["steps"] == 60
    assert found[-1][2]


def test_the_end_of_the_data_is_terminal() -> None:
    env = packed_env(two_sources(20, max_epochs=1.0), {"steps": 1000, "interval": 3})
    found = rollout(env, 0, 1000)
    last = found[-1]
    assert last[2]
    assert not last[3]
    assert last[4]["decision"]["epochs"] == {"a": 1.0, "b": 1.0}
    assert last[4]["decision"]["steps"] < 1000


def test_a_used_up_source_gets_no_weight() -> None:
    short, long = two_sources(400)
    short = replace(short, max_epochs=0.05)
    env = packed_env([short, long], {"steps": 20, "interval": 2})
    found = rollout(env, 0, 10)
    weights = [step[4]["decision"]["mixture"]["a"] for step in found[2:]]
    assert weights[0] > 0
    assert weights[-1] == 0.0
    mask = found[-1][0][-4:]  # two sources, two cells
    assert mask == [0, 1, 0, 1]


def test_rules_get_the_mixture_that_they_ask_for() -> None:
    env = packed_env(two_sources(), action="weights", training={"steps": 40, "interval": 20})
    env.reset(seed=0)
    for asked in (0.0, 0.25, 0.9):
        if env.progress.done:
            env.reset()
        action = env.encode(Mixture.of([asked, 1 - asked], [[1.0], [1.0]]))
        record = env.step(action)[4]["decision"]
        assert record["mixture"]["a"] == pytest.approx(asked, abs=1e-7)
        longest, total = 20, 20 * 2 * 32 * 0.9
        assert record["share"]["a"] == pytest.approx(asked, abs=longest / total)
        assert record["packing"]["balanced"] == 1.0


# snapshots, forks, folders


def factories() -> list[Any]:
    return [
        pytest.param(make, id="curves"),
        pytest.param(lambda: packed_env(two_sources()), id="rows"),
        pytest.param(lambda: make(environment={"observation": "dict"}), id="dict"),
    ]


def halfway(factory: Callable[[], MixtureEnv]) -> tuple[MixtureEnv, Any]:
    env = factory()
    env.reset(seed=11)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape))  # type: ignore[misc]
    play(env, actions[:2])
    return env, actions[2:].astype(np.float32)


@pytest.mark.parametrize("factory", factories())
def test_a_fork_goes_on_bit_equal_and_by_itself(factory: Callable[[], MixtureEnv]) -> None:
    env, actions = halfway(factory)
    twin = env.fork()
    ahead = play(twin, actions)
    assert play(env, actions) == ahead
    assert twin.world.learner is not env.world.learner
    assert twin.world.step_rule is not env.world.step_rule
    assert twin.reset()[1] == env.reset()[1]
    assert twin.progress.seed == env.progress.seed, "the stream of seeds goes on the same too"


@pytest.mark.parametrize("factory", factories())
def test_a_snapshot_may_be_gone_back_to(factory: Callable[[], MixtureEnv]) -> None:
    env, actions = halfway(factory)
    kept = env.snapshot()
    text = json.dumps(kept["state"])
    first = play(env, actions)
    assert json.dumps(kept["state"]) == text, "going on does not write into the snapshot"
    for _ in range(2):
        env.restore(kept)
        assert play(env, actions) == first
        assert len(env.progress.history or []) == 5
    other = factory()
    other.restore(kept)
    assert play(other, actions) == first
    assert other.reset()[1] == env.reset()[1]
    assert other.np_random.bit_generator.state == env.np_random.bit_generator.state


@pytest.mark.parametrize("factory", factories())
def test_a_folder_brings_everything_back(factory: Callable[[], MixtureEnv], tmp_path: Path) -> None:
    env, actions = halfway(factory)
    env.save(tmp_path)
    random = env.np_random.bit_generator.state
    first = play(env, actions)
    other = factory()
    observation = other.load(tmp_path)
    assert env.observation_space.contains(observation)
    assert other.np_random.bit_generator.state == random
    assert play(other, actions) == first
    other.reset()
    env.reset()
    assert other.progress.seed == env.progress.seed


@pytest.mark.parametrize("name", ["snapshot", "fork", "render"])
def test_before_the_first_reset_there_is_nothing_to_keep(name: str) -> None:
    with pytest.raises(MixgymError, match="call reset"):
        getattr(make(render_mode="ansi"), name)()
    with pytest.raises(MixgymError, match="call reset"):
        make().step(np.zeros(20, np.float32))


# the hook and the lazy reset


class CountingLearner(CurveLearner):
    resets = 0

    def reset(self) -> None:
        self.resets += 1
        super().reset()


def test_the_hook_runs_before_the_automatic_reset_and_the_reset_is_lazy() -> None:
    task = sample_task(0, sources=2, strata=1)
    learner = CountingLearner(task)
    seen: list[tuple[float, int, dict[str, Any]]] = []

    def hook(env: MixtureEnv, info: dict[str, Any]) -> None:
        info["kept"] = float(env.world.learner.evaluate("test").source_nll.mean())
        seen.append((info["kept"], learner.resets, info))

    training = {"steps": 20, "interval": 10}
    env = packed_env(two_sources(), training, learner, on_episode_end=hook)
    vector = DummyVecEnv([lambda: env])
    vector.reset()
    start = learner.evaluate("test").source_nll.mean()
    assert learner.resets == 1
    action = np.zeros((1, *env.action_space.shape), np.float32)  # type: ignore[misc]
    vector.step(action)
    assert seen == []
    _, _, dones, infos = vector.step(action)
    assert dones.all()
    assert [entry[1] for entry in seen] == [1], "reset before the hook"
    assert infos[0]["kept"] == seen[0][0] < start
    assert not infos[0]["TimeLimit.truncated"]
    # the vector environment has reset already; the fine-tuned model is still there
    assert learner.resets == 1
    assert learner.evaluate("test").source_nll.mean() == seen[0][0]
    vector.step(action)
    assert learner.resets == 2


def test_a_second_reset_does_not_measure_the_base_model_again() -> None:
    env = packed_env(two_sources())
    one = env.reset(seed=0)
    play(env, np.zeros((2, *env.action_space.shape)))  # type: ignore[misc]
    two = env.reset(seed=0)
    assert one[0].tolist() == two[0].tolist()
    assert one[1] == two[1]


# divergence


class DivergingLearner(CurveLearner):
    """Diverges at the third interval, in training or in the measurement after it."""

    where = "train"
    trained = 0

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        self.trained += 1
        if self.where == "train" and self.trained == 3:
            raise DivergenceError("loss is nan at step 21")
        return super().train(plan, step_rule, progress)

    def evaluate(self, split: str) -> Evaluation:
        if self.where == "evaluate" and self.trained == 3:
            raise DivergenceError("loss is inf on the reward split")
        return super().evaluate(split)


@pytest.mark.parametrize("where", ["train", "evaluate"])
def test_divergence_ends_the_episode_with_a_bounded_penalty(where: str) -> None:
    learner = DivergingLearner(sample_task(0, sources=2, strata=1))
    learner.where = where
    ended: list[Any] = []
    env = packed_env(two_sources(), learner=learner, on_episode_end=lambda *_: ended.append(1))
    env.reset(seed=0)
    action = np.array([1.0, -1.0, 0.0, 0.0], np.float32)
    assert not any(step[2] for step in play(env, [action] * 2))
    observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (FAILURE_PENALTY, True, False)
    assert np.isfinite(observation).all()
    assert env.observation_space.contains(observation)
    assert "decision 3" in info["failure"]
    assert "shares: a 0.89" in info["failure"]
    assert ended == []
    with pytest.raises(MixgymError, match="call reset"):
        env.step(action)
    env.reset()
    assert not env.step(action)[2]


# actions and errors


def test_a_nan_in_the_action_changes_nothing() -> None:
    env = make()
    env.reset(seed=0)
    action = np.zeros(20, np.float32)
    action[4] = np.nan
    with pytest.raises(MixgymError, match=r"action\[4\] is NaN"):
        env.step(action)
    assert env.progress.decisions == 0
    env.step(np.zeros(20, np.float32))


def test_padding_smaller_than_the_task_is_refused() -> None:
    with pytest.raises(MixgymError, match="max_sources, max_strata"):
        make(environment={"max_sources": 2})


def test_the_record_of_a_decision_is_plain_data_and_complete() -> None:
    env = packed_env(two_sources())
    first, _ = env.reset(seed=0)
    records = [step[4]["decision"] for step in rollout(env, 0)[2:]]
    assert json.loads(json.dumps(records)) == records
    assert [r["decision"] for r in records] == [1, 2, 3, 4, 5]
    assert records[0]["observation"] == first.tolist()
    for record in records:
        assert sum(record["mixture"].values()) == pytest.approx(1)
        assert sum(record["share"].values()) == pytest.approx(1)
        assert 0.8 < record["packing"]["fill"] <= 1
    assert records[-1]["supervised_tokens"] == env.progress.supervised
    # one measurement at the start and one after every decision
    per = records[0]["cost"]["measure_tokens"] // 2
    assert [r["cost"]["measure_tokens"] for r in records] == [per * n for n in range(2, 7)]


# pictures


def test_render_gives_a_picture_or_a_line_of_text() -> None:
    picture = make(render_mode="rgb_array")
    picture.reset(seed=0)
    empty = picture.render()
    play(picture, np.random.default_rng(0).uniform(-1, 1, (3, 20)))
    drawn = picture.render()
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3
    assert drawn.shape[2] == 3
    assert (empty != drawn).any()
    text = make(render_mode="ansi")
    text.reset(seed=0)
    assert text.render().startswith("decision 0: source0")
    assert "25%" in text.render()
    assert make().reset() is not None
    silent = make()
    silent.reset()
    assert silent.render() is None


# vector environments and algorithms


def test_environments_of_different_tasks_share_a_vector() -> None:
    options = {"max_sources": 5, "max_strata": 4}
    vector = DummyVecEnv(
        [
            lambda: make(environment=options, data={"strata": 2}),
            lambda: make(environment=options, data={"strata": 4}, seed=3),
        ]
    )
    assert vector.reset().shape == (2, *vector.observation_space.shape)  # type: ignore[misc]
    for _ in range(6):
        _, rewards, _, _ = vector.step(np.zeros((2, 25), np.float32))
    assert np.isfinite(rewards).all()


@pytest.mark.slow
def test_environments_in_other_processes_do_the_same() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, 20)).astype(np.float32)
    vectors = [DummyVecEnv([make, make]), SubprocVecEnv([make, make], start_method="spawn")]
    seen = []
    for vector in vectors:
        vector.seed(4)
        seen.append([vector.reset().tolist()])
        for action in actions:
            observations, rewards, dones, _ = vector.step(action)
            kept = (observations, rewards.astype(np.float32), dones)
            seen[-1].append([array.tolist() for array in kept])
        vector.close()
    assert seen[0] == seen[1]
    both = gym.vector.AsyncVectorEnv([make, make], context="spawn")
    observations, _ = both.reset(seed=4)
    assert observations[0].tolist() == seen[0][0][0]
    both.close()


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}),
        (A2C, {"n_steps": 8}),
        (SAC, {"learning_starts": 20, "train_freq": 8, "batch_size": 16, "buffer_size": 500}),
    ],
)
def test_algorithms_of_stable_baselines_run(algorithm: Any, options: dict[str, Any]) -> None:
    env = make()
    agent = algorithm("MlpPolicy", env, seed=0, device="cpu", **options)
    agent.learn(128)
    action, _ = agent.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)
    assert len(agent.ep_info_buffer) >= 128 // 5 - 1


# what is made once


@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_an_observation_is_made_once_and_its_fixed_part_once_an_episode(
    observation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any) -> Any:
            made.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(observations, "features")
    counted(episode, "fixed_parts")
    env = make(environment={"observation": observation})
    for _ in range(2):
        first, _ = env.reset(seed=0)
        steps = play(env, np.zeros((5, 20), np.float32))
        assert made.count("features") == 6, "one for the reset, one for each step"
        assert made.count("fixed_parts") == 1
        made.clear()
        flat = [env_flat(seen) for seen in (plain(first), *(step[0] for step in steps))]
        assert [step[4]["decision"]["observation"] for step in steps] == flat[:-1]


def env_flat(seen: Any) -> list[float]:
    """The flat observation that a Dict holds, or that it is."""
    parts = ("progress", "sources", "strata", "masks")
    return [x for part in parts for x in seen[part]] if isinstance(seen, dict) else list(seen)


def test_the_fixed_part_follows_cells_that_are_used_up() -> None:
    short, long = two_sources(400)
    env = packed_env([replace(short, max_epochs=0.05), long], {"steps": 20, "interval": 2})
    env.reset(seed=0)
    seen = [step[0] for step in play(env, np.zeros((10, 4), np.float32))]
    assert seen[0][-4:] == [1, 1, 1, 1]
    assert seen[-1][-4:] == [0, 1, 0, 1]
    twin = packed_env([replace(short, max_epochs=0.05), long], {"steps": 20, "interval": 2})
    twin.restore(env.snapshot())
    assert twin._flat.tolist() == seen[-1], "and is the same where it is made anew"


def test_an_episode_shorter_than_its_last_interval_is_the_same_in_a_batch() -> None:
    options: dict[str, Any] = {"training": {"steps": 25, "interval": 10}}
    env, batch = make(**options), gym.make_vec("mixgym/Mixture-v0", num_envs=1, **options)
    env.reset(seed=3)
    batch.reset(seed=3)
    zero = np.zeros((1, 20), np.float32)
    for ended in (False, False, True):
        alone, together = env.step(zero[0]), batch.step(zero)
        assert alone[2] == bool(together[2][0]) == ended
        records = alone[4]["decision"], together[4]["decision"][0]
        assert records[0]["supervised_tokens"] == records[1]["supervised_tokens"]
        assert alone[1] == pytest.approx(float(together[1][0]), abs=1e-9)
