"""Distributions over padded actions in which masked entries do not count, with registered KLs."""

from typing import Any, Self, cast

import torch
from stable_baselines3.common.distributions import Distribution
from torch.distributions import Normal
from torch.distributions.kl import register_kl

SMALLEST = 1e-6
"""The least weight of a sample from a Dirichlet distribution: its density stays finite."""


class MaskedNormal(torch.distributions.Distribution):
    """A diagonal Gaussian; masked entries are 0 for certain.

    Args:
        mean, std, mask: float[n, entries]; the mask is 1 for entries that count.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, mask: torch.Tensor) -> None:
        self.inner = Normal(mean, std, validate_args=False)
        self.mask = mask
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    @property
    def mode(self) -> torch.Tensor:
        """Float[n, entries]."""
        return self.inner.mean * self.mask

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Float[n, entries]."""
        return self.inner.rsample(sample_shape) * self.mask

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Float[n], summed over the entries that count."""
        return (self.inner.log_prob(value) * self.mask).sum(-1)

    def entropy(self) -> torch.Tensor:
        """Float[n]."""
        return (self.inner.entropy() * self.mask).sum(-1)


@register_kl(MaskedNormal, MaskedNormal)  # type: ignore[untyped-decorator]
def _kl_normal(p: MaskedNormal, q: MaskedNormal) -> torch.Tensor:
    each = torch.distributions.kl_divergence(p.inner, q.inner)
    return (each * p.mask).sum(-1)


class MaskedDirichlet(torch.distributions.Distribution):
    """Independent Dirichlet distributions: one over sources, one per source over its strata.

    Samples are weights that sum to 1 in each; masked entries are 0, and a distribution over one
    entry gives it everything for certain.

    Args:
        concentration: float[n, entries], positive.
        mask: float[n, entries].
        sizes: entries of each distribution, in order.
    """

    def __init__(self, concentration: torch.Tensor, mask: torch.Tensor, sizes: list[int]) -> None:
        self.concentration = concentration
        self.mask = mask
        self.sizes = sizes
        super().__init__(mask.shape[:1], mask.shape[1:], validate_args=False)

    @property
    def mode(self) -> torch.Tensor:
        """The mean, float[n, entries]: the mode itself is a corner below a concentration of 1."""
        return self._shares(self.concentration * self.mask)

    def sample(
        self, sample_shape: Any = (), generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Float[n, entries]."""
        with torch.no_grad():
            gammas = torch._standard_gamma(self.concentration, generator) * self.mask
            shares = self._shares(gammas).clamp_min(SMALLEST) * self.mask
            return self._shares(shares)

    rsample = sample  # gradients come from probabilities

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Float[n]."""
        logs = value.clamp_min(SMALLEST).log()
        return self._kernel((self.concentration - 1.0) * logs) - self._log_beta()

    def entropy(self) -> torch.Tensor:
        """Float[n]."""
        return self._log_beta() - self._kernel((self.concentration - 1.0) * self._mean_log())

    def _mean_log(self) -> torch.Tensor:
        """E[log x], float[n, entries]."""
        digamma = torch.digamma(self.concentration)
        totals = [part.sum(-1) for part in self._parts(self.concentration * self.mask)]
        return digamma - self._spread([torch.digamma(t.clamp_min(SMALLEST)) for t in totals])

    def _log_beta(self) -> torch.Tensor:
        """The logarithm of the normaliser, float[n]."""
        parts = self._parts(self.concentration * self.mask)
        totals = torch.stack([part.sum(-1).clamp_min(SMALLEST) for part in parts], -1)
        counts = torch.stack([part.sum(-1) for part in self._parts(self.mask)], -1)
        whole = (torch.lgamma(totals) * (counts > 1)).sum(-1)
        return self._kernel(torch.lgamma(self.concentration)) - whole

    def _kernel(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the entries that count, of distributions with more than one."""
        total = values.new_zeros(len(values))
        for part, mask in zip(self._parts(values), self._parts(self.mask), strict=True):
            total = total + (part * mask).sum(-1) * (mask.sum(-1) > 1)
        return total

    def _shares(self, values: torch.Tensor) -> torch.Tensor:
        totals = [part.sum(-1) for part in self._parts(values)]
        return values / self._spread(totals).clamp_min(1e-12)

    def _parts(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values.split(self.sizes, dim=-1)

    def _spread(self, totals: list[torch.Tensor]) -> torch.Tensor:
        """One number per distribution as one per entry."""
        sizes = torch.tensor(self.sizes, device=totals[0].device)
        return torch.stack(totals, -1).repeat_interleave(sizes, dim=-1)


@register_kl(MaskedDirichlet, MaskedDirichlet)  # type: ignore[untyped-decorator]
def _kl_dirichlet(p: MaskedDirichlet, q: MaskedDirichlet) -> torch.Tensor:
    gap = (p.concentration - q.concentration) * p._mean_log()
    return q._log_beta() - p._log_beta() + p._kernel(gap)


class RowDistribution(Distribution):
    """The face of such a distribution for Stable-Baselines3."""

    distribution: Any

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """The policy makes its own networks; this one is empty."""
        return torch.nn.Identity()

    def proba_distribution(self, distribution: torch.distributions.Distribution) -> Self:
        """Take the parameters of ``distribution``."""
        self.distribution = distribution
        return self

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Float[n]."""
        return cast(torch.Tensor, self.distribution.log_prob(actions))

    def entropy(self) -> torch.Tensor:
        """Float[n]."""
        return cast(torch.Tensor, self.distribution.entropy())

    def sample(self) -> torch.Tensor:
        """Float[n, entries]."""
        return cast(torch.Tensor, self.distribution.rsample())

    def mode(self) -> torch.Tensor:
        """Float[n, entries]."""
        return cast(torch.Tensor, self.distribution.mode)

    def actions_from_params(
        self, distribution: torch.distributions.Distribution, deterministic: bool = False
    ) -> torch.Tensor:
        """Float[n, entries]."""
        return self.proba_distribution(distribution).get_actions(deterministic=deterministic)

    def log_prob_from_params(
        self, distribution: torch.distributions.Distribution
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A sample and its log-probability."""
        actions = self.actions_from_params(distribution)
        return actions, self.log_prob(actions)
