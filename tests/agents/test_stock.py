"""Agents of Stable-Baselines3 with stock policies: trained on registered ids, and not unpickled."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import ARS, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

import mixgym  # noqa: F401 - registers the environments
from mixgym.agents.stock import StockAgent, needs, read_stock
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.observations import local_observation

SIZE = {"max_sources": 6, "max_strata": 5}
SHORT: dict[str, Any] = {"training": {"steps": 8, "interval": 1}}


def world(name: str = "Mixture", **environment: Any) -> gym.Env[Any, Any]:
    return gym.make(f"mixgym/{name}-v0", environment={**SIZE, **environment}, **SHORT)


def vector(**environment: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: world(**environment)])


def saved(folder: Path, algorithm: BaseAlgorithm) -> Path:
    algorithm.save(folder / "agent.zip")
    return folder / "agent.zip"


ON: dict[str, Any] = {"n_steps": 8}
SMALL: dict[str, Any] = {**ON, "batch_size": 4}
OFF = {"buffer_size": 100, "learning_starts": 4}
MAKERS: dict[str, Any] = {
    "ppo": lambda env: PPO("MlpPolicy", env, batch_size=4, device="cpu", seed=1, **ON),
    "a2c, own layers": lambda env: A2C(
        "MlpPolicy", env, policy_kwargs={"net_arch": {"pi": [8], "vf": [16]}}, device="cpu", **ON
    ),
    "ppo, relu": lambda env: PPO(
        "MlpPolicy", env, policy_kwargs={"activation_fn": torch.nn.ReLU}, device="cpu", **SMALL
    ),
    "a2c, sde": lambda env: A2C("MlpPolicy", env, use_sde=True, device="cpu", **ON),
    "trpo": lambda env: TRPO("MlpPolicy", env, device="cpu", **SMALL),
    "sac": lambda env: SAC("MlpPolicy", env, device="cpu", **OFF),
    "td3": lambda env: TD3("MlpPolicy", env, device="cpu", **OFF),
    "ars": lambda env: ARS("LinearPolicy", env, n_delta=1, device="cpu"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_agent_acts_as_its_algorithm_does(name: str, tmp_path: Path) -> None:
    env = world()
    algorithm = MAKERS[name](env)
    algorithm.learn(16)
    agent = StockAgent(vector(), path=str(saved(tmp_path, algorithm)))
    observation, _ = env.reset(seed=3)
    for seen in (observation, np.stack([observation, -observation])):
        wanted, _ = algorithm.predict(seen, deterministic=True)
        found, _ = agent.predict(seen)
        np.testing.assert_array_equal(found, wanted)


def test_a_memory_is_kept_in_the_state(tmp_path: Path) -> None:
    env = world()
    algorithm = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        policy_kwargs={"lstm_hidden_size": 8},
        device="cpu",
        batch_size=8,
        **ON,
    )
    agent = StockAgent(vector(), path=str(saved(tmp_path, algorithm)))
    observation, _ = env.reset(seed=3)
    start, states = np.array([True]), (None, None)
    for _ in range(3):
        wanted, one = algorithm.predict(observation[None], states[0], start, deterministic=True)
        found, two = agent.predict(observation[None], states[1], start)
        np.testing.assert_array_equal(found, wanted)
        agent._state = two
        states, start = (one, agent.memory()), np.array([False])
        agent.set_memory(states[1])
        states = (one, agent._state)


def test_nudges_are_read_off_the_file(tmp_path: Path) -> None:
    env = world(action="nudge")
    path = saved(tmp_path, DQN("MlpPolicy", env, device="cpu", **OFF))
    asked = needs({"path": str(path)})
    assert (asked.action, asked.observation, asked.settings) == ("nudge", "flat", SIZE)
    agent = StockAgent(vector(action="nudge"), path=str(path))
    action, _ = agent.predict(env.reset(seed=1)[0][None])
    assert 0 <= int(action[0]) <= 6 * 6


def test_the_dict_observation_needs_no_size(tmp_path: Path) -> None:
    env = world(observation="dict")
    path = saved(tmp_path, PPO("MultiInputPolicy", env, device="cpu", batch_size=4, **ON))
    asked = needs({"path": str(path)})
    assert (asked.observation, asked.signals, asked.settings) == ("dict", True, {})
    agent = StockAgent(vector(observation="dict"), path=str(path))
    action, _ = agent.predict(env.reset(seed=1)[0])
    assert action.shape == (6 * 6,)


def test_levels_decide_for_their_part(tmp_path: Path) -> None:
    joint = world()
    flat = np.stack([joint.reset(seed=seed)[0] for seed in (1, 2)])
    top = PPO("MlpPolicy", world("Global"), device="cpu", batch_size=4, **ON)
    agent = StockAgent(vector(), path=str(saved(tmp_path, top)))
    assert agent.card.level == "global"
    assert needs({"path": str(agent.card.path)}).settings == SIZE
    actions, _ = agent.predict(flat)
    np.testing.assert_array_equal(actions[:, :6], top.predict(flat, deterministic=True)[0])
    assert not actions[:, 6:].any()

    inner = PPO("MlpPolicy", world("Local"), device="cpu", batch_size=4, **ON)
    agent = StockAgent(vector(), path=str(saved(tmp_path, inner)))
    assert agent.card.level == "local"
    assert needs({"path": str(agent.card.path)}).settings == {"max_strata": 5}
    actions, _ = agent.predict(flat)
    assert not actions[:, :6].any()
    rows = local_observation(flat, (6, 5))
    for source in range(6):
        wanted, _ = inner.predict(rows[:, source], deterministic=True)
        part = actions[:, 6 + 5 * source : 11 + 5 * source]
        np.testing.assert_allclose(part, wanted, atol=1e-6)
    single, _ = agent.predict(flat[0])
    np.testing.assert_allclose(single, actions[0], atol=1e-6)


def test_nothing_in_a_file_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, PPO("MlpPolicy", world(), device="cpu", batch_size=4, **ON))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr("cloudpickle.loads", refuse)
    assert StockAgent(vector(), path=str(path)).card.policy == (
        "stable_baselines3.common.policies:ActorCriticPolicy"
    )


class OwnExtractor(FlattenExtractor):
    """Of somebody's own."""


