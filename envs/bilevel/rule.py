"""The step rule ``bilevel``: learns source weights while it takes the optimiser's steps.

ScaleBiO (Pan et al., arXiv 2406.19976): min over lambda, w and max over u of L1(w) + alpha
(L2(lambda, w) - L2(lambda, u)), with p = softmax(log prior + lambda). u is the model that is kept;
the prior is whatever the agent asks for. Deliberate departures from the released code: one draw of
blocks for both models, one factor of clipping, no weight decay on lambda, and a step of lambda that
is a share of the run's travel in logits instead of Adam's learning rate.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.blocks import BlockDraws, without_gradients
from mixgym.envs.bilevel.copies import Copy, Difference, LowRank, Values
from mixgym.envs.bilevel.estimation import Measured, StepData
from mixgym.envs.bilevel.two_model_estimators import make_estimator
from mixgym.envs.bilevel.weights import (
    BETAS,
    Logits,
    check_gradient,
    effective_sources,
    handed_out,
    softmax_around,
)
from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import StepResult, Trainable
from mixgym.envs.learners.kinds import CAUSAL_LM
from mixgym.envs.learners.pairing import Pairable
from mixgym.envs.random_streams import stream
from mixgym.envs.spaces.mixture import Mixture

_STATE_FILE = "bilevel.pt"


class BilevelStep:
    """A :class:`~mixgym.envs.learners.base.StepRule` that learns source weights.

    Args:
        options: see :class:`BilevelOptions`.
        names: of the K sources.
        natural: float64[K], shares of the sources in the data; 0 for those not trained on.
        seed: of the draws of blocks and of low-rank factors.

    Raises:
        ConfigError: if fewer than two sources are trained on.
    """

    name = "bilevel"

    def __init__(
        self, options: BilevelOptions, names: tuple[str, ...], natural: FloatArray, seed: int
    ) -> None:
        trained = int((natural > 0).sum())
        if trained < 2:
            raise ConfigError(
                f"environment.step_rule=bilevel: {trained} source is trained on "
                f"({', '.join(names)}), and weights need two: add a source, or use plain"
            )
        self.options = options.on(CAUSAL_LM)
        self.names = names
        self._natural = natural / natural.sum()
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Start a run: weights at the prior, no second model."""
        options = self.options
        self._logits = self._make_logits()
        self._estimator = make_estimator(options, self._make_copy)
        self._draws = BlockDraws(
            options.blocks,
            options.block_period,
            options.block_choice,
            options.outside_blocks,
            self._seed,
        )
        self._blocks: list[list[str]] | None = None
        self._base = (self._natural > 0) / float((self._natural > 0).sum())
        self._step = 0
        self._moved_at = 0.0  # share of the travel handed out by the last update of the weights
        self._absent = np.zeros(len(self.names))
        self._gap: FloatArray | None = None
        self._updates = self._negative = 0

    def _make_logits(self) -> Logits:
        options = self.options
        start = np.zeros(len(self.names))
        # the square remembers some 200 steps, but no fewer than 20 updates
        betas = (BETAS[0], max(BETAS[1], 1.0 - options.period / 200))
        return Logits(start, options.update, options.clip, options.decay or 0.0, betas)

    @property
    def weights(self) -> FloatArray:
        """float64[K], the sources' weights p."""
        return self._logits.weights(self._base)

    @property
    def logits(self) -> FloatArray:
        """float64[K], lambda: what was learnt, 0 at the start."""
        return self._logits.value

    @property
    def gap(self) -> FloatArray | None:
        """float64[K], alpha (l(w) - l(u)) when a source was last seen; None before any update."""
        return self._gap

    def gains(self) -> FloatArray:
        """float64[K], what sources are worth to validation: minus :attr:`gap`; NaN if unknown."""
        return np.full(len(self.names), np.nan) if self._gap is None else -self._gap

    @property
    def alpha(self) -> float:
        """The penalty of the next step."""
        return float(self.options.alpha * (1.0 + self._step) ** self.options.alpha_growth)

    def tilt(self, mixture: Mixture) -> Mixture:
        """What to sample where ``mixture`` is asked for, which becomes the prior of the weights."""
        self._base = mixture.sources
        if self.options.act == "sampling":
            if not self._logits.value.any():
                return mixture
            return Mixture(softmax_around(mixture.sources, self._logits.value), mixture.strata)
        natural = np.where(mixture.sources > 0, self._natural, 0.0)
        return Mixture(natural / natural.sum(), mixture.strata)

    def step(self, model: Trainable, packs: tuple[Pack, ...]) -> StepResult:
        """See :class:`~mixgym.envs.learners.base.StepRule`.

        Raises:
            DivergenceError: at a non-finite loss, gradient or value gap; u stays as it was.
        """
        pair = cast(Pairable, model)  # what plain steps do not need, a bilevel learner has
        own = pair.parameters()
        frozen = self._draw(pair)
        weights = self.weights if self.options.act == "loss" else None
        task = StepData(pair, packs, weights, self.alpha, self._step)
        try:
            with without_gradients(own, frozen):
                measured = self._estimator.step(task)
        except DivergenceError:
            for parameter in own.values():
                parameter.grad = None
            raise
        self._book(measured, pair.progress)
        return measured.result

    def align(self, signal: Callable[[], FloatArray], progress: float) -> None:
        """One update where a learner knows the alignment of its sources in closed form.

        Args:
            signal: gives float64[K], what a token of each source is worth to validation.
            progress: share of the budget used before the interval.

        Raises:
            ConfigError: for another estimator than ``alignment``.
        """
        if self.options.estimator != "alignment":
            raise ConfigError(
                f"bilevel.estimator={self.options.estimator}: learner curves has no second model; "
                "use alignment"
            )
        self._update(-signal(), self._base > 0, progress)
        self._step += 1

    def _draw(self, model: Pairable) -> set[str]:
        """Names of the parameters that are frozen in this step."""
        if self._draws.count is None:
            return set()
        blocks = self._layout(model)
        self._draws.draw(self._step, blocks)
        frozen = self._draws.frozen(list(model.parameters()), blocks)
        if not self.options.keep_states and self._step % self.options.block_period == 0:
            own = model.parameters()
            for name in frozen:
                model.optimizer.state.pop(own[name], None)
            self._estimator.forget(frozen)
        return frozen

    def _layout(self, model: Pairable) -> list[list[str]]:
        if self._blocks is None:
            self._blocks = model.blocks()
        return self._blocks

    def _book(self, measured: Measured, progress: float) -> None:
        self._absent += ~measured.present
        self._step += 1
        if measured.gap is not None:
            seen = measured.present if measured.seen is None else measured.seen
            self._update(measured.gap, seen, progress)

    def _update(self, gap: FloatArray, present: BoolArray, progress: float) -> None:
        """Move lambda by the share of its travel that was handed out since the last update."""
        weights = self.weights
        gradient = self._logits.gradient(weights, gap, present)
        if self.options.check:
            check_gradient(self._logits.value, self._base, gap, present, gradient)
        by_now = float(handed_out(self.options.update, np.float64(progress)))
        size = self.options.travel * max(by_now - self._moved_at, 0.0)
        self._logits.move(gradient, weights, size)
        self._moved_at = by_now
        self._gap = gap if self._gap is None else np.where(present, gap, self._gap)
        self._updates += 1
        self._negative += bool(weights @ np.where(present, gap, 0.0) < 0)

    def _make_copy(self, model: Pairable) -> Copy:
        """A copy of the model in the storage that was asked for.

        Raises:
            ConfigError: if there are fewer blocks than the copy is to have.
        """
        names = list(model.parameters())
        if self.options.storage == "full":
            return Values(model, names)
        if self.options.storage == "difference":
            return Difference(model, names)
        if self.options.storage == "low_rank":
            generator = stream(self._seed, "low rank", str(self._step))
            return LowRank(model, names, self.options.rank, generator)
        blocks = self._layout(model)
        if self.options.top > len(blocks):
            raise ConfigError(
                f"bilevel.top={self.options.top}: the model has {len(blocks)} blocks; ask for "
                "fewer, or for storage full"
            )
        return Values(model, [name for block in blocks[-self.options.top :] for name in block])

    def health(self) -> dict[str, float]:
        """What there is to watch, as numbers by name.

        ``weight/<source>`` and ``logit/<source>``; ``gap/<source>``, alpha (l(w) - l(u)) in nats,
        and ``gap``, L2(w) - L2(u), at the last update; ``gap_negative``, the share of updates at
        which it was below 0 (u is then behind w, and theory wants it above); ``travel``, the share
        of the logits' budget that is used; ``effective_sources``, exp(entropy) of the weights;
        ``absent/<source>``, the share of steps without a token of the source; ``alpha``.
        """
        weights = self.weights
        values = {
            "travel": float(self._logits.travelled) / self.options.travel,
            "effective_sources": effective_sources(weights),
            "alpha": self.alpha,
            "gap_negative": self._negative / max(self._updates, 1),
        }
        tables = {
            "weight": weights,
            "logit": self._logits.value,
            "absent": self._absent / max(self._step, 1),
        }
        if self._gap is not None:
            values["gap"] = float(weights @ self._gap) / self.alpha
            tables["gap"] = self._gap
        for label, table in tables.items():
            for name, value, used in zip(self.names, table, self._natural > 0, strict=True):
                if used:
                    values[f"{label}/{name}"] = float(value)
        return values

    def snapshot(self) -> dict[str, Any]:
        """See :class:`~mixgym.envs.learners.base.StepRule`; tensors, numbers and lists."""
        return {
            "logits": self._logits.snapshot(),
            "copies": copy.deepcopy(self._estimator.snapshot()),
            "draws": self._draws.snapshot(),
            "base": self._base.tolist(),
            "step": self._step,
            "moved_at": self._moved_at,
            "absent": self._absent.tolist(),
            "gap": None if self._gap is None else self._gap.tolist(),
            "updates": [self._updates, self._negative],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~mixgym.envs.learners.base.StepRule`."""
        self.reset()
        self._logits.restore(state["logits"])
        self._estimator.restore(copy.deepcopy(state["copies"]))
        self._draws.restore(state["draws"])
        self._base = np.array(state["base"], np.float64)
        self._step = int(state["step"])
        self._moved_at = float(state["moved_at"])
        self._absent = np.array(state["absent"], np.float64)
        self._gap = None if state["gap"] is None else np.array(state["gap"], np.float64)
        self._updates, self._negative = state["updates"]

    def fork(self) -> "BilevelStep":
        """See :class:`~mixgym.envs.learners.base.StepRule`."""
        other = BilevelStep(self.options, self.names, self._natural, self._seed)
        other.restore(self.snapshot())
        return other

    def save(self, folder: Path) -> None:
        """Write the state, the second model included, into ``folder``."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.snapshot(), folder / _STATE_FILE)

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`."""
        import torch

        # to CPU, whatever device wrote it; copies move it to where the model is
        state = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
        self.restore(state)
