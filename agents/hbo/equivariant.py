"""The hierarchical network as an actor of HBO: one network for all units of a level."""

from typing import Literal

import numpy as np
import torch
from torch.func import functional_call, vmap

from mixgym.agents.policies.network import HierarchicalActor
from mixgym.agents.policies.rows import Rows, split_rows
from mixgym.envs.arrays import FloatArray


class Equivariant:
    """Scores of :class:`HierarchicalActor` as logits; arithmetic is torch's, in float32.

    Features are flat observations with the numbers of sources and strata behind them,
    float64[n, size + 2]. The global level has parameters [n, P] and logits [n, K]; the local one,
    which is always shared, [n, 1, P] and [n, K, G].

    Args:
        level: which of them.
        width: of every code.
    """

    def __init__(self, level: Literal["global", "local"], width: int) -> None:
        self._level = level
        self._width = width
        self._net = HierarchicalActor(width, level)
        self._shapes = {name: value.shape for name, value in self._net.named_parameters()}

    def start(self, units: int, features: int, random: np.random.Generator) -> FloatArray:
        """See :class:`mixgym.agents.hbo.actors.LogitActor`; scores begin near 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**31)))
            fresh = HierarchicalActor(self._width, self._level)
        parts = [value.detach().numpy().ravel() for value in fresh.parameters()]
        return np.concatenate(parts).astype(np.float64)

    def logits(self, parameters: FloatArray, features: FloatArray) -> FloatArray:
        """See :class:`mixgym.agents.hbo.actors.LogitActor`."""
        with torch.no_grad():
            return self._scores(_tensor(parameters), features).numpy().astype(np.float64)

    def pull(
        self, parameters: FloatArray, features: FloatArray, gradient: FloatArray
    ) -> FloatArray:
        """See :class:`mixgym.agents.hbo.actors.LogitActor`; locally the mean over the sources."""
        given = _tensor(parameters).requires_grad_()
        scores = self._scores(given, features)
        (pulled,) = torch.autograd.grad((scores * _tensor(gradient)).sum(), given)
        rows = gradient.shape[-2] if self._level == "local" else 1
        return pulled.numpy().astype(np.float64) / rows

    def _scores(self, parameters: torch.Tensor, features: FloatArray) -> torch.Tensor:
        sources, strata = (int(size) for size in features[0, -2:])
        rows = split_rows(_tensor(features[:, :-2]), sources, strata)
        flat = parameters.reshape(len(features), -1)

        def one(vector: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
            own = Rows(*(part[None] for part in parts))
            scores: torch.Tensor = functional_call(self._net, self._named(vector), (own,))
            return scores[0, :, 0]

        found = vmap(one)(
            flat, rows.progress, rows.sources, rows.strata, rows.source_mask, rows.strata_mask
        )
        local = self._level == "local"
        scores: torch.Tensor = found.reshape(-1, sources, strata) if local else found
        return scores

    def _named(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes = [shape.numel() for shape in self._shapes.values()]
        pieces = vector.split(sizes)
        return {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }


def _tensor(values: FloatArray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32).copy())
