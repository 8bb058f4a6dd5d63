"""The paper's REINFORCE out of stock algorithms of Stable-Baselines3, and where they rest."""

from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from mixgym.agents.hbo.updates import UPDATES
from mixgym.envs.arrays import FloatArray
from mixgym.envs.rewards import log_utility_of

P = np.array([0.5, 0.3, 0.2])
R = np.array([2.0, 1.0, 1.0])
RATE = 0.1
GRADIENTS = [[1, -0.6, -0.4], [-0.5, 0.7, -0.2], [-0.5, -0.3, 0.8]]
SAMPLED = [
    [-0.593147, -1.263973, -1.649438],
    [-0.743147, -1.133973, -1.629438],
    [-0.743147, -1.233973, -1.529438],
]
WEIGHTED = [
    [-0.493147, -1.323973, -1.689438],
    [-0.859814, -0.970639, -1.676105],
    [-0.943147, -1.353973, -1.209438],
]


class Arms(gym.Env[Any, Any]):
    """A bandit whose observation is 0: only the output's bias learns, and it is the logits."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), float(R[action]), True, False, {}


class Double(FlattenExtractor):
    """Features in float64, so that a step can be compared to all its digits."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations).double()


def algorithm(kind: str, count: int = 1, rate: float = RATE) -> OnPolicyAlgorithm:
    """The recipe: a bare table of logits, plain ascent, no critic, nothing clipped."""
    common: dict[str, Any] = {
        "n_steps": 1 if kind == "a2c" else 2,
        "gamma": 0.0,
        "gae_lambda": 1.0,
        "vf_coef": 0.0,
        "ent_coef": 0.0,
        "max_grad_norm": 1e9,
        "learning_rate": rate,
        "normalize_advantage": False,
        "policy_kwargs": {
            "net_arch": [],
            "optimizer_class": torch.optim.SGD,
            "features_extractor_class": Double,
        },
        "seed": 0,
        "device": "cpu",
    }
    env = DummyVecEnv([Arms] * count)
    model: OnPolicyAlgorithm
    if kind == "a2c":
        model = A2C("MlpPolicy", env, use_rms_prop=False, **common)
    else:
        model = PPO("MlpPolicy", env, n_epochs=1, batch_size=2 * count, **common)
    model._setup_learn(1)
    model.policy.double()
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
        table_of(model).copy_(torch.tensor(np.log(P)))
    return model


def table_of(model: OnPolicyAlgorithm) -> torch.Tensor:
    """The logits: the bias of the output."""
    return cast(torch.nn.Linear, model.policy.action_net).bias


def train_on(model: OnPolicyAlgorithm, arms: list[int], rewards: list[float]) -> FloatArray:
    """One update from these transitions, one per environment (and step); returns the logits."""
    count = model.n_envs
    buffer = model.rollout_buffer
    buffer.reset()
    zeros = np.zeros((count, 1), np.float32)
    with torch.no_grad():
        log_probs = torch.log_softmax(table_of(model), 0)
    for step in range(model.n_steps):
        own = slice(step * count, (step + 1) * count)
        buffer.add(
            zeros,
            np.array(arms[own])[:, None],
            np.array(rewards[own]),
            np.ones(count),
            torch.zeros(count),
            log_probs[arms[own]],
        )
    buffer.compute_returns_and_advantage(torch.zeros(count), np.ones(count))
    model.train()
    logits: FloatArray = table_of(model).detach().numpy()
    return logits


@pytest.mark.parametrize("arm", range(3))
def test_stock_a2c_is_reinforce(arm: int) -> None:
    logits = train_on(algorithm("a2c"), [arm], [R[arm]])
    np.testing.assert_allclose(logits, SAMPLED[arm], atol=1e-6)
    np.testing.assert_allclose(logits, np.log(P) + RATE * np.array(GRADIENTS[arm]), atol=1e-7)


