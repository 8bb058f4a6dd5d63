"""The hierarchical, equivariant network: one row per source, one per stratum, shared weights.

Every stratum is encoded by the same network, pooled into its source; every source by the same
network, pooled into a context. A source's logit comes from its code and the context, a stratum's
from its own code, its source's and the context. So renaming the sources renames the actions, and
the same weights serve any number of sources and strata. Absent and used-up rows are masked out of
every pool.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from mixgym.envs.observations import PROGRESS, SOURCES, STRATA


@dataclass(frozen=True)
class Rows:
    """An observation as rows.

    Attributes:
        progress: float[n, P].
        sources: float[n, K, S].
        strata: float[n, K, G, D].
        source_mask: bool[n, K], sources that may get a weight.
        strata_mask: bool[n, K, G], cells that may get a weight.
    """

    progress: torch.Tensor
    sources: torch.Tensor
    strata: torch.Tensor
    source_mask: torch.Tensor
    strata_mask: torch.Tensor


def split_rows(observation: torch.Tensor, sources: int, strata: int) -> Rows:
    """Cut flat observations [n, size] into rows (see :mod:`mixgym.envs.observations`)."""
    count = len(observation)
    sizes = [
        len(PROGRESS),
        sources * len(SOURCES),
        sources * strata * len(STRATA),
        sources,
        sources * strata,
    ]
    progress, source, stratum, mask, cells = observation.float().split(sizes, dim=1)
    return Rows(
        progress,
        source.view(count, sources, len(SOURCES)),
        stratum.view(count, sources, strata, len(STRATA)),
        mask > 0.5,
        cells.view(count, sources, strata) > 0.5,
    )


def masked_mean(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the second-last axis of the rows whose mask is true; 0 where there is none."""
    weight = mask.to(rows.dtype).unsqueeze(-1)
    return (rows * weight).sum(-2) / weight.sum(-2).clamp_min(1.0)


def mlp(sizes: list[int], last_gain: float) -> nn.Sequential:
    """Linear layers with tanh between; orthogonal start, ``last_gain`` on the last one."""
    layers: list[nn.Module] = []
    for index, (inside, outside) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        layer = nn.Linear(inside, outside)
        nn.init.orthogonal_(layer.weight, last_gain if last else 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Codes of strata, sources and the whole mixture.

    Args:
        width: of every code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stratum = mlp([len(STRATA) + len(SOURCES), width, width], 1.0)
        self.source = mlp([len(SOURCES) + 2 + width, width, width], 1.0)
        self.context = mlp([len(PROGRESS) + 2 * width, width, width], 1.0)

    def forward(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes [n, K, G, w] of strata, [n, K, w] of sources, [n, w] of the mixture."""
        groups = rows.strata.shape[2]
        around = rows.sources.unsqueeze(2).expand(-1, -1, groups, -1)
        stratum = torch.tanh(self.stratum(torch.cat([rows.strata, around], -1)))
        pooled = masked_mean(stratum, rows.strata_mask)
        share = rows.progress[:, None, :2].expand(-1, rows.sources.shape[1], -1)
        source = torch.tanh(self.source(torch.cat([rows.sources, share, pooled], -1)))
        mean = masked_mean(source, rows.source_mask)
        hidden = source.masked_fill(~rows.source_mask.unsqueeze(-1), -1.0)
        top = hidden.max(1).values  # codes are in [-1, 1], so masked rows never win
        context = torch.tanh(self.context(torch.cat([rows.progress, mean, top], -1)))
        return stratum, source, context


class HierarchicalActor(nn.Module):
    """Means of the action: a logit per source and per stratum, in (-1, 1).

    Args:
        width: of every code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.top = mlp([2 * width, width, 1], 0.01)
        self.inner = mlp([3 * width, width, 1], 0.01)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, K + K * G]; masked entries are 0."""
        stratum, source, context = self.encoder(rows)
        count, sources, groups, _ = stratum.shape
        around = context[:, None].expand(-1, sources, -1)
        top = torch.tanh(self.top(torch.cat([source, around], -1))).squeeze(-1)
        near = torch.cat([source, around], -1).unsqueeze(2).expand(-1, -1, groups, -1)
        inner = torch.tanh(self.inner(torch.cat([stratum, near], -1))).squeeze(-1)
        inner = inner.reshape(count, sources * groups)
        return torch.cat([top, inner], 1) * action_mask(rows)


class ValueNet(nn.Module):
    """The value of a state, from the pooled context.

    Args:
        width: of every code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.value = mlp([width, width, 1], 1.0)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, 1]."""
        _, _, context = self.encoder(rows)
        value: torch.Tensor = self.value(context)
        return value


def action_mask(rows: Rows) -> torch.Tensor:
    """Float[n, K + K * G]; 1 where an entry of the action has an effect."""
    return torch.cat([rows.source_mask.float(), rows.strata_mask.flatten(1).float()], 1)
