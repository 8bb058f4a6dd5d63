"""The two plain actors of HBO as policies: a table of logits, and a perceptron per row.

The table, one number per entry of the action whatever is seen, is the actor of HBO's released code;
what it learns belongs to one mixture, and cannot be moved to other sources. The perceptron is what
HBO's text calls an actor: it scores every source by its row of the observation, another one every
stratum by its own, and rows do not see each other; so it serves any number of both.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from mixgym.agents.policies.heads import ActingNet, ActorSpec
from mixgym.agents.policies.network import ValueNet, mlp
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.agents.policies.rows import Level, Rows, level_sizes
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.observations import SOURCES, STRATA


class TableActor(nn.Module):
    """Scores that are parameters, 0 at first: the prior.

    Args:
        sizes: entries of each level.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(sum(sizes)))
        self._sizes = sizes

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, entries, 1].

        Raises:
            ConfigError: for a mixture of another size.
        """
        sources, strata = rows.strata.shape[1:3]
        if self._sizes not in ([sources, sources * strata], [sources], [strata]):
            raise ConfigError(
                f"a table of {sum(self._sizes)} logits belongs to one mixture, and cannot drive "
                f"another with {sources} sources and {strata} strata; train an equivariant policy"
            )
        return self.logits.repeat(len(rows.progress), 1).unsqueeze(-1)


class Constant(nn.Module):
    """The same value for every observation."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, 1]."""
        return self.value.repeat(len(rows.progress), 1)


class PerceptronActor(nn.Module):
    """Scores of rows, each from its own features alone.

    Args:
        width: of the hidden layer.
        level: whose entries are scored.
    """

    def __init__(self, width: int, level: Level = "joint") -> None:
        super().__init__()
        self.top = mlp([len(SOURCES), width, 1], 0.01) if level != "local" else None
        self.inner = mlp([len(STRATA), width, 1], 0.01) if level != "global" else None

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, entries, 1]."""
        parts = [] if self.top is None else [self.top(rows.sources)]
        if self.inner is not None:
            parts.append(self.inner(rows.strata).flatten(1, 2))
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class PlainSpec(ActorSpec):
    """An acting network of another kind than the hierarchical one.

    Attributes:
        kind: which one.
        shape: (K_max, G_max) of the mixture that a table belongs to.
    """

    kind: Literal["table", "mlp"] = "table"
    shape: tuple[int, int] = (0, 0)

    def build(self, **start: float) -> ActingNet:
        """See :class:`ActorSpec`."""
        net = ActingNet(self, **start)
        if self.kind == "table":
            net.rows = TableActor(level_sizes((self.shape[0], self.shape[1]), self.level))
            return net
        net.rows = PerceptronActor(self.width, self.level)
        return net


class PlainPolicy(HierarchicalPolicy):
    """A hierarchical policy whose rows are scored in another way; see :class:`PlainSpec`."""

    kind: Literal["table", "mlp"]

    def _build_nets(self) -> None:
        plain = {"kind": self.kind, "shape": self.rows_shape}
        self.spec = PlainSpec(**{**asdict(self.spec), **plain})
        self.actor_net = self.spec.build(
            log_std=self.log_std_init, concentration=self.concentration
        )
        self.value_net = cast(nn.Linear, self._critic())

    def _critic(self) -> nn.Module:
        return Constant()


class TablePolicy(PlainPolicy):
    """A table of logits with a constant as its critic; arguments as of the hierarchical policy."""

    kind = "table"


def plain_spec(card: dict[str, Any]) -> PlainSpec:
    """The spec that a card describes."""
    values = {name: card[name] for name in PlainSpec.__dataclass_fields__ if name in card}
    return PlainSpec(**{**values, "shape": tuple(values["shape"])})


class MlpPolicy(PlainPolicy):
    """A perceptron per row, with the critic and the arguments of the hierarchical policy."""

    kind = "mlp"

    def _critic(self) -> nn.Module:
        return ValueNet(self.spec.width)