@pytest.mark.parametrize("arm", range(3))
def test_stock_a2c_with_importance_weights(arm: int) -> None:
    logits = train_on(algorithm("a2c"), [arm], [R[arm] / P[arm]])
    np.testing.assert_allclose(logits, WEIGHTED[arm], atol=1e-6)
    draw = np.array(np.cumsum(P)[arm] - 0.01)
    gradient = UPDATES["sampled_importance_weighted"].gradient(P, R, draw)
    np.testing.assert_allclose(logits, np.log(P) + RATE * gradient, atol=2e-7)


def test_the_papers_update_is_one_pseudo_transition_per_arm() -> None:
    logits = train_on(algorithm("a2c", 3, 3 * RATE), [0, 1, 2], list(R))
    gradient = UPDATES["enumerated"].gradient(P, R, np.zeros(()))
    np.testing.assert_allclose(logits, np.log(P) + RATE * gradient, atol=1e-7)


def test_a_large_gradient_is_clipped_by_the_default() -> None:
    model = algorithm("a2c")
    model.max_grad_norm = 0.5  # the default of A2C
    logits = train_on(model, [0], [R[0]])
    assert np.abs(logits - SAMPLED[0]).max() > 0.01


def test_stock_ppo_takes_the_same_first_step() -> None:
    model = algorithm("ppo", 3, 3 * RATE)
    logits = train_on(model, [0, 1, 2] * 2, list(R) * 2)  # its ratio is 1
    gradient = UPDATES["enumerated"].gradient(P, R, np.zeros(()))
    np.testing.assert_allclose(logits, np.log(P) + RATE * gradient, atol=1e-7)


TARGET = np.array([0.25, 0.25, 0.5])  # R / sum R of R = (1, 1, 2)
PRIOR = np.array([0.8, 0.15, 0.05])


class Utility(gym.Env[Any, Any]):
    """Logits around a prior, paid by the log utility of a fixed reward."""

    scale, floor = 3.0, 0.02

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        value = log_utility_of(self.weights(action), np.array([1.0, 1.0, 2.0]))
        return np.zeros(1, np.float32), float(value), True, False, {}

    @classmethod
    def weights(cls, action: Any) -> FloatArray:
        powers = PRIOR * np.exp(cls.scale * np.asarray(action, np.float64))
        soft: FloatArray = powers / powers.sum()
        return (1 - cls.floor) * soft + cls.floor / 3


def divergence(weights: FloatArray) -> float:
    return float((TARGET * np.log(TARGET / weights)).sum())


def learner(name: str) -> tuple[Any, int]:
    """Budgets of seconds on one core."""
    env = DummyVecEnv([Utility] * 8)
    small: dict[str, Any] = {"net_arch": [16]}
    noise = NormalActionNoise(np.zeros(3), 0.2 * np.ones(3))
    off: dict[str, Any] = {
        "learning_starts": 64,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "gamma": 0.0,
        "policy_kwargs": small,
        "seed": 1,
        "device": "cpu",
    }
    if name == "ppo":
        on = PPO(
            "MlpPolicy",
            env,
            n_steps=32,
            gamma=0.0,
            learning_rate=3e-3,
            batch_size=64,
            policy_kwargs=small,
            seed=1,
            device="cpu",
        )
        return on, 6_000
    if name == "a2c":
        return A2C(
            "MlpPolicy",
            env,
            gamma=0.0,
            learning_rate=3e-3,
            policy_kwargs=small,
            seed=1,
            device="cpu",
        ), 8_000
    if name == "sac":
        return SAC("MlpPolicy", env, **off), 3_200
    return TD3("MlpPolicy", env, action_noise=noise, **off), 3_200


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3"])
def test_algorithms_end_nearer_to_the_share_of_rewards_than_the_prior(name: str) -> None:
    torch.set_num_threads(1)
    before = divergence(Utility.weights(np.zeros(3)))
    model, budget = learner(name)
    model.learn(budget)
    action, _ = model.predict(np.zeros((1, 1), np.float32), deterministic=True)
    assert before > 0.8
    assert divergence(Utility.weights(action[0])) < 0.3
