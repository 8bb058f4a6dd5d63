"""One level of HBO: an actor with its parameters, and how rewards move it. Pure and batched.

The global level has one actor per environment, lead axes (n,). The local level has one per
environment and source, (n, K), or one for all sources of an environment, whose parameters then
have the axes (n, 1).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixgym.agents.hbo.actors import LogitActor, Perceptron, Table, fitted, shared_mean
from mixgym.agents.hbo.optimizers import Moments, direction
from mixgym.agents.hbo.settings import LevelOptions
from mixgym.agents.hbo.shaping import averaged, differs, known_or_mean, normalised, sharpened
from mixgym.agents.hbo.updates import UPDATES, softmax
from mixgym.envs.arrays import BoolArray, FloatArray

_HALVINGS = 20  # of a step that leaves its trust region, before it is given up


@dataclass(frozen=True)
class LevelView:
    """What a level sees at a decision.

    Attributes:
        features: float64[*lead, U, F], or whatever else the level's actor reads.
        mask: bool[*lead, U], units that exist.
        prior: float64[*lead, U], the temperature prior; rows without units are 0.
    """

    features: FloatArray
    mask: BoolArray
    prior: FloatArray


@dataclass(frozen=True)
class LevelState:
    """What a level remembers, arrays with the lead axes first.

    Attributes:
        parameters: float64[*, P].
        moments: of the optimiser, for parameters.
        average: float64[*lead, U], moving average of shaped rewards; 1 at the start.
        last: float64[*lead, U], shaped rewards of the last measurement; NaN before it.
    """

    parameters: FloatArray
    moments: Moments
    average: FloatArray
    last: FloatArray

    def arrays(self) -> tuple[FloatArray, ...]:
        """All of it, in order."""
        m = self.moments
        return (self.parameters, m.first, m.second, m.steps, self.average, self.last)

    @classmethod
    def of(cls, arrays: tuple[FloatArray, ...]) -> "LevelState":
        """From :meth:`arrays`."""
        return cls(arrays[0], Moments(*arrays[1:4]), *arrays[4:])

    def where(self, rows: BoolArray, other: "LevelState") -> "LevelState":
        """``other`` in the environments ``rows``, this elsewhere."""
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        return LevelState.of(tuple(chosen(rows, new, old) for old, new in pairs))


def chosen(rows: BoolArray, new: FloatArray, old: FloatArray) -> FloatArray:
    """``new`` in the environments ``rows`` bool[n], ``old`` elsewhere."""
    return np.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def make_actor(options: LevelOptions, level: Literal["global", "local"]) -> LogitActor:
    """The actor of a level."""
    if options.actor == "table":
        return Table()
    if options.actor == "mlp":
        return Perceptron(options.hidden)
    from mixgym.agents.hbo.equivariant import Equivariant  # torch

    return Equivariant(level, options.hidden)


@dataclass(frozen=True)
class Level:
    """The functions of a level.

    Attributes:
        options: how it learns.
        actor: whose parameters are learned.
        shared: whether one vector of parameters serves all rows of the second lead axis.
    """

    options: LevelOptions
    actor: LogitActor
    shared: bool = False

    def start(self, view: LevelView, random: np.random.Generator) -> LevelState:
        """Before training: all environments from the same parameters, warm-started each."""
        units = view.mask.shape[-1]
        own = self.actor.start(units, view.features.shape[-1], random)
        lead = view.mask.shape[:-1]
        lead = (lead[0], 1) if self.shared else lead
        parameters = np.broadcast_to(own, (*lead, own.size)).copy()
        moments = Moments.start(parameters)
        if self.options.warm_start == "mse_fit":
            parameters, moments = fitted(
                self.actor,
                parameters,
                view.features,
                view.prior,
                view.mask,
                self.options.learning_rate,
            )
        ones = np.ones(view.mask.shape)
        return LevelState(parameters, moments, ones, np.full_like(ones, np.nan))

    def distribution(self, parameters: FloatArray, view: LevelView) -> FloatArray:
        """float64[*lead, U], the actor's own distribution."""
        logits = self.actor.logits(parameters, view.features)
        if self.options.warm_start == "log_prior":
            logits = logits + np.log(np.where(view.prior > 0, view.prior, 1.0))
        return softmax(logits, view.mask)

    def weights(self, state: LevelState, view: LevelView) -> FloatArray:
        """float64[*lead, U], the distribution with its floor."""
        floor = self.options.floor
        return (1.0 - floor) * self.distribution(state.parameters, view) + floor * view.prior

    def update(
        self,
        state: LevelState,
        view: LevelView,
        rewards: FloatArray,
        random: np.random.Generator,
    ) -> tuple[LevelState, FloatArray]:
        """Move the actor by rewards [*lead, U], NaN where unknown.

        Returns:
            The new state, and the shaped rewards that moved it, NaN elsewhere.
        """
        options = self.options
        shaped = sharpened(known_or_mean(rewards, view.mask), options.power)
        if options.times_prior:
            shaped = shaped * view.prior
        shaped = normalised(shaped, view.mask, options.normalize)
        told = np.asarray((np.isfinite(rewards) & view.mask).any(-1))
        clear = differs(shaped, state.last, view.mask, options.significance)
        average = np.where(
            told[..., None], averaged(shaped, state.average, options.ema), state.average
        )
        average = np.where(view.mask, average, 0.0)
        parameters, moments = self._ascend(state, view, average, told & clear, random)
        last = np.where(told[..., None], shaped, state.last)
        moved = np.where((told & clear)[..., None] & view.mask, average, np.nan)
        return LevelState(parameters, moments, np.where(view.mask, average, 1.0), last), moved

    def _ascend(
        self,
        state: LevelState,
        view: LevelView,
        rewards: FloatArray,
        which: BoolArray,
        random: np.random.Generator,
    ) -> tuple[FloatArray, Moments]:
        """The inner steps, in the rows ``which`` [*lead]."""
        options, rule = self.options, UPDATES[self.options.update]
        parameters, moments = state.parameters, state.moments
        if not options.keep_state:
            moments = Moments.start(parameters)
        draws = np.zeros(view.mask.shape[:-1])
        share = which.astype(np.float64)
        if self.shared:  # the mean over the sources that have rewards
            share *= which.shape[-1] / np.maximum(which.sum(-1, keepdims=True), 1)
        for _ in range(options.inner_steps):
            weights = self.distribution(parameters, view)
            if rule.samples:
                draws = random.random(view.mask.shape[:-1])
            slope = rule.gradient(weights, rewards, draws) * share[..., None]
            pulled = self.actor.pull(parameters, view.features, slope)
            step, moments = direction(
                options.optimizer, shared_mean(pulled, parameters.shape), moments
            )
            parameters = parameters + options.learning_rate * step
        asked = self._own_rows(which)[..., None]
        kept = state.moments
        moments = Moments(
            np.where(asked, moments.first, kept.first),
            np.where(asked, moments.second, kept.second),
            np.where(asked, moments.steps, kept.steps),
        )
        parameters = np.where(asked, parameters, state.parameters)
        return self._within(state.parameters, parameters, view), moments

    def _own_rows(self, which: BoolArray) -> BoolArray:
        """Bool with the lead axes of the parameters: whether any of their rows is asked for."""
        return np.asarray(which.any(-1, keepdims=True)) if self.shared else which

    def _within(self, before: FloatArray, after: FloatArray, view: LevelView) -> FloatArray:
        """``after``, or as far towards it as the trust region allows (by halving)."""
        radius = self.options.trust_region
        if radius is None:
            return after
        old = self.distribution(before, view)
        for _ in range(_HALVINGS):
            outside = divergence(self.distribution(after, view), old) > radius
            outside = self._own_rows(outside)
            if not outside.any():
                return after
            after = np.where(outside[..., None], (before + after) / 2.0, after)
        return np.where(outside[..., None], before, after)


def divergence(left: FloatArray, right: FloatArray) -> FloatArray:
    """float64[...], KL(left || right) in nats; units that both give 0 do not count."""
    both = (left > 0) & (right > 0)
    ratio = np.where(both, left, 1.0) / np.where(both, right, 1.0)
    return (np.where(both, left, 0.0) * np.log(ratio)).sum(-1)
