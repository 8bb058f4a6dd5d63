"""The hierarchical, equivariant networks: one row per source, one per stratum, shared weights.

Every stratum is encoded by the same network, pooled into its source; every source by the same
network, pooled into a context. A source's score comes from its code and the context, a stratum's
from its own code, its source's and the context. So renaming the sources renames the scores, and
the same weights serve any number of sources and strata. Absent and used-up rows are masked out of
every pool. Critics see each row beside its own entry of the action.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from mixgym.agents.policies.rows import Level, Rows, join_action, split_action
from mixgym.envs.spaces.observations import PROGRESS, SOURCES, STRATA

Norm = Callable[[int], nn.Module]
"""A layer over [rows, features] that is made for a number of features."""


def _masked_mean(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
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
        actions: whether each row has its own entry of an action beside it.
        norm: makes a layer that normalises codes over the rows of a batch, or None.
    """

    def __init__(
        self,
        width: int,
        *,
        actions: bool = False,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        more, top, inner = int(actions), len(SOURCES), len(STRATA)
        self.stratum = mlp([inner + top + more, width, width], 1.0)
        self.source = mlp([top + 2 + width + more, width, width], 1.0)
        self.context = mlp([len(PROGRESS) + 2 * width, width, width], 1.0)
        self.norms = nn.ModuleList([norm(width) for _ in range(2)] if norm else [])

    def forward(
        self, rows: Rows, actions: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes [n, K, G, w] of strata, [n, K, w] of sources, [n, w] of the mixture.

        Args:
            rows: the observation.
            actions: float[n, K] and float[n, K, G], where the encoder was made for them.
        """
        groups = rows.strata.shape[2]
        around = rows.sources.unsqueeze(2).expand(-1, -1, groups, -1)
        top, inner = [], []
        if actions is not None:
            top, inner = [actions[0].unsqueeze(-1)], [actions[1].unsqueeze(-1)]
        stratum = torch.tanh(self.stratum(torch.cat([rows.strata, around, *inner], -1)))
        stratum = self._normalised(0, stratum, rows.strata_mask)
        pooled = _masked_mean(stratum, rows.strata_mask)
        share = rows.progress[:, None, :2].expand(-1, rows.sources.shape[1], -1)
        source = torch.tanh(self.source(torch.cat([rows.sources, share, pooled, *top], -1)))
        mean = _masked_mean(self._normalised(1, source, rows.source_mask), rows.source_mask)
        hidden = source.masked_fill(~rows.source_mask.unsqueeze(-1), -1.0)
        most = hidden.max(1).values  # codes are in [-1, 1], so masked rows never win
        context = torch.tanh(self.context(torch.cat([rows.progress, mean, most], -1)))
        return stratum, source, context

    def _normalised(self, index: int, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalise over the rows that exist; the others do not count and stay 0."""
        if not len(self.norms):
            return codes
        fresh = self.norms[index](codes[mask])
        return torch.zeros_like(codes).masked_scatter(mask.unsqueeze(-1), fresh)


class HierarchicalActor(nn.Module):
    """Scores of rows: a number, or several, per entry of the action.

    What is linear in a row has a way of its own to its score, which starts at zero: much of what
    there is to learn is, and is found sooner.

    Args:
        width: of every code.
        level: whose entries are scored.
        outputs: numbers per entry.
        stay: whether there is one more entry in front, for leaving the mixture as it is; the
            others are then relative to it.
    """

    def __init__(
        self,
        width: int,
        level: Level = "joint",
        outputs: int = 1,
        *,
        stay: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.level = level
        if level != "local":
            self.top = mlp([2 * width, width, outputs], 0.01)
        if level != "global":
            self.inner = mlp([3 * width, width, outputs], 0.01)
        self.stay = mlp([width, width, outputs], 0.01) if stay else None
        self.direct = LinearActor(level)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, entries, outputs], unbounded; those of masked entries mean nothing."""
        return self.scores(rows, *self.encoder(rows))

    def scores(
        self, rows: Rows, stratum: torch.Tensor, source: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        """:meth:`forward` from the codes of an encoder, or from another context."""
        count, sources, groups, _ = stratum.shape
        around = context[:, None].expand(-1, sources, -1)
        parts = []
        if self.level != "local":
            parts.append(self.top(torch.cat([source, around], -1)))
        if self.level != "global":
            near = torch.cat([source, around], -1).unsqueeze(2).expand(-1, -1, groups, -1)
            inner = self.inner(torch.cat([stratum, near], -1))
            parts.append(inner.reshape(count, sources * groups, -1))
        scores = torch.cat(parts, 1) + self.direct(rows)
        if self.stay is None:
            return scores
        base = self.stay(context)[:, None]
        return torch.cat([base, base + scores], 1)


class LinearActor(nn.Module):
    """Scores that are linear in a row and in the row times the remaining budget.

    For algorithms that search in the space of parameters, and cannot search in thousands.

    Args:
        level: whose entries are scored.
    """

    def __init__(self, level: Level = "joint") -> None:
        super().__init__()
        self.level = level
        size = 2 * (len(SOURCES) + len(STRATA))
        if level != "local":
            self.top = nn.Linear(size, 1, bias=False)
        if level != "global":
            self.inner = nn.Linear(size, 1, bias=False)
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Float[n, entries, 1]."""
        count, sources, groups, _ = rows.strata.shape
        left = rows.progress[:, :1, None]
        parts = []
        if self.level != "local":
            pooled = _masked_mean(rows.strata, rows.strata_mask)
            whole = torch.cat([rows.sources, pooled], -1)
            parts.append(self.top(torch.cat([whole, left * whole], -1)))
        if self.level != "global":
            around = rows.sources.unsqueeze(2).expand(-1, -1, groups, -1)
            whole = torch.cat([around, rows.strata], -1)
            inner = self.inner(torch.cat([whole, left[..., None] * whole], -1))
            parts.append(inner.reshape(count, sources * groups, 1))
        return torch.cat(parts, 1)


def bounded(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Values between two bounds, by c + h tanh((x - c) / h): the slope is 1 in the middle.

    Unlike a clamp it has a gradient everywhere, so that what went too far can come back.
    """
    half, middle = (high - low) / 2, (high + low) / 2
    return middle + half * torch.tanh((values - middle) / half)


class Spread(nn.Module):
    """A log standard deviation per level, from the pooled context.

    Args:
        width: of the context.
        levels: how many.
        start: what it is at first, about.
    """

    LOW, HIGH = -5.0, 1.0

    def __init__(self, width: int, levels: int, start: float) -> None:
        super().__init__()
        self.net = mlp([width, width, levels], 0.01)
        half, middle = (self.HIGH - self.LOW) / 2, (self.HIGH + self.LOW) / 2
        inside = min(max((start - middle) / half, -0.99), 0.99)
        nn.init.constant_(self.net[-1].bias, middle + half * math.atanh(inside))  # type: ignore[arg-type]

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """Float[n, levels]."""
        return bounded(self.net(context), self.LOW, self.HIGH)


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


class CriticNet(nn.Module):
    """The value of a state and an action: rows are scored beside their entries, and pooled.

    A mixture does not change when all entries of a level move together, so entries are seen
    relative to their level's mean. What an entry adds by itself, linear in its row, has a way of
    its own: returns differ far more between tasks than between actions, and the first thing that
    an actor needs is the direction in which an entry should go.

    Args:
        width: of every code.
        level: whose entries the action has.
        outputs: numbers that are predicted.
        norm: see :class:`Encoder`.
    """

    def __init__(
        self,
        width: int,
        level: Level = "joint",
        outputs: int = 1,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.level = level
        self.encoder = Encoder(width, actions=True, norm=norm)
        self.value = mlp([width, width, outputs], 1.0)
        self.direct = LinearActor(level)

    def forward(self, rows: Rows, actions: torch.Tensor) -> torch.Tensor:
        """Float[n, outputs] for actions float[n, entries]."""
        top, inner = split_action(actions, rows, self.level)
        pair = (_centred(top, rows.source_mask), _centred(inner, rows.strata_mask))
        _, _, context = self.encoder(rows, pair)
        entries = join_action(*pair, self.level)
        added = (self.direct(rows).squeeze(-1) * entries).sum(1, keepdim=True)
        value: torch.Tensor = self.value(context)
        return value + added


def _centred(entries: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mean = _masked_mean(entries[..., None], mask)
    return (entries - mean) * mask
