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

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import TRAINED_COPIES, BilevelOptions
from mixgym.envs.bilevel.copies import Copy, Gradients, Values, lent, take_gradients
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
from mixgym.envs.bilevel.one_model_estimators import OneModelEstimator
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import StepResult
from mixgym.envs.learners.kinds import CAUSAL_LM
from mixgym.envs.learners.pairing import Pairable, Tensors
from mixgym.envs.ranks import summed

MakeCopy = Callable[[Pairable], Copy]


class Estimator(Protocol):
    """A way to find the gap."""

    def cost(self, v: float = 1.0) -> float:
        """Compute per step over that of plain fine-tuning."""
        ...

    def step(self, task: StepData) -> Measured:
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
        looks = 2.0 / self.options.period if self.options.look == "even" else 0.0
        return (PLAIN + len(self.pulls) * (PLAIN + PLAIN * v) + looks) / PLAIN

    def step(self, task: StepData) -> Measured:
        """See :class:`Estimator`."""
        self.begin(task.model)
        model, own = task.model, task.model.parameters()
        lists = [
            self._pull(task, own, *pair) for pair in zip(self._copies, self.pulls, strict=True)
        ]
        sums, loss = model.accumulate_weighted(task.packs, task.weights)
        gap, seen = self._gap(task, own, [*(found for found, _ in lists), sums])
        gathered = [
            copy.gather(gradients, own, task.alpha)
            for copy, (_, gradients) in zip(self._copies, lists, strict=True)
        ]
        rate, norm = model.rate(), model.apply()
        for copy, gradients in zip(self._copies, gathered, strict=True):
            copy.step(gradients, rate, model.clip_factor(norm))
        return Measured(StepResult(summed(sums), loss, norm), presence(task), gap, seen)

    def _gap(
        self, task: StepData, own: Tensors, trained: list[FloatArray]
    ) -> tuple[FloatArray | None, BoolArray | None]:
        """See :func:`per_source`; ``trained`` are the loss sums of copies and model in the step."""
        look = task.packs
        if self.options.look == "even":
            if not is_due(task.step, self.options.period):
                return None, None
            look = rows_to_look_at(task, self.options)
            trained = [self._losses(task, own, copy, look) for copy in self._copies]
            if len(trained) == 1:
                trained.append(task.model.losses(look))
        rise = trained[0] - trained[1]  # the other copy, or the model
        return per_source(task, look, task.alpha * rise / len(self.pulls))

    def _losses(
        self, task: StepData, own: Tensors, copy: Copy, look: tuple[Pack, ...]
    ) -> FloatArray:
        with lent(own, copy.values(own, task.alpha)):
            return task.model.losses(look)

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
        self, task: StepData, own: Tensors, copy: Copy, pull: float
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

    def step(self, task: StepData) -> Measured:
        """See :class:`Estimator`."""
        period = self.options.period
        if task.step % period < period - self.options.pair_steps:
            return train_only(task)
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


def _full_copy(model: Pairable) -> Copy:
    """A copy of all parameters."""
    return Values(model, model.parameters())


def make_estimator(options: BilevelOptions, make_copy: MakeCopy = _full_copy) -> Estimator:
    """The estimator that the options name.

    Example:
        >>> make_estimator(BilevelOptions(estimator="paired")).cost()
        3.0
        >>> round(make_estimator(BilevelOptions(estimator="lookahead")).cost(), 3)
        1.167
    """
    options = options.on(CAUSAL_LM)
    if options.estimator not in TRAINED_COPIES:
        return OneModelEstimator(options)
    if options.estimator == "lazy_pair":
        return LazyPair(options, Paired(options, make_copy))
    return Paired(options, make_copy, (1.0,) if options.estimator == "paired" else (1.0, -1.0))
