"""The hierarchical policy for on-policy algorithms of Stable-Baselines3 (PPO, A2C)."""

from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from mixgym.agents.policies.network import (
    HierarchicalActor,
    ValueNet,
    action_mask,
    split_rows,
)
from mixgym.envs.observations import shape_of


class MaskedGaussian(DiagGaussianDistribution):
    """A diagonal Gaussian in which masked entries do not count: their action is 0 for certain."""

    def masked(
        self, mean: torch.Tensor, log_std: torch.Tensor, mask: torch.Tensor
    ) -> "MaskedGaussian":
        """Set parameters and mask, each float[n, actions]."""
        self.distribution = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        self._mask = mask
        return self

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Float[n]."""
        return (self.distribution.log_prob(actions) * self._mask).sum(1)

    def entropy(self) -> torch.Tensor:
        """Float[n]."""
        return (self.distribution.entropy() * self._mask).sum(1)

    def sample(self) -> torch.Tensor:
        """Float[n, actions]."""
        return self.distribution.rsample() * self._mask

    def mode(self) -> torch.Tensor:
        """Float[n, actions]."""
        return self.distribution.mean * self._mask


class HierarchicalPolicy(ActorCriticPolicy):
    """Actor and critic over source and stratum rows, with one log-std per level.

    Args:
        observation_space: the flat observation of ``mixgym/Mixture-v0``.
        action_space: its joint action.
        lr_schedule: learning rate.
        width: of every code.
        log_std_init: start of both log standard deviations.
        kwargs: the other options of ``ActorCriticPolicy``.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        width: int = 64,
        log_std_init: float = -1.0,
        **kwargs: Any,
    ) -> None:
        self.width = width
        assert isinstance(observation_space, spaces.Box)
        assert isinstance(action_space, spaces.Box)
        self.rows_shape = shape_of(observation_space.shape[0], action_space.shape[0])
        kwargs = {**kwargs, "features_extractor_class": FlattenExtractor, "net_arch": []}
        super().__init__(
            observation_space, action_space, lr_schedule, log_std_init=log_std_init, **kwargs
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.actor_net = HierarchicalActor(self.width)
        self.value_net = cast(nn.Linear, ValueNet(self.width))
        self.log_std = nn.Parameter(torch.full((2,), float(self.log_std_init)))
        self.action_dist = MaskedGaussian(int(self.action_space.shape[0]))  # type: ignore[index]
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("net_arch", "features_extractor_class", "features_extractor_kwargs"):
            data.pop(name, None)
        return {**data, "width": self.width}

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions, values and log-probabilities."""
        distribution = self._distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: PyTorchObs, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Values, log-probabilities and entropies of actions that were taken."""
        distribution = self._distribution(cast(torch.Tensor, obs))
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The action distribution."""
        return self._distribution(cast(torch.Tensor, obs))

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """Float[n, 1]."""
        rows = split_rows(cast(torch.Tensor, obs), *self.rows_shape)
        values: torch.Tensor = self.value_net(cast(torch.Tensor, rows))
        return values

    def _distribution(self, obs: torch.Tensor) -> MaskedGaussian:
        rows = split_rows(obs, *self.rows_shape)
        sources, strata = self.rows_shape
        levels = self.log_std.repeat_interleave(
            torch.tensor([sources, sources * strata], device=obs.device)
        )
        mean = self.actor_net(rows)
        distribution = cast(MaskedGaussian, self.action_dist)
        return distribution.masked(mean, levels.expand_as(mean), action_mask(rows))
