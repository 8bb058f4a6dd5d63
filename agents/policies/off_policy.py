"""Hierarchical policies for actor-critic off-policy algorithms: SAC, TQC, CrossQ, TD3, DDPG.

Only networks are exchanged; the algorithms of Stable-Baselines3 and sb3-contrib stay as they are.
Critics score each row beside its own entry of the action. Log-probabilities are per entry that
counts, not summed, so that a target entropy means the same for every number of sources.
"""

from typing import Any, cast

import torch
from gymnasium import spaces
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn
from torch.nn.functional import softplus

from mixgym.agents.policies.heads import ActorSpec, act
from mixgym.agents.policies.network import CriticNet, Norm
from mixgym.agents.policies.policy_options import known_only
from mixgym.agents.policies.rows import Level, Rows, action_mask, rows_shape, split_rows

POLICY_OPTIONS = ("n_critics", "optimizer_class", "optimizer_kwargs", "use_sde")


class RowActor(BasePolicy):
    """An actor over rows: squashed Gaussian (SAC and its kin), or deterministic (TD3, DDPG).

    Args:
        observation_space: the flat observation of the actor's level.
        action_space: the actions of that level.
        spec: the network.
        log_std_init: start of the log standard deviations.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        spec: ActorSpec,
        log_std_init: float = -1.0,
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        self.shape = rows_shape(observation_space, action_space, spec.level)
        self.spec = spec
        self.net = spec.build(log_std=log_std_init)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        """Actions float[n, entries]."""
        return act(self.net, self.net(self._rows(obs)), deterministic)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled actions, and their log-probability per entry that counts, float[n]."""
        rows = self._rows(obs)
        found = self.net(rows)
        raw = found.rsample()
        # log(1 - tanh(u)^2), without the loss of digits of its definition
        squash = 2.0 * (torch.log(torch.tensor(2.0)) - raw - softplus(-2.0 * raw))
        mask = action_mask(rows, self.spec.level)
        each = (found.inner.log_prob(raw) - squash) * mask
        return torch.tanh(raw) * mask, each.sum(1) / mask.sum(1).clamp_min(1.0)

    def set_bn_training_mode(self, mode: bool) -> None:
        """CrossQ asks; only critics normalise here."""

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        return cast(torch.Tensor, self(observation, deterministic))

    def _rows(self, obs: PyTorchObs) -> Rows:
        return split_rows(cast(torch.Tensor, obs), *self.shape, self.spec.level)


class RowCritic(BaseModel):
    """Several critics of (rows, action).

    Args:
        observation_space: the flat observation of the level.
        action_space: the actions of that level.
        spec: level and width.
        n_critics: how many.
        outputs: numbers that each predicts.
        norm: a layer that normalises codes, or None.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        spec: ActorSpec,
        n_critics: int = 2,
        outputs: int = 1,
        norm: Norm | None = None,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.shape = rows_shape(observation_space, action_space, spec.level)
        self.level = spec.level
        self.n_critics = n_critics
        self.nets = nn.ModuleList(
            CriticNet(spec.width, spec.level, outputs, norm) for _ in range(n_critics)
        )

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each critic's values, float[n, outputs]."""
        rows = split_rows(obs, *self.shape, self.level)
        return tuple(net(rows, actions) for net in self.nets)

    def q1_forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The first critic's values, float[n, 1]."""
        rows = split_rows(obs, *self.shape, self.level)
        value: torch.Tensor = self.nets[0](rows, actions)
        return value

    def set_bn_training_mode(self, mode: bool) -> None:
        """Whether the statistics of :class:`BatchRenorm1d` are updated (CrossQ)."""
        for module in self.modules():
            if isinstance(module, BatchRenorm1d):
                module.train(mode)


class RowQuantileCritic(RowCritic):
    """Critics whose outputs are quantiles of the return (TQC)."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        spec: ActorSpec,
        n_critics: int,
        outputs: int,
    ) -> None:
        super().__init__(observation_space, action_space, spec, n_critics, outputs)
        self.n_quantiles = outputs
        self.quantiles_total = outputs * n_critics

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Float[n, critics, quantiles]."""
        return torch.stack(super().forward(obs, actions), 1)


class _Hierarchical(BasePolicy):
    """What these policies share: options, networks, and how they are rebuilt."""

    head = "squashed"
    acting = "actor.net."
    options: tuple[str, ...] = POLICY_OPTIONS

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        width: int = 64,
        level: Level = "joint",
        log_std_init: float = -1.0,
        **kwargs: Any,
    ) -> None:
        own = ("width", "level", "log_std_init")
        known_only(kwargs, self.options, also=own)
        rows_shape(observation_space, action_space, level)
        self.spec = ActorSpec(self.head, level, width)  # type: ignore[arg-type]
        self._own = {"width": width, "level": level, "log_std_init": log_std_init, **kwargs}
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], **kwargs)

    def make_actor(self, features_extractor: Any = None) -> RowActor:
        """An actor over rows."""
        return RowActor(
            self.observation_space, self.action_space, self.spec, self._own["log_std_init"]
        )

    def make_critic(self, features_extractor: Any = None) -> RowCritic:
        """Critics over rows."""
        return RowCritic(
            self.observation_space,
            self.action_space,
            self.spec,
            self.critic_kwargs["n_critics"],  # type: ignore[arg-type, index]
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            **self._own,
        }


class HierarchicalSACPolicy(_Hierarchical, SACPolicy):  # type: ignore[misc]
    """Squashed Gaussian actor and two critics over rows, for SAC.

    Args:
        width: of every code.
        level: whose weights the actions set.
        log_std_init: start of the log standard deviations.
        kwargs: ``n_critics``, ``optimizer_class``, ``optimizer_kwargs``.
    """


class HierarchicalTQCPolicy(_Hierarchical, TQCPolicy):  # type: ignore[misc]
    """The same with quantile critics, for TQC; also takes ``n_quantiles``."""

    options = (*POLICY_OPTIONS, "n_quantiles")

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Quantile critics over rows."""
        return RowQuantileCritic(
            self.observation_space,
            self.action_space,
            self.spec,
            n_critics=self.critic_kwargs["n_critics"],  # type: ignore[arg-type]
            outputs=self.critic_kwargs["n_quantiles"],  # type: ignore[arg-type]
        )


class HierarchicalCrossQPolicy(_Hierarchical, CrossQPolicy):  # type: ignore[misc]
    """The same with BatchRenorm over the rows of critics and no targets, for CrossQ.

    Also takes ``batch_norm_momentum``, ``batch_norm_eps`` and ``renorm_warmup_steps``.
    """

    options = (*POLICY_OPTIONS, "batch_norm_momentum", "batch_norm_eps", "renorm_warmup_steps")

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Critics over rows that are normalised over a batch."""
        given = self.batch_norm_params

        def norm(features: int) -> nn.Module:
            return BatchRenorm1d(
                features,
                momentum=given["batch_norm_momentum"],
                eps=given["batch_norm_eps"],
                warmup_steps=int(given["renorm_warmup_steps"]),
            )

        return RowCritic(
            self.observation_space,
            self.action_space,
            self.spec,
            self.critic_kwargs["n_critics"],  # type: ignore[arg-type]
            norm=norm,
        )


class HierarchicalTD3Policy(_Hierarchical, TD3Policy):  # type: ignore[misc]
    """Deterministic actor and critics over rows, for TD3 and DDPG (which has one critic)."""

    head = "deterministic"
    options = ("n_critics", "optimizer_class", "optimizer_kwargs")
