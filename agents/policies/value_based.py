"""Hierarchical policies for value-based algorithms on nudges: DQN and QR-DQN.

A value per source row, per stratum row, and for staying: the value of a nudge is that of staying
plus what its own row adds.
"""

from typing import Any, cast

import torch
from gymnasium import spaces
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy

from mixgym.agents.policies.heads import ActorSpec, act
from mixgym.agents.policies.policy_options import known_only
from mixgym.agents.policies.rows import Level, rows_shape, split_rows

POLICY_OPTIONS = ("optimizer_class", "optimizer_kwargs")


class RowValues(BasePolicy):
    """Values of all nudges.

    Args:
        observation_space: the flat observation of the level.
        action_space: ``Discrete``.
        spec: the network.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        spec: ActorSpec,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.shape = rows_shape(observation_space, action_space, spec.level)
        self.spec = spec
        self.net = spec.build()

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """Float[n, nudges]."""
        return self._values(obs).squeeze(-1)

    def _values(self, obs: PyTorchObs) -> torch.Tensor:
        """Float[n, nudges, outputs]."""
        rows = split_rows(cast(torch.Tensor, obs), *self.shape, self.spec.level)
        return cast(torch.Tensor, self.net(rows))

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> torch.Tensor:
        return act(self.net, self._values(observation), deterministic)


class RowQuantiles(RowValues):
    """Quantiles of the values of all nudges."""

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """Float[n, quantiles, nudges]."""
        return self._values(obs).transpose(1, 2)


class HierarchicalDQNPolicy(DQNPolicy):
    """Values over rows, for DQN.

    Args:
        observation_space: the flat observation of the level.
        action_space: nudges.
        lr_schedule: learning rate.
        width: of every code.
        level: whose weights the nudges move.
        kwargs: ``optimizer_class``, ``optimizer_kwargs``.
    """

    acting = "q_net.net."

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        width: int = 64,
        level: Level = "joint",
        **kwargs: Any,
    ) -> None:
        known_only(kwargs, POLICY_OPTIONS, also=("width",))
        self._own = {"width": width, "level": level, **kwargs}
        self.spec = ActorSpec("greedy", level, width)
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], **kwargs)

    def make_q_net(self) -> Any:
        """Values over rows."""
        return RowValues(self.observation_space, self.action_space, self.spec)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return _parameters(self)


class HierarchicalQRDQNPolicy(QRDQNPolicy):
    """Quantiles over rows, for QR-DQN.

    Args:
        observation_space: the flat observation of the level.
        action_space: nudges.
        lr_schedule: learning rate.
        width: of every code.
        level: whose weights the nudges move.
        n_quantiles: per nudge.
        kwargs: ``optimizer_class``, ``optimizer_kwargs``.
    """

    acting = "quantile_net.net."

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        width: int = 64,
        level: Level = "joint",
        n_quantiles: int = 25,
        **kwargs: Any,
    ) -> None:
        known_only(kwargs, POLICY_OPTIONS, also=("width", "n_quantiles"))
        self._own = {"width": width, "level": level, "n_quantiles": n_quantiles, **kwargs}
        self.spec = ActorSpec("greedy", level, width, outputs=n_quantiles)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            n_quantiles=n_quantiles,
            net_arch=[],
            **kwargs,
        )

    def make_quantile_net(self) -> Any:
        """Quantiles over rows."""
        return RowQuantiles(self.observation_space, self.action_space, self.spec)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return _parameters(self)


def _parameters(policy: Any) -> dict[str, Any]:
    """What a policy is rebuilt from."""
    return {
        "observation_space": policy.observation_space,
        "action_space": policy.action_space,
        "lr_schedule": policy._dummy_schedule,
        **policy._own,
    }
