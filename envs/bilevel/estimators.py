"""How the gradient of the weights is found, by name, cheapest to dearest.

All of them give the gap of every source, alpha (l_j(w) - l_j(u)): how much its loss rises when the
model u is pulled towards validation. They differ in how w is found: a first-order guess
(``alignment``: its derivative, ``lookahead``: a transient perturbation), a short paired run
(``lazy_pair``), a second model all along (``paired``: Pan et al., arXiv 2406.19976, with the
gradients divided by alpha), or two of them (``central``).

Cost is counted in forward passes over a training batch; a backward pass is two, so that plain
fine-tuning costs 3 per step. ``v`` is the size of a validation batch over that of a training batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from mixgym.envs.bilevel.copies import Copy, Gradients, Values, lent, take_gradients
from mixgym.envs.bilevel.options import TRAINED_COPIES, BilevelOptions
from mixgym.envs.errors import DivergenceError
from mixgym.envs.learners.base import FloatArray, StepResult
from mixgym.envs.learners.pairing import Pairable, Tensors
from mixgym.envs.mixture import BoolArray
from mixgym.envs.plan import Pack
from mixgym.envs.ranks import summed

PLAIN = 3.0  # passes in a step of plain fine-tuning

MakeCopy = Callable[[Pairable], Copy]


@dataclass(frozen=True)
class Task:
    """One step to take.

    Attributes:
        model: u.
        packs: the global batch.
        weights: float64[K], of the sources in the loss, or None where sampling does it.
        alpha: penalty of this step.
        step: number of the step, from 0.
    """

    model: Pairable
    packs: tuple[Pack, ...]
    weights: FloatArray | None
    alpha: float
    step: int


@dataclass(frozen=True)
class Measured:
    """What a step did.

    Attributes:
        result: of u.
        present: bool[K], sources with tokens in the global batch.
        gap: float64[K], alpha (l(w) - l(u)), 0 for absent sources; None if it was not measured.
    """

    result: StepResult
    present: BoolArray
    gap: FloatArray | None = None


class Estimator(Protocol):
    """A way to find the gap."""

    def cost(self, v: float = 1.0) -> float:
        """Compute per step over that of plain fine-tuning."""
        ...

    def step(self, task: Task) -> Measured:
        """Train u on the batch, and measure the gap if it is time.

        Raises:
            DivergenceError: at a non-finite loss, gradient or gap; u stays as it was.
        """
        ...

    def forget(self, names: Iterable[str]) -> None:
        """Drop the state of the copies' optimisers for these parameters."""
        ...

    def snapshot(self) -> list[dict[str, Any]]:
        """The copies."""
        ...

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Continue from a snapshot; at the next step, since copies need a model."""
        ...


@dataclass
class Nearby:
    """``alignment`` and ``lookahead``: w is a guess from the gradient of validation.

    w = u + d / alpha with d = -horizon * rate * P grad L1(u), where P scales as the optimiser does
    (or is the identity): the inverse curvature of the penalty problem is taken for that of the
    optimiser. ``alignment`` takes the derivative of the losses along d, ``lookahead`` their finite
    change. Nothing is kept, and u is exactly as it was: the buffer of the gradient becomes w.
    """

    options: BilevelOptions

    def cost(self, v: float = 1.0) -> float:
        """See :class:`Estimator`."""
        looks = 2.0 if self.options.estimator == "alignment" else 1.0
        return (PLAIN + (PLAIN * v + looks) / self.options.period) / PLAIN

    def step(self, task: Task) -> Measured:
        """See :class:`Estimator`."""
        model, packs, own = task.model, task.packs, task.model.parameters()
        rise = None
        if is_due(task.step, self.options.period):
            direction = self._direction(task, own)
            if self.options.estimator == "alignment":
                rise = self._derivative(task, own, direction)
            else:
                near = _moved(own, direction, 1 / task.alpha)
                with lent(own, near):
                    pulled = model.losses(packs)
                del near
            del direction
        sums, loss = model.accumulate_weighted(packs, task.weights)
        if is_due(task.step, self.options.period) and rise is None:
            rise = task.alpha * (pulled - sums)
        gap, present = per_source(task, rise)
        return Measured(StepResult(summed(sums), loss, model.apply()), present, gap)

    def _direction(self, task: Task, own: Tensors) -> Gradients:
        """d, in the memory of the gradient."""
        model = task.model
        model.validate(task.step // self.options.period, self.options.validation_packs, 1.0)
        gradients = take_gradients(own)
        if self.options.precondition:
            scale_as_optimizer(model, own, gradients)
        for gradient in gradients.values():
            gradient.mul_(-self.options.horizon * model.base_rate)
        return gradients

    def _derivative(self, task: Task, own: Tensors, direction: Gradients) -> FloatArray:
        """float64[K, G], derivative of the loss sums along d."""
        if self.options.derivative == "forward":
            return task.model.slopes(task.packs, direction)
        change = np.zeros(0)
        for side in (1.0, -1.0):
            near = {n: own[n].detach() + d * (side / task.alpha) for n, d in direction.items()}
            with lent(own, near):
                sums = side * task.model.losses(task.packs)
            change = sums if side > 0 else change + sums
        return 0.5 * task.alpha * change

    def forget(self, names: Iterable[str]) -> None:
        """See :class:`Estimator`; there are no copies."""

    def snapshot(self) -> list[dict[str, Any]]:
        """See :class:`Estimator`."""
        return []

    def restore(self, state: list[dict[str, Any]]) -> None:
        """See :class:`Estimator`."""


@dataclass
class Paired:
    """``paired`` and ``central``: one copy pulled towards validation, or one each way.

    The copies see the batch, the dropout draws, the active blocks, the learning rate and the
    factor of clipping of u: what differs between them and u is multiplied by alpha.

    Args:
        options: of the rule.
        make_copy: makes a copy of a model.
        pulls: +1 towards validation, -1 away from it.
    """

    options: BilevelOptions
    make_copy: MakeCopy
    pulls: tuple[float, ...] = (1.0,)
    _copies: list[Copy] = field(default_factory=list)
    _waiting: list[dict[str, Any]] = field(default_factory=list)

    def cost(self, v: float = 1.0) -> float:
        """See :class:`Estimator`."""
        return (PLAIN + len(self.pulls) * (PLAIN + PLAIN * v)) / PLAIN

    def step(self, task: Task) -> Measured:
        """See :class:`Estimator`."""
        self.begin(task.model)
        model, own = task.model, task.model.parameters()
        lists = [
            self._pull(task, own, *pair) for pair in zip(self._copies, self.pulls, strict=True)
        ]
        sums, loss = model.accumulate_weighted(task.packs, task.weights)
        pulled = [found for found, _ in lists]
        rise = 0.5 * (pulled[0] - pulled[1]) if len(pulled) > 1 else pulled[0] - sums
        gap, present = per_source(task, task.alpha * rise)
        gathered = [
            copy.gather(gradients, own, task.alpha)
            for copy, (_, gradients) in zip(self._copies, lists, strict=True)
        ]
        rate, norm = model.rate(), model.apply()
        for copy, gradients in zip(self._copies, gathered, strict=True):
            copy.step(gradients, rate, model.clip_factor(norm))
        return Measured(StepResult(summed(sums), loss, norm), present, gap)

    def begin(self, model: Pairable) -> None:
        """Make the copies, unless they are there; put them back where a snapshot had them."""
        if not self._copies:
            self._copies = [self.make_copy(model) for _ in self.pulls]
            for copy, state in zip(self._copies, self._waiting, strict=False):
                copy.restore(state)
            self._waiting = []

    def drop(self) -> None:
        """Forget the copies; the next step makes new ones from its model."""
        self._copies, self._waiting = [], []

    def _pull(
        self, task: Task, own: Tensors, copy: Copy, pull: float
    ) -> tuple[FloatArray, Gradients]:
        """Loss sums of a copy, and the gradient of L2 + pull * L1 / alpha."""
        with lent(own, copy.values(own, task.alpha)):
            sums, _ = task.model.accumulate_weighted(task.packs, task.weights)
            task.model.validate(task.step, self.options.validation_packs, pull / task.alpha)
            return sums, take_gradients(own)

    def forget(self, names: Iterable[str]) -> None:
        """See :class:`Estimator`."""
        dropped = tuple(names)
        for copy in self._copies:
            copy.forget(dropped)

    def snapshot(self) -> list[dict[str, Any]]:
        """See :class:`Estimator`."""
        return [copy.snapshot() for copy in self._copies] or list(self._waiting)

    def restore(self, state: list[dict[str, Any]]) -> None:
        """See :class:`Estimator`."""
        self._copies, self._waiting = [], list(state)


@dataclass
class LazyPair:
    """``lazy_pair``: before each update the model is copied, and trained in a pair for a few steps.

    The copy starts with the state of the model's optimiser, and is dropped after the update.
    """

    options: BilevelOptions
    pair: Paired

    def cost(self, v: float = 1.0) -> float:
        """See :class:`Estimator`."""
        return 1.0 + self.options.pair_steps * (self.pair.cost(v) - 1.0) / self.options.period

    def step(self, task: Task) -> Measured:
        """See :class:`Estimator`."""
        period = self.options.period
        if task.step % period < period - self.options.pair_steps:
            sums, loss = task.model.accumulate_weighted(task.packs, task.weights)
            _, present = per_source(task, None)
            return Measured(StepResult(summed(sums), loss, task.model.apply()), present)
        measured = self.pair.step(task)
        if not is_due(task.step, period):
            return Measured(measured.result, measured.present)
        self.pair.drop()
        return measured

    def forget(self, names: Iterable[str]) -> None:
        """See :class:`Estimator`."""
        self.pair.forget(names)

    def snapshot(self) -> list[dict[str, Any]]:
        """See :class:`Estimator`."""
        return self.pair.snapshot()

    def restore(self, state: list[dict[str, Any]]) -> None:
        """See :class:`Estimator`."""
        self.pair.restore(state)


def full_copy(model: Pairable) -> Copy:
    """A copy of all parameters."""
    return Values(model, model.parameters())


def make_estimator(options: BilevelOptions, make_copy: MakeCopy = full_copy) -> Estimator:
    """The estimator that the options name.

    Example:
        >>> make_estimator(BilevelOptions(estimator="paired")).cost()
        3.0
        >>> round(make_estimator(BilevelOptions(estimator="lookahead")).cost(), 3)
        1.133
    """
    if options.estimator not in TRAINED_COPIES:
        return Nearby(options)
    if options.estimator == "lazy_pair":
        return LazyPair(options, Paired(options, make_copy))
    return Paired(options, make_copy, (1.0,) if options.estimator == "paired" else (1.0, -1.0))


def is_due(step: int, period: int) -> bool:
    """Whether the weights are updated at the end of this step."""
    return step % period == period - 1


def per_source(task: Task, rise: FloatArray | None) -> tuple[FloatArray | None, BoolArray]:
    """Token means of loss sums [K, G] over all ranks: float64[K], 0 where absent; bool[K].

    Raises:
        DivergenceError: if one is not finite.
    """
    counts = summed(task.model.source_counts(task.packs))
    present = counts > 0
    if rise is None:
        return None, present
    total = summed(rise.sum(-1))
    with np.errstate(invalid="ignore"):  # it is looked at next
        gap = np.where(present, total / np.where(present, counts, 1.0), 0.0)
    bad = np.flatnonzero(~np.isfinite(gap))
    if bad.size:
        raise DivergenceError(
            f"the value gap of source {task.model.source_names[bad[0]]!r} is {gap[bad[0]]} at step "
            f"{task.step + 1}: the second model diverges; lower training.learning_rate, or raise "
            "bilevel.alpha"
        )
    return gap, present


def scale_as_optimizer(model: Pairable, own: Tensors, gradients: Gradients) -> None:
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
        scale = gradient.abs()
        if "exp_avg_sq" in state:
            correction = 1.0 - second ** float(state["step"])
            scale = torch.maximum(scale, (state["exp_avg_sq"] / correction).sqrt_())
        gradient.div_(scale.add_(tiny))


def _moved(own: Tensors, direction: Gradients, factor: float) -> Gradients:
    """Find u + factor * direction, in the memory of the direction."""
    return {n: d.mul_(factor).add_(own[n].detach()) for n, d in direction.items()}
