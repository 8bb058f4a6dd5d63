"""Two learners in one rollout: each learns as its own ``learn`` would have it, to the same bits."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.noise import NormalActionNoise

from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.levels.batch_global import GlobalLevel
from mixgym.envs.levels.batch_local import LocalRows
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.training.row_buffers import (
    PresentNStepReplay,
    PresentReplay,
    PresentRollout,
    learn_from_present_rows,
)
from mixgym.trainer.training.shared_rollout import Together
from mixgym.trainer.training.stepped_learner import (
    OffPolicyStepped,
    OnPolicyStepped,
    Spaces,
    make_stepped_learner,
)

COUNT, SEED = 2, 3
NET = {"net_arch": [8]}
ON = {"n_steps": 8, "gamma": 0.9}
OFF = {"learning_starts": 8, "buffer_size": 400, "batch_size": 8, "train_freq": 2}
NOISE = {"action_noise": NormalActionNoise(np.zeros(12), np.full(12, 0.2))}
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PPO": (stable_baselines3.PPO, {**ON, "batch_size": 8, "n_epochs": 2}),
    "PPO with state-dependent exploration": (
        stable_baselines3.PPO,
        {**ON, "batch_size": 8, "n_epochs": 2, "use_sde": True, "sde_sample_freq": 3},
    ),
    "A2C": (stable_baselines3.A2C, ON),
    "TRPO": (sb3_contrib.TRPO, {**ON, "batch_size": 16}),
    "SAC": (stable_baselines3.SAC, {**OFF, "gradient_steps": -1}),
    "TD3": (stable_baselines3.TD3, {**OFF, **NOISE}),
    "DDPG": (stable_baselines3.DDPG, {**OFF, **NOISE}),
    "TQC": (sb3_contrib.TQC, OFF),
    "CrossQ": (sb3_contrib.CrossQ, OFF),
}
STEPS = 40


def world() -> CurvesVecEnv:
    return CurvesVecEnv(COUNT, range(4), EnvironmentOptions(learner="curves"), seed=SEED)


def weights(algorithm: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in algorithm.policy.state_dict().items()}


def assert_equal(one: Any, other: Any) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def stepped(kind: Any, view: Any, options: dict[str, Any]) -> Any:
    return kind(
        "MlpPolicy", Spaces(view), seed=SEED, device="cpu", policy_kwargs=dict(NET), **options
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_manager_learns_as_it_would_alone(name: str) -> None:
    kind, options = ALGORITHMS[name]
    view = GlobalLevel(world(), period=3, discount=0.9)
    alone = kind("MlpPolicy", view, seed=SEED, device="cpu", policy_kwargs=dict(NET), **options)
    start = weights(alone)
    alone.learn(STEPS * COUNT, log_interval=2)
    env = world()
    beside = stepped(kind, view, options)
    learner = make_stepped_learner(beside, name)
    driver = Together(env, learner, None, period=3, discount=0.9)
    learner.begin(STEPS * COUNT, log_interval=2)
    env.seed(SEED)
    driver.reset()
    driver.learn(lambda: beside.num_timesteps < alone.num_timesteps, lambda: None)
    assert beside.num_timesteps == alone.num_timesteps >= STEPS * COUNT
    assert_equal(beside, alone)
    assert any(not torch.equal(value, start[key]) for key, value in weights(alone).items())
    assert list(beside.ep_info_buffer) == list(alone.ep_info_buffer)


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_a_shared_local_learner_learns_as_it_would_alone(name: str) -> None:
    kind, options = ALGORITHMS[name]
    options = {**options, **({"batch_size": 48} if name == "PPO" else {})}
    alone = kind(
        "MlpPolicy", LocalRows(world(), team=0.3), seed=SEED, policy_kwargs=dict(NET), **options
    )
    learn_from_present_rows(alone)
    alone.learn(16 * COUNT * 12)
    env = world()
    beside = stepped(kind, LocalRows(env), options)
    learn_from_present_rows(beside)
    learner = make_stepped_learner(beside, name)
    driver = Together(env, None, learner, team=0.3)
    learner.begin(16 * COUNT * 12, log_interval=1)
    env.seed(SEED)
    driver.reset()
    driver.learn(lambda: beside.num_timesteps < alone.num_timesteps, lambda: None)
    assert_equal(beside, alone)


def pair(env: CurvesVecEnv, top: str, inner: str) -> tuple[Together, list[Any]]:
    (one, one_options), (two, two_options) = ALGORITHMS[top], ALGORITHMS[inner]
    views = GlobalLevel(env), LocalRows(env)
    manager = stepped(one, views[0], one_options)
    local = stepped(two, views[1], {k: v for k, v in two_options.items() if k != "action_noise"})
    learn_from_present_rows(local)
    return Together(
        env, make_stepped_learner(manager, top), make_stepped_learner(local, inner), period=2
    ), [
        manager,
        local,
    ]


@pytest.mark.parametrize(("top", "inner"), [("PPO", "PPO"), ("SAC", "TD3"), ("A2C", "SAC")])
def test_any_pair_learns_together_and_halves_make_a_whole(
    top: str, inner: str, tmp_path: Path
) -> None:
    def run(halves: list[int], folder: Path) -> list[Any]:
        env = world()
        driver, learners = pair(env, top, inner)
        for _, learner in driver.learners():
            learner.begin(1000, 1)
        env.seed(SEED)
        driver.reset()
        for index, spans in enumerate(halves):
            left = iter([True] * spans)
            driver.learn(functools.partial(next, left, False), lambda: None)
            for level, learner in driver.learners():  # saving disturbs nothing
                (folder / f"{index}-{level}").mkdir(parents=True)
                learner.save(folder / f"{index}-{level}")
        return learners

    whole, halves = run([20], tmp_path / "whole"), run([7, 13], tmp_path / "halves")
    for one, other in zip(whole, halves, strict=True):
        assert_equal(one, other)
        before = stepped(type(one), Spaces(one.env), {}).policy.state_dict()
        after = one.policy.state_dict()
        assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_learners_that_cannot_sit_beside_another_are_refused() -> None:
    env = world()
    recurrent = sb3_contrib.RecurrentPPO(
        "MlpLstmPolicy", GlobalLevel(env), n_steps=8, batch_size=8, device="cpu"
    )
    with pytest.raises(ConfigError, match="recurrent_ppo cannot learn beside another"):
        make_stepped_learner(recurrent, "recurrent_ppo")
    ars = sb3_contrib.ARS("LinearPolicy", GlobalLevel(env), device="cpu")
    with pytest.raises(ConfigError, match=r"ars .*alternate"):
        make_stepped_learner(ars, "ars")
    assert isinstance(make_stepped_learner(stepped(*_of("A2C")), "a2c"), OnPolicyStepped)
    assert isinstance(make_stepped_learner(stepped(*_of("TD3")), "td3"), OffPolicyStepped)


def _of(name: str) -> tuple[Any, Any, Any]:
    kind, options = ALGORITHMS[name]
    return kind, GlobalLevel(world()), options


def test_spaces_cannot_be_stepped() -> None:
    env = Spaces(GlobalLevel(world()))
    with pytest.raises(RuntimeError, match="only tells its spaces"):
        env.step(np.zeros((COUNT, 12), np.float32))


# --- padded rows ----------------------------------------------------------------------------------


def filled(kind: type, steps: int, **options: Any) -> tuple[Any, list[np.ndarray]]:
    """A buffer of rows of two environments, and the rows that exist, in the order of time."""
    view = LocalRows(world())
    size = steps if kind is PresentRollout else steps * view.num_envs
    spaces = view.observation_space, view.action_space
    buffer = kind(size, *spaces, "cpu", n_envs=view.num_envs, **options)
    seen: Any = view.reset()
    kept: list[np.ndarray] = []
    for step in range(steps):
        action = np.full((view.num_envs, 4), 0.1 * step, np.float32)
        after, paid, dones, infos = view.step(action)
        kept += list(seen[seen[:, -4:].max(1) > 0.5])
        if kind is PresentRollout:
            zero = torch.zeros(view.num_envs)
            buffer.add(seen, action, paid, dones, zero, zero)
        else:
            buffer.add(seen, after, action, paid, dones, infos)
        seen = after
    return buffer, kept


def test_a_rollout_gives_every_existing_row_once_and_no_other() -> None:
    buffer, kept = filled(PresentRollout, 4)
    assert 0 < len(kept) < 4 * COUNT * 12, "some rows are padded, some exist"
    buffer.compute_returns_and_advantage(torch.zeros(COUNT * 12), np.zeros(COUNT * 12))
    for _ in range(2):  # epochs
        batches = list(buffer.get(7))
        found = np.concatenate([batch.observations.numpy() for batch in batches])
        assert sorted(map(tuple, found.tolist())) == sorted(tuple(row.tolist()) for row in kept)
        assert [len(batch.actions) for batch in batches[:-1]] == [7] * (len(batches) - 1)
    assert len(buffer.values) == len(kept), "explained variance is over them, too"
    buffer.reset()
    assert buffer.observations.shape[:2] == (4, COUNT * 12)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_replay_gives_existing_rows_only(steps: int) -> None:
    kind = PresentReplay if steps == 1 else PresentNStepReplay
    buffer, kept = filled(kind, 5, **({} if steps == 1 else {"n_steps": steps}))
    exist = {tuple(row.tolist()) for row in kept}
    assert len(exist) < 5 * COUNT * 12
    np.random.seed(0)  # noqa: NPY002  # the stream that Stable-Baselines3 draws from
    sample = buffer.sample(200)
    assert len(sample.observations) == len(sample.actions) == len(sample.rewards) == 200
    found = {tuple(row) for row in sample.observations.tolist()}
    assert found <= exist
    assert len(found) > len(exist) / 2, "and they are not few"
    assert (sample.discounts is None) == (steps == 1)


def test_a_replay_without_rows_says_so() -> None:
    buffer, _ = filled(PresentReplay, 2)
    buffer.observations[:] = 0
    with pytest.raises(RuntimeError, match="no 8 rows"):
        buffer.sample(8)


def test_off_policy_algorithms_keep_their_returns() -> None:
    kind, options = ALGORITHMS["SAC"]
    view = LocalRows(world())
    algorithm = stepped(kind, view, {**options, "n_steps": 3})
    learn_from_present_rows(algorithm)
    assert type(algorithm.replay_buffer) is PresentNStepReplay
    assert algorithm.replay_buffer.n_steps == 3
    assert algorithm.replay_buffer.buffer_size == options["buffer_size"] // view.num_envs


def test_buffers_of_another_kind_are_left_alone() -> None:
    view = LocalRows(world())
    recurrent = sb3_contrib.RecurrentPPO(
        "MlpLstmPolicy", view, n_steps=8, batch_size=24, device="cpu"
    )
    before = recurrent.rollout_buffer
    learn_from_present_rows(recurrent)
    assert recurrent.rollout_buffer is before
