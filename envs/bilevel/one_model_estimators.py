"""Estimators that only look at the model from nearby: ``alignment`` and ``lookahead``."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mixgym.envs.arrays import FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.copies import Gradients, lent, take_gradients
from mixgym.envs.bilevel.estimation import (
    PLAIN,
    Measured,
    StepData,
    is_due,
    per_source,
    presence,
    rows_to_look_at,
    train_only,
)
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import StepResult
from mixgym.envs.learners.pairing import Pairable, Tensors
from mixgym.envs.ranks import summed

_PART = 2**20  # entries of a tensor that are scaled at a time


@dataclass
class OneModelEstimator:
    """``alignment`` and ``lookahead``: w is a guess from the gradient of validation.

    w = u + d / alpha with d = -horizon * rate * P grad L1(u), where P scales as the optimiser does
    (or is the identity): the inverse curvature of the penalty problem is taken for that of the
    optimiser. ``alignment`` takes the derivative of the losses along d, ``lookahead`` their finite
    change. Nothing is kept, and u is exactly as it was: the buffer of the gradient becomes w.
    """

    options: BilevelOptions

    def cost(self, v: float = 1.0) -> float:
        """See :class:`~mixgym.envs.bilevel.two_model_estimators.Estimator`."""
        free = self.options.estimator == "lookahead" and self.options.look == "batch"
        looks = 1.0 if free else 2.0  # the step itself gives the losses of u on its batch
        return (PLAIN + (PLAIN * v + looks) / self.options.period) / PLAIN

    def step(self, task: StepData) -> Measured:
        """See :class:`~mixgym.envs.bilevel.two_model_estimators.Estimator`."""
        if not is_due(task.step, self.options.period):
            return train_only(task)
        model, own = task.model, task.model.parameters()
        look = rows_to_look_at(task, self.options)
        direction = self._direction(task, own)
        if self.options.estimator == "alignment":
            rise = self._derivative(task, look, own, direction)
        else:
            near = _moved(own, direction, 1 / task.alpha)
            with lent(own, near):
                pulled = model.losses(look)
            del near
        del direction
        sums, loss = model.accumulate_weighted(task.packs, task.weights)
        if self.options.estimator != "alignment":
            rise = task.alpha * (pulled - (sums if look is task.packs else model.losses(look)))
        gap, seen = per_source(task, look, rise)
        result = StepResult(summed(sums), loss, model.apply())
        return Measured(result, presence(task), gap, seen)

    def _direction(self, task: StepData, own: Tensors) -> Gradients:
        """d, in the memory of the gradient."""
        model = task.model
        model.validate(task.step // self.options.period, self.options.validation_packs, 1.0)
        gradients = take_gradients(own)
        if self.options.precondition:
            _scale_as_optimizer(model, own, gradients)
        for gradient in gradients.values():
            gradient.mul_(-self.options.horizon * model.base_rate)
        return gradients

    def _derivative(
        self, task: StepData, look: tuple[Pack, ...], own: Tensors, direction: Gradients
    ) -> FloatArray:
        """float64[K, G], derivative of the loss sums along d, whose memory may be used for it."""
        if self.options.derivative == "forward":
            return task.model.slopes(look, direction)
        near = _moved(own, direction, 1 / task.alpha)
        with lent(own, near):
            ahead = task.model.losses(look)
        for name, value in near.items():  # u + d / alpha becomes u - d / alpha where it stands
            value.neg_().add_(own[name].detach(), alpha=2.0)
        with lent(own, near):
            behind = task.model.losses(look)
        return 0.5 * task.alpha * (ahead - behind)

    def forget(self, names: Iterable[str]) -> None:
        """See :class:`~mixgym.envs.bilevel.two_model_estimators.Estimator`; there are no copies."""

    def snapshot(self) -> list[dict[str, Any]]:
        """See :class:`~mixgym.envs.bilevel.two_model_estimators.Estimator`."""
        return []

    def restore(self, state: list[dict[str, Any]]) -> None:
        """See :class:`~mixgym.envs.bilevel.two_model_estimators.Estimator`."""


def _scale_as_optimizer(model: Pairable, own: Tensors, gradients: Gradients) -> None:
    """Divide gradients in place by what the optimiser divides by, if it divides by anything.

    That is the root of its running square or the gradient's own size, whichever is larger: one
    gradient must not be taken for a thousand. No entry is larger than 1 afterwards, as in a step.
    """
    group = model.optimizer.param_groups[0]
    if "betas" not in group:
        return
    second, tiny = group["betas"][1], group["eps"]
    for name, gradient in gradients.items():
        state = model.optimizer.state.get(own[name], {})
        square = state.get("exp_avg_sq", gradient.new_zeros(()).expand_as(gradient))
        correction = 1.0 - second ** float(state.get("step", 1.0))
        for part, running in zip(*_in_parts(gradient, square), strict=True):
            scale = torch.maximum(part.abs(), (running / correction).sqrt_())
            part.div_(scale.add_(tiny))


def _in_parts(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Each tensor as flat parts that can be written to, so that what is made of them is small."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        return [(tensor,) for tensor in tensors]
    return [tensor.view(-1).split(_PART) for tensor in tensors]


def _moved(own: Tensors, direction: Gradients, factor: float) -> Gradients:
    """Find u + factor * direction, in the memory of the direction."""
    return {n: d.mul_(factor).add_(own[n].detach()) for n, d in direction.items()}
