"""What the environment asks of a learner, and of the rule that takes its optimiser steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.spaces.mixture import Mixture

Counts = IntArray | FloatArray  # closed-form learners count fractions of a token


@dataclass(frozen=True)
class TrainReport:
    """What an interval of training did.

    Attributes:
        loss_sum: float64[K, G], summed NLL of the supervised tokens, each as it was when trained.
        supervised, tokens, rows: [K, G], what was trained on (int64, but for curves).
        step_loss: loss of every optimiser step (nats per supervised token).
        gradient_norm: of every optimiser step, before clipping.
        learning_rate: of the last step.
        rates: sum of the learning rates of all steps.
    """

    loss_sum: FloatArray
    supervised: Counts
    tokens: Counts
    rows: Counts
    step_loss: tuple[float, ...] = ()
    gradient_norm: tuple[float, ...] = ()
    learning_rate: float = 0.0
    rates: float = 0.0

    @property
    def source_nll(self) -> FloatArray:
        """float64[K], nats per supervised token; NaN where a source was not trained on."""
        return _token_mean(self.loss_sum.sum(-1), self.supervised.sum(-1))

    @property
    def nll(self) -> FloatArray:
        """float64[K, G], the same for every stratum."""
        return _token_mean(self.loss_sum, self.supervised)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        values: float64[K] or float64[K, G] by the probe's level; NaN where there are no rows.
        tokens: what it cost, in tokens of a pass forward (see :mod:`mixgym.envs.probes`).
    """

    values: FloatArray
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """A measurement on a held-out split.

    Attributes:
        loss_sum: float64[K, G], summed NLL of the supervised tokens.
        supervised: int64[K, G], supervised tokens; 0 marks an empty cell.
        tokens: tokens read, prompts included (the cost of the measurement).
        rows: int64[K, G], held-out rows.
        error: float64[K, G], standard error of :attr:`nll` in nats; NaN where unknown.
        source_error: float64[K], the same of :attr:`source_nll`.
    """

    loss_sum: FloatArray
    supervised: IntArray
    tokens: int
    rows: IntArray
    error: FloatArray
    source_error: FloatArray

    @property
    def nll(self) -> FloatArray:
        """float64[K, G], nats per supervised token; NaN in empty cells."""
        return _token_mean(self.loss_sum, self.supervised)

    @property
    def source_nll(self) -> FloatArray:
        """float64[K], token mean over the strata; NaN for a source without held-out rows."""
        return _token_mean(self.loss_sum.sum(-1), self.supervised.sum(-1))


def _token_mean(loss_sum: FloatArray, count: Counts) -> FloatArray:
    """``loss_sum / count``, NaN where the count is 0."""
    return np.where(count > 0, loss_sum / np.where(count > 0, count, 1), np.nan)


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step measured.

    Attributes:
        loss_sum: float64[K, G], summed NLL of the supervised tokens (unweighted).
        loss: the step's loss, sum of w * token loss / sum of w.
        gradient_norm: before clipping.
    """

    loss_sum: FloatArray
    loss: float
    gradient_norm: float


class Trainable(Protocol):
    """The two halves of an optimiser step, from which step rules are made."""

    def accumulate(self, packs: tuple[Pack, ...]) -> tuple[FloatArray, float]:
        """Add the gradient of a global batch; return (loss sums [K, G], loss of the step)."""
        ...

    def apply(self) -> float:
        """Clip, step the optimiser and the schedule, clear gradients; return the norm."""
        ...


class StepRule(Protocol):
    """Takes the optimiser steps of a plan; ``plain`` here, ``bilevel`` holds a second model."""

    name: str

    def step(self, model: Trainable, packs: tuple[Pack, ...]) -> StepResult:
        """Train one global batch."""
        ...

    def align(self, signal: Callable[[], FloatArray], progress: float) -> None:
        """Called once an interval by a learner that has no steps but knows what sources are worth.

        ``signal()`` gives it: see :class:`~mixgym.envs.bilevel.rule.BilevelStep`.
        """
        ...

    def tilt(self, mixture: Mixture) -> Mixture:
        """The mixture to sample, where an agent asks for ``mixture``."""
        ...

    def gains(self) -> FloatArray | None:
        """float64[K], what the rule found each source to be worth; None if it does not look."""
        ...

    def health(self) -> dict[str, float]:
        """What there is to watch, by name; becomes the record's ``bilevel``."""
        ...

    def reset(self) -> None:
        """Start an episode."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """State from which :meth:`restore` continues exactly."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        ...

    def fork(self) -> "StepRule":
        """An independent copy in the same state."""
        ...

    def save(self, folder: Path) -> None:
        """Write the state, if there is any, into ``folder``."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`."""
        ...


@dataclass
class PlainStep:
    """The ordinary optimiser step."""

    name: str = field(default="plain", init=False)

    def step(self, model: Trainable, packs: tuple[Pack, ...]) -> StepResult:
        """See :class:`StepRule`."""
        loss_sum, loss = model.accumulate(packs)
        return StepResult(loss_sum, loss, model.apply())

    def align(self, signal: Callable[[], FloatArray], progress: float) -> None:
        """See :class:`StepRule`."""

    def tilt(self, mixture: Mixture) -> Mixture:
        """See :class:`StepRule`."""
        return mixture

    def gains(self) -> None:
        """See :class:`StepRule`."""

    def health(self) -> dict[str, float]:
        """See :class:`StepRule`."""
        return {}

    def reset(self) -> None:
        """See :class:`StepRule`."""

    def snapshot(self) -> dict[str, Any]:
        """See :class:`StepRule`; there is no state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`StepRule`."""

    def fork(self) -> "PlainStep":
        """See :class:`StepRule`."""
        return PlainStep()

    def save(self, folder: Path) -> None:
        """See :class:`StepRule`."""

    def load(self, folder: Path) -> None:
        """See :class:`StepRule`."""


class Learner(Protocol):
    """The model being fine-tuned, with its optimiser."""

    def reset(self) -> None:
        """Back to the model and the optimiser that the episode starts from."""
        ...

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """Train the plan; ``progress`` in [0, 1] is the share of the budget used before it.

        Raises:
            DivergenceError: at a non-finite loss; parameters stay as they were before that step.
        """
        ...

    def evaluate(self, split: str) -> Evaluation:
        """Measure NLL on a held-out split; parameters, gradients, optimiser and RNG untouched."""
        ...

    def begin_probes(self, names: Sequence[str]) -> int:
        """Measure what these probes will be compared with; called before anything is trained.

        Returns:
            What an episode is charged for it, in tokens of a pass forward.
        """
        ...

    def probe(self, name: str) -> ProbeResult:
        """Measure a probe of :data:`mixgym.envs.probes.PROBES` (all but the free ones).

        Parameters, gradients, optimiser, mode and random streams stay untouched.

        Raises:
            DivergenceError: if a value is not finite, naming the source.
        """
        ...

    def snapshot(self) -> dict[str, Any]:
        """State in memory from which :meth:`restore` continues bit-equal on CPU."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        ...

    def fork(self) -> "Learner":
        """An independent copy that continues bit-equal; data is shared, state is not."""
        ...

    def save(self, folder: Path) -> None:
        """Write model (Hugging Face format where there is one) and optimiser into ``folder``."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`."""
        ...
