"""What an episode and its last decision booked, as plain arrays.

Observations, rewards and records are made of this value and of nothing else, so that a single
environment, a batch of closed-form ones and a fine-tuning run share them. Any leading axes
(environments) may come first.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.spaces.mixture import last_sum


@dataclass(frozen=True)
class Fixed:
    """Features that stay for as long as the task and its available cells do.

    Attributes:
        count: float64[..., 1], sources that exist.
        sources: float64[..., K, 3], the columns target, size and prior.
        strata: float64[..., K, G, 2], the columns difficulty and size.
        cost, cell_cost: float64[..., K] and [..., K, G], the columns of that name.
        source_mask, cell_mask: float64[..., K] and [..., K, G], 1 for rows that are not all zero.
        masks: float64[..., K_max + K_max * G_max].
    """

    count: FloatArray
    sources: FloatArray
    strata: FloatArray
    cost: FloatArray
    cell_cost: FloatArray
    source_mask: FloatArray
    cell_mask: FloatArray
    masks: FloatArray


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
        size = last_sum(self.cell_size)
        return last_sum(self.cell_epochs * self.cell_size) / np.maximum(size, 1e-12)

    def with_reward(self, reward: FloatArray | float) -> "View":
        """The same after the decision was paid; what is cached stays so."""
        paid = object.__new__(View)  # a tenth of the time of dataclasses.replace
        vars(paid).update(vars(self), reward=reward)
        return paid
