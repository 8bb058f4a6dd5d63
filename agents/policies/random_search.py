"""Augmented random search (Mania et al. 2018) on rows: sb3-contrib's ARS, with paired candidates.

Tasks differ far more than candidates do. So all candidates of an update meet the same episodes
(common random numbers), and only the difference that they make is left.
"""

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import ARS
from sb3_contrib.common.vec_env.async_eval import AsyncEval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from mixgym.agents.policies.heads import ActorSpec, act
from mixgym.agents.policies.policy_options import known_only
from mixgym.agents.policies.rows import Level, rows_shape, split_rows

SEEDS = 2**31


class HierarchicalARSPolicy(BasePolicy):
    """A deterministic actor over rows.

    Args:
        observation_space: the flat observation of the level.
        action_space: the actions of that level.
        width: of every code; 0 for scores that are linear in the rows (76 parameters).
        level: whose weights the actions set.
    """

    acting = "actor_net."

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        width: int = 0,
        level: Level = "joint",
        **kwargs: Any,
    ) -> None:
        known_only(kwargs, (), also=("width",))
        super().__init__(observation_space, action_space, squash_output=True)
        self.spec = ActorSpec("deterministic", level, width)
        self.shape = rows_shape(observation_space, action_space, level)
        self.actor_net = self.spec.build()

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """Actions float[n, entries]."""
        rows = split_rows(cast(torch.Tensor, obs), *self.shape, self.spec.level)
        return act(self.actor_net, self.actor_net(rows), True)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> torch.Tensor:
        return cast(torch.Tensor, self(observation))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "width": self.spec.width,
            "level": self.spec.level,
        }


class PairedARS(ARS):
    """ARS whose candidates all meet the same episodes.

    ``n_eval_episodes`` counts episodes per environment. Callbacks get the locals of every step, and
    hear of a rollout before its candidates are drawn: at that moment nothing but parameters and
    random streams is held.
    """

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Also take the weights that the search is around from the policy."""
        super().set_parameters(*args, **kwargs)
        weights = torch.nn.utils.parameters_to_vector(self.policy.parameters()).detach()
        self.weights = weights  # type: ignore[assignment]  # declared as None

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # the base class forgets what came before a resume
        super()._update_current_progress_remaining(num_timesteps, self._total_timesteps)

    def _do_one_update(self, callback: BaseCallback, async_eval: AsyncEval | None) -> None:
        callback.on_rollout_start()
        super()._do_one_update(callback, async_eval)

    def evaluate_candidates(
        self,
        candidate_weights: torch.Tensor,
        callback: BaseCallback,
        async_eval: AsyncEval | None = None,
    ) -> torch.Tensor:
        """Returns float[candidates], the mean over the episodes, which are the same for all."""
        self.ep_info_buffer = []  # type: ignore[assignment]  # as the base class: of this update
        seed = int(torch.randint(SEEDS, ()).item())
        returns = [
            self._evaluated(weights, seed, callback) for weights in candidate_weights.unbind()
        ]
        callback.on_rollout_end()
        return torch.tensor(returns, dtype=torch.float32, device=self.device)

    def _evaluated(self, weights: torch.Tensor, seed: int, callback: BaseCallback) -> float:
        env = self.get_env()
        assert env is not None
        self.policy.load_from_vector(weights.cpu())  # type: ignore[arg-type]
        env.seed(seed)
        observation = env.reset()
        left = np.full(env.num_envs, self.n_eval_episodes)
        total = np.zeros(env.num_envs)
        while (left > 0).any():
            actions, _ = self.policy.predict(cast(NDArray[Any], observation), deterministic=True)
            observation, rewards, dones, infos = env.step(actions)
            total += np.where(left > 0, rewards, 0.0)
            left = left - dones
            self.num_timesteps += env.num_envs
            self._update_info_buffer(infos, dones)
            callback.update_locals(locals())
            callback.on_step()
        return float(total.mean() / self.n_eval_episodes)
