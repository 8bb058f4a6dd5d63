"""A learner of Stable-Baselines3 that is stepped from outside, so that others can learn beside it.

``learn`` owns its loop and knows one learner. A stepped learner feeds its algorithm, step by step,
as the algorithm's own ``learn`` would. The calls that are made are semi-private; there is a test
per kind of algorithm that both ways give the same bits.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from mixgym.envs import storage
from mixgym.envs.curves.vector import OneObjectVecEnv
from mixgym.envs.errors import ConfigError

LEARNER, ROLLOUT = "learner.json", "rollout.pkl"

Steps = tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_], list[dict[str, Any]]]


class Spaces(OneObjectVecEnv):
    """Spaces and a number of environments, for a learner that is stepped from outside."""

    def __init__(self, like: VecEnv) -> None:
        super().__init__(like.num_envs, like.observation_space, like.action_space)

    def reset(self) -> NDArray[np.float32]:
        """Zeros: whoever steps the learner says what it sees."""
        shape = self.observation_space.shape or ()
        return np.zeros((self.num_envs, *shape), np.float32)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Refused: the learner is stepped from outside."""
        raise RuntimeError("this environment only tells its spaces")

    def step_wait(self) -> Any:
        """Refused: the learner is stepped from outside."""
        raise RuntimeError("this environment only tells its spaces")


class SteppedLearner(Protocol):
    """A learner that is fed from outside."""

    algorithm: Any

    def begin(self, total: int, log_interval: int) -> None:
        """Prepare for training up to ``total`` steps of its own."""
        ...

    def act(self) -> NDArray[np.float32]:
        """Actions for what it saw last, as the environment takes them."""
        ...

    def feed(self, step: Steps) -> None:
        """What came of its actions: observations, rewards, dones, infos; it learns when due."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is not in the algorithm's own file."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`."""
        ...


