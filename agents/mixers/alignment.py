"""Mixers that weigh sources by the alignment of gradients: DoGE, and LESS at source level.

Each keeps its weights between two measurements.
"""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, flag, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer, measured
from mixgym.agents.mixers.needs import (
    DOGE_PROBES,
    LESS_PROBE,
    PERIOD,
)
from mixgym.agents.mixers.simplex import TINY, even, mean_of, shares, smoothed, softmax, stepped
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class DoGE(Mixer):
    """Weights grow with how far a source's gradient points where it is wanted.

    DoGE (Fan et al. 2024, Algorithm 1): p proportional to p exp(eta W / mu), W_k = <g_k, g_wanted>.
    In mode ``target`` that is the target-weighted gradient on held-out rows (their out-of-domain
    case), in mode ``universal`` the sum over the other sources. The released code divides W by the
    mean norm of g and clips it to [0, 5] times the learning rate; here W is divided by its mean
    size over the sources, which needs no second probe, then clipped to [0, 5], and ``rate`` stands
    for eta / mu. ``smoothing`` mixes in uniform as there; ``average: true`` plays the mean of the
    weights so far, which the paper hands to the large model.

    Known complaint: the clip at 0 makes harmful sources look like neutral ones; ``signed: true``
    clips at -5 instead.

    ``rate`` and ``smoothing`` were tuned on the validation tasks of the fast world, for a period of
    4 decisions; in mode ``universal`` no rate was better than uniform there by much.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        mode: ``target`` (probe ``gradient_alignment``) or ``universal`` (``gradient_influence``).
        rate: of the exponentiated gradient, per measurement.
        smoothing: share of uniform in every update.
        signed: whether W may lower a weight by itself.
        average: play the mean of all weights so far.
        period: decisions between two measurements.

    Raises:
        ConfigError: for options outside their range, or if the probe is not measured.
    """

    most: ClassVar[float] = 5.0

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        mode: str = "target",
        rate: float = 0.8,
        smoothing: float = 0.1,
        signed: bool = False,
        average: bool = False,
        period: int = PERIOD,
    ) -> None:
        super().__init__(
            env,
            names,
            mode=mode,
            rate=rate,
            smoothing=smoothing,
            signed=signed,
            average=average,
            period=period,
        )
        self.probe = DOGE_PROBES[choice("mode", mode, tuple(DOGE_PROBES))]
        self.target_aware = mode == "target"
        self.rate = positive("rate", rate)
        self.smoothing = share("smoothing", smoothing)
        self.signed, self.average = flag("signed", signed), flag("average", average)
        self.period = whole("period", period)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Weights (all 0: none yet), and their sum so far."""
        return (sources,), (sources,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        values = measured(signals, self.probe, "doge")
        now, total = memory[0][: len(mask)], memory[1][: len(mask)]
        if not now.any():
            now[:] = even(mask)
        if signals.fresh[self.probe]:
            gains = self.rate * self._scores(values, mask)
            now[:] = smoothed(stepped(now, gains, mask), mask, self.smoothing)
        total += now
        return (total if self.average else now).copy(), None

    def _scores(self, values: FloatArray, mask: BoolArray) -> FloatArray:
        known = mask & np.isfinite(values)
        found = np.where(known, values, 0.0)
        scale = max(mean_of(np.abs(found), known), TINY)
        return np.clip(found / scale, -self.most if self.signed else 0.0, self.most)


class Less(Mixer):
    """Weights by how useful a source's optimiser steps are for the targets.

    LESS (Xia et al. 2024, definition 3.1) picks the rows whose Adam-scaled, randomly projected
    gradients agree best with those of the target task, summed over checkpoints of a warm-up run.
    Here whole sources are weighed: the probe ``projected_alignment``, summed over all measurements
    so far with ``discount``, over its largest size, in a softmax.

    Known complaints: projections of few rows are noisy; similarity favours short completions in
    the original, which per-token means avoid. Temperature and discount were tuned on the validation
    tasks of the fast world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        temperature: of the softmax over scores, the largest of which is 1 in size.
        discount: what a measurement leaves of those before it; 1 is the sum of the paper.
        period: decisions between two measurements.

    Raises:
        ConfigError: for options outside their range, or if the probe is not measured.
    """

    target_aware = True

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        temperature: float = 0.2,
        discount: float = 0.5,
        period: int = PERIOD,
    ) -> None:
        super().__init__(env, names, temperature=temperature, discount=discount, period=period)
        self.temperature = positive("temperature", temperature)
        self.discount = share("discount", discount)
        self.period = whole("period", period)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Scores, and how often they were measured."""
        return (sources,), (1,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        scores, clock = memory[0][: len(mask)], memory[1]
        values = measured(signals, LESS_PROBE, "less")
        if signals.fresh[LESS_PROBE]:
            known = mask & np.isfinite(values)
            found = np.where(known, values, mean_of(np.nan_to_num(values), known))
            scores[:] = self.discount * scores + found
            clock[0] += 1.0
        if not clock[0]:
            return shares(signals.sources["prior"], mask), None
        largest = np.abs(np.where(mask, scores, 0.0)).max()
        return softmax(scores / max(largest, TINY) / self.temperature, mask), None
