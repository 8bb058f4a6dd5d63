"""A table of logits as a policy: one number per entry of the action, whatever is seen.

The actor of HBO's released code, for any on-policy algorithm. What it learns belongs to one
mixture: it cannot be moved to other sources.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from mixgym.agents.policies.heads import ActingNet, ActorSpec
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.agents.policies.rows import Rows, level_sizes
from mixgym.envs.errors import ConfigError


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
        from mixgym.agents.policies.mlp import PerceptronActor

        net.rows = PerceptronActor(self.width, self.level, self.costs)
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