class OnPolicyStepped:
    """Feeds an algorithm with a rollout buffer (PPO, A2C, TRPO).

    Args:
        algorithm: made on :class:`Spaces`.
    """

    def __init__(self, algorithm: OnPolicyAlgorithm) -> None:
        self.algorithm = algorithm
        self._iterations = 0
        self._log_interval = 1
        self._given: tuple[Any, ...] = ()

    def begin(self, total: int, log_interval: int) -> None:
        """See :class:`SteppedLearner`."""
        self._log_interval = log_interval
        _set_up(self.algorithm, total)

    def act(self) -> NDArray[np.float32]:
        """See :class:`SteppedLearner`."""
        a = self.algorithm
        if a.rollout_buffer.full:
            a.rollout_buffer.reset()
        if a.policy.training:
            a.policy.set_training_mode(False)
        if a.use_sde:
            _new_noise(a, a.policy, a.rollout_buffer.pos)
        with torch.no_grad():
            seen = obs_as_tensor(a._last_obs, a.device)  # type: ignore[arg-type]
            actions, values, log_probs = a.policy(seen)
        raw = actions.cpu().numpy()
        self._given = (raw, values, log_probs)
        if a.policy.squash_output:
            return np.asarray(a.policy.unscale_action(raw), np.float32)
        space = a.action_space
        assert isinstance(space, spaces.Box)
        return np.asarray(np.clip(raw, space.low, space.high), np.float32)

    def feed(self, step: Steps) -> None:
        """See :class:`SteppedLearner`."""
        a = self.algorithm
        observation, rewards, dones, infos = step
        a.num_timesteps += a.n_envs
        a._update_info_buffer(infos, dones)
        raw, values, log_probs = self._given
        a.rollout_buffer.add(
            a._last_obs,  # type: ignore[arg-type]
            raw,
            self._bootstrapped(rewards, dones, infos),
            a._last_episode_starts,  # type: ignore[arg-type]
            values,
            log_probs,
        )
        a._last_obs = observation
        a._last_episode_starts = dones
        if a.rollout_buffer.full:
            self._learn(observation, dones)

    def _bootstrapped(
        self, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> NDArray[Any]:
        """Rewards with the value of what a cut episode would still have earned."""
        a = self.algorithm
        for i in np.flatnonzero(dones):
            last = infos[i].get("terminal_observation")
            if last is not None and infos[i].get("TimeLimit.truncated", False):
                with torch.no_grad():
                    value = a.policy.predict_values(a.policy.obs_to_tensor(last)[0])[0]
                rewards = rewards.copy()
                rewards[i] += a.gamma * float(value)
        return rewards

    def _learn(self, observation: NDArray[Any], dones: NDArray[np.bool_]) -> None:
        a = self.algorithm
        with torch.no_grad():
            last = a.policy.predict_values(obs_as_tensor(observation, a.device))
        a.rollout_buffer.compute_returns_and_advantage(last_values=last, dones=dones)
        self._iterations += 1
        a._update_current_progress_remaining(a.num_timesteps, a._total_timesteps)
        if self._iterations % self._log_interval == 0:
            a.dump_logs(self._iterations)
        a.train()

    def save(self, folder: Path) -> None:
        """See :class:`SteppedLearner`."""
        storage.write_json(folder / LEARNER, {"iterations": self._iterations})
        save_to_pkl(folder / ROLLOUT, self.algorithm.rollout_buffer)

    def load(self, folder: Path) -> None:
        """See :class:`SteppedLearner`."""
        self._iterations = storage.read_json(folder / LEARNER)["iterations"]
        self.algorithm.rollout_buffer = load_from_pkl(folder / ROLLOUT)


class OffPolicyStepped:
    """Feeds an algorithm with a replay buffer (SAC, TD3, DDPG, TQC, CrossQ).

    Args:
        algorithm: made on :class:`Spaces`.

    Raises:
        ConfigError: if it counts its training in episodes.
    """

    def __init__(self, algorithm: OffPolicyAlgorithm) -> None:
        unit = algorithm.train_freq.unit  # type: ignore[union-attr]
        if unit != TrainFrequencyUnit.STEP:
            raise ConfigError("train.options.train_freq: together, count steps and not episodes")
        self.algorithm = algorithm
        self._collected = 0
        self._log_interval = 1
        self._given: Any = None

    def begin(self, total: int, log_interval: int) -> None:
        """See :class:`SteppedLearner`."""
        self._log_interval = log_interval
        _set_up(self.algorithm, total)

    def act(self) -> NDArray[np.float32]:
        """See :class:`SteppedLearner`."""
        a = self.algorithm
        if a.policy.training:
            a.policy.set_training_mode(False)
        if a.use_sde:
            _new_noise(a, a.actor, self._collected)
        actions, self._given = a._sample_action(a.learning_starts, a.action_noise, a.n_envs)
        return np.asarray(actions, np.float32)

    def feed(self, step: Steps) -> None:
        """See :class:`SteppedLearner`."""
        a = self.algorithm
        observation, rewards, dones, infos = step
        a.num_timesteps += a.n_envs
        self._collected += 1
        a._update_info_buffer(infos, dones)
        assert a.replay_buffer is not None
        a._store_transition(a.replay_buffer, self._given, observation, rewards, dones, infos)
        a._update_current_progress_remaining(a.num_timesteps, a._total_timesteps)
        a._on_step()
        for i in np.flatnonzero(dones).tolist():
            a._episode_num += 1
            if a.action_noise is not None:
                a.action_noise.reset(**({"indices": [i]} if a.n_envs > 1 else {}))
            if a._episode_num % self._log_interval == 0:
                a.dump_logs()
        if self._collected >= a.train_freq.frequency:  # type: ignore[union-attr]
            self._learn()

    def _learn(self) -> None:
        a = self.algorithm
        collected, self._collected = self._collected * a.n_envs, 0
        steps = a.gradient_steps if a.gradient_steps >= 0 else collected
        if a.num_timesteps > a.learning_starts and steps > 0:
            a.train(batch_size=a.batch_size, gradient_steps=steps)

    def save(self, folder: Path) -> None:
        """See :class:`SteppedLearner`."""
        storage.write_json(folder / LEARNER, {"collected": self._collected})

    def load(self, folder: Path) -> None:
        """See :class:`SteppedLearner`."""
        self._collected = storage.read_json(folder / LEARNER)["collected"]


def make_stepped_learner(algorithm: BaseAlgorithm, name: str) -> SteppedLearner:
    """The learner that fits an algorithm.

    Raises:
        ConfigError: if it keeps another buffer, or its memory, or its loop, to itself.
    """
    if isinstance(algorithm, OnPolicyAlgorithm) and isinstance(
        algorithm.rollout_buffer, RolloutBuffer
    ):
        if not hasattr(algorithm, "_last_lstm_states"):
            return OnPolicyStepped(algorithm)
    elif isinstance(algorithm, OffPolicyAlgorithm):
        return OffPolicyStepped(algorithm)
    raise ConfigError(
        f"train.level=together: {name} cannot learn beside another; algorithms with a rollout or "
        "a replay buffer can (ppo, a2c, trpo, sac, td3, ...); for others take alternate"
    )


def _new_noise(algorithm: Any, actor: Any, step: int) -> None:
    """Draw the noise of state-dependent exploration where ``learn`` does: twice at the start."""
    if step == 0:
        actor.reset_noise(algorithm.n_envs)
    if algorithm.sde_sample_freq > 0 and step % algorithm.sde_sample_freq == 0:
        actor.reset_noise(algorithm.n_envs)


def _set_up(algorithm: BaseAlgorithm, total: int) -> None:
    left = max(total - algorithm.num_timesteps, 0)
    algorithm._setup_learn(left, reset_num_timesteps=False)
