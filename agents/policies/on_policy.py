"""The hierarchical policy for on-policy algorithms (PPO, A2C, TRPO) of Stable-Baselines3."""

from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from mixgym.agents.policies.distributions import RowDistribution
from mixgym.agents.policies.heads import ActingNet, ActorSpec
from mixgym.agents.policies.network import ValueNet
from mixgym.agents.policies.policy_options import known_only
from mixgym.agents.policies.rows import Level, Rows, rows_shape, split_rows

POLICY_OPTIONS = ("optimizer_class", "optimizer_kwargs", "use_sde")
_OWN_OPTIONS = ("width", "head", "log_std_init", "concentration")


class HierarchicalPolicy(ActorCriticPolicy):
    """Actor and critic over source and stratum rows, with one log-std per level.

    Args:
        observation_space: the flat observation, of the joint environment or of a level.
        action_space: the actions of that level.
        lr_schedule: learning rate.
        width: of every code.
        level: whose weights the actions set.
        head: ``gaussian`` for logits in [-1, 1]; ``dirichlet`` for weights in [0, 1].
        log_std_init: start of the log standard deviations (Gaussian).
        concentration: start of the concentrations (Dirichlet): the larger, the less it explores.
        kwargs: ``optimizer_class``, ``optimizer_kwargs``.

    Raises:
        ValueError: for spaces that are not those of the level, or of the head.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        width: int = 64,
        level: Level = "joint",
        head: Literal["gaussian", "dirichlet"] = "gaussian",
        log_std_init: float = -1.0,
        concentration: float = 8.0,
        **kwargs: Any,
    ) -> None:
        known_only(kwargs, POLICY_OPTIONS, also=_OWN_OPTIONS)
        self.rows_shape = rows_shape(observation_space, action_space, level)
        _check_head(head, action_space)
        self.spec = ActorSpec(head, level, width)
        self.concentration = concentration
        kwargs = {**kwargs, "features_extractor_class": FlattenExtractor, "net_arch": []}
        super().__init__(
            observation_space, action_space, lr_schedule, log_std_init=log_std_init, **kwargs
        )

    acting = "actor_net."

    @property
    def width(self) -> int:
        """Of every code."""
        return self.spec.width

    @property
    def log_std(self) -> nn.Parameter:  # type: ignore[override]  # a parameter of the actor
        """Float[levels]; what algorithms log as ``train/std``."""
        return self.actor_net.log_std

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self._build_nets()
        self.action_dist = RowDistribution()
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _build_nets(self) -> None:
        self.actor_net = ActingNet(
            self.spec, log_std=self.log_std_init, concentration=self.concentration
        )
        self.value_net = cast(nn.Linear, ValueNet(self.spec.width))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "width": self.spec.width,
            "level": self.spec.level,
            "head": self.spec.head,
            "log_std_init": self.log_std_init,
            "concentration": self.concentration,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions, values and log-probabilities."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: PyTorchObs, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Values, log-probabilities and entropies of actions that were taken."""
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The action distribution."""
        return RowDistribution().proba_distribution(self.actor_net(self.rows(obs)))

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """Float[n, 1]."""
        values: torch.Tensor = self.value_net(cast(torch.Tensor, self.rows(obs)))
        return values

    def rows(self, obs: PyTorchObs) -> Rows:
        """Flat observations as rows."""
        return split_rows(cast(torch.Tensor, obs), *self.rows_shape, self.spec.level)


def _check_head(head: str, action_space: spaces.Space[Any]) -> None:
    if head not in ("gaussian", "dirichlet"):
        raise ValueError(f"head={head!r}: choose gaussian or dirichlet")
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"{action_space}: actor-critic policies need logits, deltas or weights")
    if (head == "dirichlet") != bool(action_space.low.min() >= 0):
        kind = "weights" if head == "dirichlet" else "logits or delta"
        raise ValueError(f"head={head!r} needs environment.action={kind}, got {action_space}")
