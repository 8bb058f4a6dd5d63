"""A two-layer perceptron per row as a policy: what HBO's text calls an actor.

The same perceptron scores every source by its row of the observation, another one every stratum by
its own; rows do not see each other. So it serves any number of sources and strata.
"""

import torch
from torch import nn

from mixgym.agents.policies.network import ValueNet, ignore_at_first, mlp
from mixgym.agents.policies.rows import Level, Rows, row_sizes
from mixgym.agents.policies.table import PlainPolicy


class PerceptronActor(nn.Module):
    """Scores of rows, each from its own features alone.

    Args:
        width: of the hidden layer.
        level: whose entries are scored.
        costs: whether rows end with what they cost.
    """

    def __init__(self, width: int, level: Level = "joint", costs: bool = False) -> None:
        super().__init__()
        top, inner = row_sizes(costs)
        self.top = mlp([top, width, 1], 0.01) if level != "local" else None
        self.inner = mlp([inner, width, 1], 0.01) if level != "global" else None
        for net in (self.top, self.inner) if costs else ():
            if net is not None:
                ignore_at_first(net, -1)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, entries, 1]."""
        parts = [] if self.top is None else [self.top(rows.sources)]
        if self.inner is not None:
            parts.append(self.inner(rows.strata).flatten(1, 2))
        return torch.cat(parts, 1)


class MlpPolicy(PlainPolicy):
    """A perceptron per row, with the critic and the arguments of the hierarchical policy."""

    kind = "mlp"

    def _critic(self) -> nn.Module:
        return ValueNet(self.spec.width, self.spec.costs)
