"""The actor that MultiDDS and MoS share: logits that follow rewards by Adam on -sum R log p."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, flag, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer, by_source, measured
from mixgym.agents.mixers.needs import MOS_PROBES, MULTIDDS_PROBE, PERIOD
from mixgym.agents.mixers.simplex import mean_of, shares, softmax
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

BETAS, EPSILON = (0.9, 0.999), 1e-8


def ascend(
    logits: FloatArray,
    moments: tuple[FloatArray, FloatArray],
    clock: FloatArray,
    rewards: FloatArray,
    mask: BoolArray,
    *,
    rate: float,
    steps: int,
    scaled: bool = False,
) -> None:
    """``steps`` Adam steps up the gradient of sum_k R_k log softmax(z)_k; arrays change in place.

    The gradient is R - (sum R) p: at the optimum p = R / sum R where no R is negative. With
    ``scaled`` each R_k is multiplied by p_k, which makes it the gradient of the expected reward.

    Args:
        logits: float64[K].
        moments: Adam's two moments, float64[K] each; they last from call to call.
        clock: float64[1], Adam steps so far.
        rewards: float64[K].
        mask: bool[K]; entries outside do not move.
        rate: Adam's step size.
        steps: how many steps the rewards are held fixed for.
        scaled: see above.
    """
    first, second = moments
    for _ in range(steps):
        clock[0] += 1.0
        weights = softmax(logits, mask)
        pulls = rewards * weights if scaled else rewards
        gradient = np.where(mask, pulls - np.where(mask, pulls, 0.0).sum() * weights, 0.0)
        first[:] = BETAS[0] * first + (1.0 - BETAS[0]) * gradient
        second[:] = BETAS[1] * second + (1.0 - BETAS[1]) * gradient**2
        size = np.sqrt(second / (1.0 - BETAS[1] ** clock[0])) + EPSILON
        logits += rate * first / (1.0 - BETAS[0] ** clock[0]) / size


class Tracker(Mixer):
    """Logits that follow the rewards of sources, as MultiDDS and MoS train them.

    At each measurement the rewards, averaged with the last ones where ``new`` is below 1, are held
    fixed for ``steps`` Adam steps of size ``rate`` up sum_k R_k log p_k; the optimum is p = R / sum
    R, and Adam's moments last. The published 200 steps of 1e-4 move a logit by 0.02 at most, for
    runs of hundreds of measurements; a run of thirty needs larger steps. Logits start at log prior
    ** (1 / tau) exactly, where the released codes fit them by regression.
    """

    agent: ClassVar[str] = ""

    def __init__(
        self, env: "VecEnv | None", names: tuple[str, ...], probe: str, **options: Any
    ) -> None:
        super().__init__(env, names, **options)
        self.probe = probe
        self.rate = positive("rate", options["rate"])
        self.steps = whole("steps", options["steps"])
        self.tau = positive("tau", options["tau"])
        self.scaled = flag("scaled", options["scaled"])
        self.new = share("new", options.get("new", 1.0), zero=False)
        self.period = whole("period", options["period"])

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Logits; Adam's moments; rewards; whether logits are set, Adam steps, measurements."""
        row = (sources,)
        return row, row, row, row, (3,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        logits, first, second, rewards = (array[: len(mask)] for array in memory[:4])
        clock = memory[4]
        if not clock[0]:
            clock[0] = 1.0
            prior = shares(signals.sources["prior"], mask)
            logits[:] = np.where(mask, np.log(np.maximum(prior, 1e-6)) / self.tau, 0.0)
        values = self._rewards(signals, measured(signals, self.probe, self.agent))
        if signals.fresh[self.probe]:
            known = mask & np.isfinite(values)
            last = rewards if clock[2] else np.ones_like(rewards)
            rewards[:] = np.where(known, self.new * values + (1.0 - self.new) * last, last)
            clock[2] += 1.0
            ascend(
                logits,
                (first, second),
                clock[1:2],
                np.where(known, rewards, mean_of(rewards, known)),
                mask,
                rate=self.rate,
                steps=self.steps,
                scaled=self.scaled,
            )
        return softmax(logits, mask), None

    def _rewards(self, signals: Signals, values: FloatArray) -> FloatArray:
        """float64[K] from the probe's values."""
        return values


class MultiDDS(Tracker):
    """Rewards: how a source's gradient agrees with those of the held-out targets.

    MultiDDS-S, with the stabilised reward (Wang, Tsvetkov and Neubig 2020): R_k = mean over the
    held-out sets m of cos(g_m, g_k), here the probe ``gradient_cosine``; for the actor see
    :class:`Tracker`. With negative rewards sum R log p has no optimum: steps stay bounded, weights
    drift to the rest.

    Known complaints: K backward passes per measurement; small cosines leave the weights near the
    prior. The steps were tuned on the validation tasks of the fast world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        rate: Adam's step size.
        steps: Adam steps per measurement.
        tau: temperature of the prior at the start (1: the prior itself).
        scaled: multiply R_k by p_k, the true gradient of the expected reward.
        period: decisions between two measurements.

    Raises:
        ConfigError: for options outside their range, or if the probe is not measured.
    """

    agent: ClassVar[str] = "multidds"
    target_aware = True

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        rate: float = 0.03,
        steps: int = 20,
        tau: float = 1.0,
        scaled: bool = False,
        period: int = PERIOD,
    ) -> None:
        super().__init__(
            env,
            names,
            MULTIDDS_PROBE,
            rate=rate,
            steps=steps,
            tau=tau,
            scaled=scaled,
            period=period,
        )


class MoS(Tracker):
    """Rewards: likeness to the other sources, or how little was learnt since the start.

    MoS, "Mixture of Skills" (Wu et al. 2024): CosSim(k) = mean over n of cos(z_k, z_n), z the mean
    hidden state of a source (probe ``cosine_similarity``), or Diff(k) = mean ratio of the present
    perplexity to that at the start (probe ``perplexity_ratio``, averaged over a source's rows).
    Rewards are averaged as R <- new R_now + (1 - new) R_last with new = 0.9, from R = 1; for the
    actor see :class:`Tracker`.

    Known complaints: neither reward knows a target; Diff stays at 1 for what cannot be learnt, so
    that noise is trained on most; CosSim prefers the crowd, duplicates included. No step
    size was better than uniform on the validation tasks of the fast world; the one here does little
    harm.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        reward: ``similarity`` or ``difficulty``.
        rate: Adam's step size.
        steps: Adam steps per measurement.
        tau: temperature of the prior at the start (1: the prior itself).
        new: what a new reward counts beside the last.
        scaled: multiply R_k by p_k, the true gradient of the expected reward.
        period: decisions between two measurements.

    Raises:
        ConfigError: for options outside their range, or if the probe is not measured.
    """

    agent: ClassVar[str] = "mos"

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        reward: str = "similarity",
        rate: float = 0.01,
        steps: int = 20,
        tau: float = 1.0,
        new: float = 0.9,
        scaled: bool = False,
        period: int = PERIOD,
    ) -> None:
        super().__init__(
            env,
            names,
            MOS_PROBES[choice("reward", reward, tuple(MOS_PROBES))],
            reward=reward,
            rate=rate,
            steps=steps,
            tau=tau,
            new=new,
            scaled=scaled,
            period=period,
        )

    def _rewards(self, signals: Signals, values: FloatArray) -> FloatArray:
        return values if values.ndim == 1 else by_source(signals, values)
