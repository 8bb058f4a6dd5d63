"""The hierarchical policy with a memory, for RecurrentPPO of sb3-contrib."""

from typing import Any, cast

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from mixgym.agents.policies.distributions import RowDistribution
from mixgym.agents.policies.heads import ActingNet, ActorSpec, LstmState, Memory
from mixgym.agents.policies.network import Encoder, mlp
from mixgym.agents.policies.on_policy import POLICY_OPTIONS
from mixgym.agents.policies.policy_options import known_only
from mixgym.agents.policies.rows import Level, Rows, rows_shape, split_rows


class MemoryValueNet(nn.Module):
    """The value of a state and of what was seen before it.

    Args:
        width: of every code.
        memory: size of the LSTM on the pooled context.
    """

    def __init__(self, width: int, memory: int) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.memory = Memory(width, memory)
        self.value = mlp([width, width, 1], 1.0)

    def forward(
        self, rows: Rows, state: LstmState, starts: torch.Tensor
    ) -> tuple[torch.Tensor, LstmState]:
        """Float[n, 1], and the new state."""
        _, _, context = self.encoder(rows)
        context, state = self.memory(context, state, starts)
        return self.value(context), state


class RecurrentHierarchicalPolicy(RecurrentActorCriticPolicy):
    """Actor and critic over rows, each with an LSTM on its pooled context.

    Args:
        observation_space: the flat observation, of the joint environment or of a level.
        action_space: the actions of that level.
        lr_schedule: learning rate.
        width: of every code.
        level: whose weights the actions set.
        memory: size of both LSTMs.
        log_std_init: start of the log standard deviations.
        kwargs: ``optimizer_class``, ``optimizer_kwargs``.

    Raises:
        ValueError: for spaces that are not those of the level.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        width: int = 64,
        level: Level = "joint",
        memory: int = 32,
        log_std_init: float = -1.0,
        **kwargs: Any,
    ) -> None:
        known_only(kwargs, POLICY_OPTIONS, also=("width", "memory", "log_std_init"))
        self.rows_shape = rows_shape(observation_space, action_space, level)
        if not isinstance(action_space, spaces.Box) or action_space.low.min() >= 0:
            raise ValueError(f"{action_space}: the policy needs logits or deltas")
        self.spec = ActorSpec("gaussian", level, width, memory)
        kwargs = {**kwargs, "features_extractor_class": FlattenExtractor, "net_arch": []}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            log_std_init=log_std_init,
            lstm_hidden_size=memory,
            **kwargs,
        )
        # the base class has made LSTMs on flat observations; ours stand inside the networks
        for name in ("lstm_actor", "lstm_critic"):
            del self._modules[name]
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    acting = "actor_net."

    @property
    def lstm_actor(self) -> nn.LSTM:  # type: ignore[override]  # a layer of the actor
        """The actor's LSTM, whose sizes RecurrentPPO reads."""
        return cast(nn.LSTM, self.actor_net.memory.lstm)

    @property
    def log_std(self) -> nn.Parameter:  # type: ignore[override]  # a parameter of the actor
        """Float[levels]."""
        return self.actor_net.log_std

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.actor_net = ActingNet(self.spec, log_std=self.log_std_init)
        critic = MemoryValueNet(self.spec.width, self.spec.memory)
        self.value_net = cast(nn.Linear, critic)
        self.action_dist = RowDistribution()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "width": self.spec.width,
            "level": self.spec.level,
            "memory": self.spec.memory,
            "log_std_init": self.log_std_init,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def forward(  # type: ignore[override]
        self,
        obs: torch.Tensor,
        lstm_states: RNNStates,
        episode_starts: torch.Tensor,
        deterministic: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, RNNStates]:
        """Actions, values, log-probabilities and new states."""
        distribution, top = self.get_distribution(obs, _pair(lstm_states.pi), episode_starts)
        values, below = self._values(obs, _pair(lstm_states.vf), episode_starts)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions), RNNStates(top, below)

    def get_distribution(  # type: ignore[override]
        self, obs: torch.Tensor, lstm_states: LstmState, episode_starts: torch.Tensor
    ) -> tuple[Distribution, LstmState]:
        """The action distribution, and the actor's new state."""
        found, state = self.actor_net.remember(self._rows(obs), lstm_states, episode_starts)
        return RowDistribution().proba_distribution(found), state

    def predict_values(  # type: ignore[override]
        self, obs: torch.Tensor, lstm_states: LstmState, episode_starts: torch.Tensor
    ) -> torch.Tensor:
        """Float[n, 1]."""
        return self._values(obs, lstm_states, episode_starts)[0]

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: torch.Tensor,
        actions: torch.Tensor,
        lstm_states: RNNStates,
        episode_starts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values, log-probabilities and entropies of actions that were taken."""
        distribution, _ = self.get_distribution(obs, _pair(lstm_states.pi), episode_starts)
        values, _ = self._values(obs, _pair(lstm_states.vf), episode_starts)
        return values, distribution.log_prob(actions), cast(torch.Tensor, distribution.entropy())

    def _values(
        self, obs: torch.Tensor, state: LstmState, starts: torch.Tensor
    ) -> tuple[torch.Tensor, LstmState]:
        net = cast(MemoryValueNet, self.value_net)
        return net(self._rows(obs), state, starts)

    def _rows(self, obs: torch.Tensor) -> Rows:
        return split_rows(obs, *self.rows_shape, self.spec.level)


def _pair(state: tuple[torch.Tensor, ...]) -> LstmState:
    return state[0], state[1]
