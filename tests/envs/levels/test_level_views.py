"""The two levels as environments: what they see and are paid, and how spans add up."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError, MixgymError
from mixgym.envs.levels.batch_global import GlobalLevel, ends_span, level_shape
from mixgym.envs.levels.batch_local import local_rows, present_rows, row_infos, row_rewards, rows_of
from mixgym.envs.levels.single import make_global_env, make_local_env
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.spaces.observations import flat_space, local_size

COUNT = 3
OPTIONS = EnvironmentOptions(learner="curves")


class Constant:
    """Decides the same everywhere, and counts in its memory how often it was asked."""

    def __init__(self, value: float, shape: tuple[int, int] = (12, 4)) -> None:
        self.value = value
        self.shape = shape
        self.asked: list[int] = []

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        batch = np.atleast_2d(observation)
        before = np.zeros(len(batch)) if state is None else state[0]
        now = np.where(episode_start, 1.0, before + 1.0)
        self.asked.append(int(now[0]))
        sources, strata = self.shape
        action = np.full((len(batch), sources * (1 + strata)), self.value, np.float32)
        action[:, sources::strata] = -self.value  # not the same for all strata, or nothing changes
        return (action[0] if np.ndim(observation) == 1 else action), (now,)


def joint(seed: int = 0) -> CurvesVecEnv:
    return CurvesVecEnv(COUNT, range(6), OPTIONS, seed=seed)


def test_the_global_level_completes_actions_and_keeps_the_others_memory() -> None:
    other = Constant(0.5)
    view, env = GlobalLevel(joint(), other), joint()
    seen: Any = view.reset()
    flat: Any = env.reset()
    rng = np.random.default_rng(0)
    state, start = None, np.ones(COUNT, np.bool_)
    reference = Constant(0.5)
    for _ in range(40):  # past the end of an episode
        assert seen.tolist() == flat.tolist()
        top = rng.uniform(-1, 1, (COUNT, 12)).astype(np.float32)
        whole, state = reference.predict(flat, state, start)
        whole[:, :12] = top
        flat, rewards, dones, _ = env.step(whole)
        start = dones
        seen, paid, ended, _ = view.step(top)
        assert paid.tolist() == rewards.tolist()
        assert ended.tolist() == dones.tolist()
    assert other.asked == [*range(1, 33), *range(1, 9)], "its memory is cleared with the episode"


@pytest.mark.parametrize(("period", "spans"), [(1, 32), (4, 8), (5, 7), (40, 1)])
def test_rewards_of_a_span_are_summed_and_the_last_one_is_shorter(period: int, spans: int) -> None:
    discount = 0.9
    view, env = GlobalLevel(joint(), None, period=period, discount=discount), joint()
    view.reset()
    env.reset()
    top = np.random.default_rng(1).uniform(-1, 1, (spans, COUNT, 12)).astype(np.float32)
    for span in range(spans):
        _, paid, dones, infos = view.step(top[span])
        expected = np.zeros(COUNT)
        for index in range(min(period, 32 - span * period)):
            whole = np.zeros((COUNT, 60), np.float32)
            whole[:, :12] = top[span]
            _, rewards, ended, _ = env.step(whole)
            expected += discount**index * rewards
        assert paid == pytest.approx(expected, abs=1e-6)
        assert dones.tolist() == ended.tolist()
        assert ("episode" in infos[0]) == (span == spans - 1)


def test_episodes_of_unequal_length_are_refused_inside_a_span() -> None:
    assert ends_span(np.array([True, False]), index=1, period=2), "at its end they may differ"
    assert not ends_span(np.array([False, False]), index=0, period=2)
    with pytest.raises(MixgymError, match=r"1 of 2 episodes .*train\.period=1"):
        ends_span(np.array([True, False]), index=0, period=2)


def test_rows_see_their_source_and_are_paid_their_own_part() -> None:
    view, env = local_rows(joint()), joint()
    rows: Any = view.reset()
    flat: Any = env.reset()
    assert rows.tolist() == rows_of(flat, (12, 4)).tolist()
    rng = np.random.default_rng(2)
    for _ in range(33):
        inner = rng.uniform(-1, 1, (COUNT * 12, 4)).astype(np.float32)
        whole = np.zeros((COUNT, 60), np.float32)
        whole[:, 12:] = inner.reshape(COUNT, -1)
        flat, _, dones, infos = env.step(whole)
        rows, paid, ended, row_info = view.step(inner)
        present = present_rows(rows, 4).reshape(COUNT, 12)
        for i, info in enumerate(infos):
            local = info["decision"]["reward"]["local"]
            own = paid.reshape(COUNT, 12)[i]
            assert own[: len(local)] == pytest.approx([*local.values()], abs=1e-6)
            assert (own[len(local) :] == 0).all()
            if not dones[i]:
                assert present[i].tolist() == [k < len(local) for k in range(12)]
            assert row_info[i * 12].get("episode") == info.get("episode")
            assert "episode" not in row_info[i * 12 + 1]
        assert ended.reshape(COUNT, 12).tolist() == [[d] * 12 for d in dones]


def test_the_pay_of_rows_by_hand() -> None:
    record: Any = {"mixture": {"a": 0.5, "b": 0.5}, "reward": {"local": {"a": 0.2}}}
    infos: list[dict[str, Any]] = [{"decision": record}, {"failure": "diverged"}]
    rewards = np.array([1.0, -5.0])
    alone = row_rewards(rewards, infos, 3)
    assert alone.tolist() == pytest.approx([0.2, 0, 0, -5, -5, -5])
    half = row_rewards(rewards, infos, 3, team=0.5)
    # b is not measured, so that only the team pays it; the third row is no source
    assert half.tolist() == pytest.approx([0.6, 0.5, 0, -5, -5, -5])


def test_last_observations_of_rows_and_cuts_are_handed_on() -> None:
    last = np.arange(flat_space((2, 1)).shape[0], dtype=np.float32)
    (first, second) = row_infos(
        [{"terminal_observation": last, "TimeLimit.truncated": True}], (2, 1)
    )
    assert first["terminal_observation"].shape == (local_size(1),)
    assert second["terminal_observation"].tolist() == rows_of(last[None], (2, 1))[1].tolist()
    assert first["TimeLimit.truncated"] is True
    assert row_infos([{}], (2, 1)) == [{}, {}]


def test_levels_want_logits_and_the_flat_observation() -> None:
    rule = CurvesVecEnv(2, range(2), EnvironmentOptions(learner="curves", observation="dict"))
    with pytest.raises(ValueError, match="flat observation"):
        level_shape(rule)


def test_the_single_global_environment_holds_its_action() -> None:
    other = Constant(0.3, (4, 4))
    single, joint_env = make_global_env(other, period=3), make_mixture_env()
    single.reset(seed=5)
    flat, _ = joint_env.reset(seed=5)
    top = np.linspace(-1, 1, 4).astype(np.float32)
    seen, reward, done, _, info = single.step(top)
    total = 0.0
    for _ in range(3):
        whole, _ = Constant(0.3, (4, 4)).predict(flat, None, np.array([True]))
        whole[:4] = top
        flat, paid, *_ = joint_env.step(whole)
        total += paid
    assert reward == pytest.approx(total)
    assert seen.tolist() == flat.tolist()
    assert [d["decision"] for d in info["decisions"]] == [1, 2, 3]
    assert not done
    assert other.asked == [1, 2, 3], "strata are decided at every decision"
    with pytest.raises(ConfigError, match="period=0"):
        make_global_env(period=0)


def test_a_span_of_the_single_environment_ends_with_the_episode() -> None:
    env = make_global_env(period=1000)
    env.reset(seed=1)
    _, _, done, _, info = env.step(np.zeros(4, np.float32))
    assert done
    assert info["decisions"][-1]["decision"] == len(info["decisions"])


def test_views_stand_on_any_vector_environment() -> None:
    vector = DummyVecEnv([make_mixture_env])
    view = GlobalLevel(vector, period=2)
    assert view.reset().shape == (1, vector.observation_space.shape[0])  # type: ignore[index]
    observation: Any
    observation, paid, dones, _ = view.step(np.zeros((1, view.shape[0]), np.float32))
    assert (observation.shape[0], paid.shape, dones.tolist()) == (1, (1,), [False])
    rows = local_rows(vector)
    assert len(rows.reset()) == rows.num_envs == view.shape[0]
    own = make_local_env(0)
    assert own.observation_space == rows.observation_space


def test_views_continue_from_their_memory() -> None:
    for make in (
        lambda env: GlobalLevel(env, Constant(0.2)),
        lambda env: local_rows(env, Constant(0.2)),
    ):
        env = joint()
        view: Any = make(env)
        view.reset()
        shape = (view.num_envs, *view.action_space.shape)
        action = np.full(shape, 0.1, np.float32)
        view.step(action)
        memory, state = [np.copy(a) for a in view.memory()], env.state()
        expected = [view.step(action)[1].tolist() for _ in range(3)]
        view.reset()
        env.set_state(state)
        view.set_memory(memory)
        assert [view.step(action)[1].tolist() for _ in range(3)] == expected