def test_pickled_arguments_need_a_word_of_trust(tmp_path: Path) -> None:
    algorithm = PPO(
        "MlpPolicy",
        world(),
        device="cpu",
        batch_size=4,
        policy_kwargs={"features_extractor_class": OwnExtractor},
        **ON,
    )
    path = str(saved(tmp_path, algorithm))
    with pytest.raises(ConfigError, match=r"arguments that are pickled .*unpickle=true"):
        StockAgent(vector(), path=path)
    agent = StockAgent(vector(), path=path, unpickle=True)
    observation = world().reset(seed=2)[0]
    wanted, _ = algorithm.predict(observation, deterministic=True)
    np.testing.assert_array_equal(agent.predict(observation)[0], wanted)


def rewritten(path: Path, change: Any) -> str:
    """A copy of a file with other data."""
    other = path.with_name("other.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data":
                data = json.loads(content)
                change(data)
                content = json.dumps(data).encode()
            new.writestr(name, content)
    return str(other)


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path, PPO("MlpPolicy", world(), device="cpu", batch_size=4, **ON))
    with pytest.raises(ConfigError, match=r"with max_sources=6, max_strata=5, and this .* 7 and"):
        StockAgent(vector(max_sources=7), path=str(path))
    with pytest.raises(ConfigError, match="give the file of an agent"):
        StockAgent(vector())
    with pytest.raises(ConfigError, match="is loaded in an environment only"):
        StockAgent(None, path=str(path))
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("text.zip", "missing.zip"):
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read .*give the file"):
            read_stock(tmp_path / name)

    def foreign(data: dict[str, Any]) -> None:
        data["policy_class"]["__module__"] = "os"

    with pytest.raises(ConfigError, match=r"a policy of its own \(os:ActorCriticPolicy\)"):
        StockAgent(vector(), path=rewritten(path, foreign))

    def no_policy(data: dict[str, Any]) -> None:
        data["policy_class"]["__init__"] = "<function PPO.__init__ at 0x0>"
        data["policy_class"]["__module__"] = "stable_baselines3.ppo.ppo"

    with pytest.raises(ConfigError, match="is no policy"):
        StockAgent(vector(), path=rewritten(path, no_policy))

    def other_layers(data: dict[str, Any]) -> None:
        data["policy_kwargs"] = {"net_arch": [4]}

    with pytest.raises(ConfigError, match="cannot be made of it"):
        StockAgent(vector(), path=rewritten(path, other_layers))

    def other_space(data: dict[str, Any]) -> None:
        data["observation_space"]["_shape"] = [7]

    with pytest.raises(ConfigError, match="observations of 7 numbers and 36 actions, which no env"):
        read_stock(rewritten(path, other_space))
