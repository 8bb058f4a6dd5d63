"""From scores of rows to actions: shared by the faces for Stable-Baselines3 and by exports."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn
from torch.nn.functional import softplus

from mixgym.agents.policies.distributions import MaskedDirichlet, MaskedNormal
from mixgym.agents.policies.network import HierarchicalActor, LinearActor, Spread, bounded
from mixgym.agents.policies.rows import Level, Rows, action_mask, by_entry

LstmState = tuple[torch.Tensor, torch.Tensor]
"""Hidden and cell state of an LSTM, float[1, n, size] each."""

_FAR = 4.0
"""Where the mean of a squashed Gaussian ends: beyond, tanh has no gradient left."""

Head = Literal["gaussian", "dirichlet", "squashed", "deterministic", "greedy"]


@dataclass(frozen=True)
class ActorSpec:
    """The acting network of a policy: enough to build it for any spaces, and to act with it.

    Attributes:
        head: how scores become actions: ``gaussian`` (clipped), ``dirichlet`` (weights),
            ``squashed`` (a Gaussian before tanh), ``deterministic`` (tanh), ``greedy`` (a nudge).
        level: whose entries it sets.
        width: of its codes; 0 for scores that are linear in the rows.
        memory: size of an LSTM on the pooled context; 0 for none.
        outputs: numbers per entry (quantiles).
    """

    head: Head
    level: Level = "joint"
    width: int = 64
    memory: int = 0
    outputs: int = 1

    def card(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def build(self, **start: float) -> "ActingNet":
        """The network, freshly initialised; see :class:`ActingNet` for ``start``."""
        return ActingNet(self, **start)


class Memory(nn.Module):
    """An LSTM on the pooled context, whose output is added to it.

    Args:
        width: of the context.
        size: of the memory.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, size)
        self.recall = nn.Linear(size, width)
        nn.init.orthogonal_(self.recall.weight, 0.1)
        nn.init.zeros_(self.recall.bias)

    def forward(
        self, context: torch.Tensor, state: LstmState, starts: torch.Tensor
    ) -> tuple[torch.Tensor, LstmState]:
        """The new context, and the new state.

        Args:
            context: float[n * t, width], sequences of t one after the other.
            state: hidden and cell state, float[1, n, size] each.
            starts: float[n * t], 1 where an episode begins and memory is cleared.
        """
        process = RecurrentActorCriticPolicy._process_sequence
        found, after = process(context, state, starts, self.lstm)
        return torch.tanh(context + self.recall(found)), cast(LstmState, after)


class ActingNet(nn.Module):
    """Scores of an observation's rows, and the parameters of the distribution around them.

    Args:
        spec: what it is.
        log_std: start of the log standard deviations (Gaussian heads).
        concentration: start of the concentrations (Dirichlet head).
    """

    def __init__(
        self, spec: ActorSpec, *, log_std: float = -1.0, concentration: float = 8.0
    ) -> None:
        super().__init__()
        self.spec = spec
        levels = 2 if spec.level == "joint" else 1
        if spec.width == 0:
            self.rows: Any = LinearActor(spec.level)
        else:
            self.rows = HierarchicalActor(
                spec.width, spec.level, spec.outputs, stay=spec.head == "greedy"
            )
        if spec.memory:
            self.memory: Any = Memory(spec.width, spec.memory)
        if spec.head == "squashed":
            self.spread = Spread(spec.width, levels, log_std)
        elif spec.head == "gaussian":
            self.log_std = nn.Parameter(torch.full((levels,), float(log_std)))
        elif spec.head == "dirichlet":
            self.log_concentration = nn.Parameter(torch.full((levels,), float(concentration)).log())

    def forward(self, rows: Rows) -> Any:
        """The distribution of actions (Gaussian and Dirichlet heads), or the scores."""
        if self.spec.head == "squashed":
            codes = self.rows.encoder(rows)
            return self._squashed(rows, self.rows.scores(rows, *codes), codes[-1])
        return self.from_scores(rows, self.rows(rows))

    def remember(self, rows: Rows, state: LstmState, starts: torch.Tensor) -> tuple[Any, LstmState]:
        """As :meth:`forward`, with a memory of what came before; see :class:`Memory`."""
        stratum, source, context = self.rows.encoder(rows)
        context, state = self.memory(context, state, starts)
        return self.from_scores(rows, self.rows.scores(rows, stratum, source, context)), state

    def from_scores(self, rows: Rows, scores: torch.Tensor) -> Any:
        """See :meth:`forward`."""
        level, shape = self.spec.level, rows.shape
        mask = action_mask(rows, level)
        if self.spec.head == "greedy":
            return masked_values(scores, mask)
        scores = scores.squeeze(-1)
        if self.spec.head == "deterministic":
            return torch.tanh(scores) * mask
        if self.spec.head == "dirichlet":
            start = by_entry(self.log_concentration.exp(), shape, level)
            # softplus keeps the density bounded; it is `start` above 1 where the score is 0
            above = start * softplus(scores) / softplus(torch.zeros(()))
            return MaskedDirichlet(1.0 + above, mask, blocks(shape, level))
        mean = torch.tanh(scores) * mask
        std = by_entry(self.log_std.exp(), shape, level).expand_as(mean)
        return MaskedNormal(mean, std, mask)

    def _squashed(self, rows: Rows, scores: torch.Tensor, context: torch.Tensor) -> MaskedNormal:
        """The Gaussian whose tanh is the action."""
        level, shape = self.spec.level, rows.shape
        mask = action_mask(rows, level)
        mean = bounded(scores.squeeze(-1), -_FAR, _FAR) * mask
        return MaskedNormal(mean, by_entry(self.spread(context).exp(), shape, level), mask)


def masked_values(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values float[n, 1 + entries, outputs] in which a masked nudge is worth what staying is.

    The environment leaves the mixture as it is for either; the first of equal values wins, so a
    masked nudge is never chosen.
    """
    stay = values[:, :1]
    moves = torch.where(mask.unsqueeze(-1) > 0, values[:, 1:], stay)
    return torch.cat([stay, moves], 1)


def blocks(shape: tuple[int, int], level: Level) -> list[int]:
    """Entries that sum to 1 together: the sources, then the strata of each."""
    sources, strata = shape
    inner = [strata] * sources
    return {"joint": [sources, *inner], "global": [sources], "local": [strata]}[level]


def act(
    net: ActingNet, found: Any, deterministic: bool, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Actions from what an acting network gives: float[n, entries], or int64[n] of nudges."""
    head = net.spec.head
    if head == "greedy":
        return found.mean(-1).argmax(1)
    if head == "deterministic":
        return found
    if deterministic:
        best = found.mode
    elif isinstance(found, MaskedNormal):
        noise = torch.randn(found.mask.shape, generator=generator)
        best = (found.inner.mean + noise * found.inner.stddev) * found.mask
    else:
        best = found.sample(generator=generator)
    return torch.tanh(best) * found.mask if head == "squashed" else best
