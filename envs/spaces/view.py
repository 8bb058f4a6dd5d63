"""What an episode and its last decision booked, as plain arrays.

Observations, rewards and records are made of this value and of nothing else, so that a single
environment, a batch of closed-form ones and a fine-tuning run share them. Any leading axes
(environments) may come first.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.spaces.mixture import last_sum


@dataclass(frozen=True)
class Fixed:
    """What observations need that stays for as long as the episode and its available cells do.

    Attributes:
        template: float32[..., size], the observation with the features that stay; 0 elsewhere.
        count: float64[..., 1], sources that exist.
        size: float64[..., K], of sources, never 0.
        source_mask, cell_mask: float32[..., K] and [..., K, G], 1 for rows that are not all zero.
        start, source_start, cell_start: float64[...], [..., K] and [..., K, G], what losses are
            multiplied by to compare them with the start: 1 over it, 0 where it is missing.
        measured: whether none of these is missing.
    """

    template: NDArray[np.float32]
    count: FloatArray
    size: FloatArray
    source_mask: NDArray[np.float32]
    cell_mask: NDArray[np.float32]
    start: FloatArray
    source_start: FloatArray
    cell_start: FloatArray
    measured: bool


@dataclass(frozen=True)
class View:
    """The numbers that observations are made of; any leading axes (environments) may come first.

    K and G may be the task's own or padded; observations are padded anyway.

    Attributes:
        remaining: float64[...], share of the budget that is left.
        reward: float64[...], of the last decision.
        targets, prior, weight, share, nll, nll_before, nll_start, nll_train: float64[K]; NLL in
            nats per token, NaN where unmeasured.
        mean_nll, mean_nll_start: float64[...], target-weighted.
        cell_size: float64[K, G], units of the ratios in each cell.
        cell_prior, cell_weight, cell_epochs, cell_nll, cell_nll_before, cell_nll_start:
            float64[K, G].
        cost, cell_cost: float64[K] and [K, G], tokens read per supervised token of the training
            rows; NaN where there are none.
        error, cell_error: float64[K] and [K, G], standard errors of ``nll`` and ``cell_nll`` in
            nats; NaN where unknown.
        available: bool[K, G].
        present: bool[K], sources that exist, or None for all of them.
        nll_reference, cell_nll_reference: float64[K], [K, G], of the reference model, if any.
        cell_nll_train: float64[K, G], NLL of each cell when it was last trained on.
        probes: by name float64[K] or [K, G], NaN where unknown; None without probes.
        probe_age: float64[probes], by sorted name: decisions since measured, -1 for never.
        fixed: what :func:`fixed_parts` gives, if somebody keeps it from decision to decision.
    """

    remaining: FloatArray | float
    reward: FloatArray | float
    targets: FloatArray
    prior: FloatArray
    weight: FloatArray
    share: FloatArray
    nll: FloatArray
    nll_before: FloatArray
    nll_start: FloatArray
    nll_train: FloatArray
    mean_nll: FloatArray | float
    mean_nll_start: FloatArray | float
    cell_size: FloatArray
    cell_prior: FloatArray
    cell_weight: FloatArray
    cell_epochs: FloatArray
    cell_nll: FloatArray
    cell_nll_before: FloatArray
    cell_nll_start: FloatArray
    cost: FloatArray
    cell_cost: FloatArray
    error: FloatArray
    cell_error: FloatArray
    available: BoolArray
    present: BoolArray | None = None
    fixed: Fixed | None = None
    nll_reference: FloatArray | None = None
    cell_nll_reference: FloatArray | None = None
    cell_nll_train: FloatArray | None = None
    probes: dict[str, FloatArray] | None = None
    probe_age: FloatArray | None = None

    @property
    def sources(self) -> BoolArray:
        """bool[K], sources that exist."""
        return np.ones(self.targets.shape, np.bool_) if self.present is None else self.present

    @cached_property
    def epochs(self) -> FloatArray:
        """float64[K], passes over each source: size-weighted mean over its strata."""
        size = source_size(self.cell_size) if self.fixed is None else self.fixed.size
        return last_sum(self.cell_epochs * self.cell_size) / size

    def with_reward(self, reward: FloatArray | float) -> "View":
        """The same after the decision was paid; what is cached stays so."""
        paid = object.__new__(View)  # a tenth of the time of dataclasses.replace
        vars(paid).update(vars(self), reward=reward)
        return paid


def source_size(cell_size: FloatArray) -> FloatArray:
    """float64[..., K], the sizes of sources, never 0, from those of their cells [..., K, G]."""
    return np.maximum(last_sum(cell_size), 1e-12)
