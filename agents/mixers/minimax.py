"""Weights from losses: loss-proportional, the excess over a reference, and DoReMi's minimax."""

from typing import TYPE_CHECKING

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, flag, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer, by_source, excess_over_reference, measured
from mixgym.agents.mixers.needs import DOREMI_CLIPS, DOREMI_PROBE, PERIOD
from mixgym.agents.mixers.simplex import TINY, even, smoothed, softmax, stepped
from mixgym.agents.mixers.trust import believed, charged, moving_error, steadied, value
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class LossProportional(Mixer):
    """p_k proportional to loss_k ** power: train most on what is worst.

    Loss-based sampling as in curricula by importance (Katharopoulos and Fleuret 2018 bound the
    gradient norm by the loss; here by source). ``targets: true`` leaves out what does not count.

    Known complaint: noise has the highest loss and keeps it, so noise is trained on most.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        loss: ``train`` (of the last interval, nothing extra to measure) or ``held_out``; a source
            that was not trained on yet counts with its held-out loss.
        power: 1 is proportional; larger is sharper.
        targets: multiply the loss by the target.
        noise_aware: per token read, worth less with every pass, and a held-out loss is drawn to
            the mean as far as it errs (see :mod:`.trust`); false: the losses as measured.

    Raises:
        ConfigError: for options outside their range.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        loss: str = "train",
        power: float = 1.0,
        targets: bool = False,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env, names, loss=loss, power=power, targets=targets, noise_aware=noise_aware
        )
        self.loss = choice("loss", loss, ("train", "held_out"))
        self.power = positive("power", power)
        self.targets = self.target_aware = flag("targets", targets)
        self.noise_aware = flag("noise_aware", noise_aware)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        rows, mask = signals.sources, signals.trainable
        seen = rows["nll_train"] if self.loss == "train" else rows["nll"]
        loss = np.where(seen > 0, seen, rows["nll"])
        logs = self.power * self._logs(signals, loss)
        if self.targets:
            mask = _counted(signals)
            logs = logs + np.log(np.maximum(rows["target"], TINY))
        known = mask & (loss > 0)
        if self.noise_aware:
            logs = logs + np.log(value(signals))
        return softmax(logs, known if known.any() else mask), None

    def _logs(self, signals: Signals, loss: FloatArray) -> FloatArray:
        """float64[K], log losses; their whole error counts, since sources have different rows."""
        logs = np.log(np.maximum(loss, TINY))
        if not self.noise_aware or self.loss == "train":
            return logs
        error = signals.sources["error"] / np.maximum(loss, TINY)
        return steadied(logs, error, signals.trainable & (loss > 0))


class RhoLoss(Mixer):
    """Weights by the reducible loss: what the learner still lacks on the reference model.

    RHO-LOSS (Mindermann et al. 2022, eq. 3) keeps those rows of a large batch whose loss exceeds
    most that of a model trained on clean held-out rows. Here whole sources are weighed:
    p = softmax((nll - reference) / temperature), the excess being unclipped and in nats, and with
    ``strata`` the strata inside each source likewise, on top of their natural shares. Both losses
    are of the same held-out rows, so that their difference is paired.

    With ``noise_aware`` an excess counts as far as it exceeds the error of that difference, and a
    weight per token read (see :mod:`.trust`).

    Noise is left alone, since the reference cannot learn it either. Known complaints: as good as
    its reference, which costs a fine-tuning run of its own; sources that the reference never saw
    look learnt.

    The temperature was tuned on the validation tasks of the fast world.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        temperature: in nats.
        strata: weigh strata too.
        targets: leave out sources whose target is 0.
        noise_aware: count errors, costs and passes; false: the excess as measured.

    Raises:
        ConfigError: for options outside their range, or without a reference model.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        temperature: float = 2.0,
        strata: bool = False,
        targets: bool = True,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env,
            names,
            temperature=temperature,
            strata=strata,
            targets=targets,
            noise_aware=noise_aware,
        )
        self.temperature = positive("temperature", temperature)
        self.strata = flag("strata", strata)
        self.targets = self.target_aware = flag("targets", targets)
        self.noise_aware = flag("noise_aware", noise_aware)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray | None]:
        """See :class:`Rule`."""
        scores = self._excess(signals.sources) / self.temperature
        mask = _counted(signals) if self.targets else signals.trainable
        top = softmax(scores + np.log(value(signals)) if self.noise_aware else scores, mask)
        if not self.strata:
            return top, None
        size = signals.cells["size"]
        lacking = self._excess(signals.cells) / self.temperature
        return top, size * softmax(lacking, size > 0)

    def _excess(self, table: dict[str, FloatArray]) -> FloatArray:
        """What the learner lacks, nats, as far as it counts; of sources or of cells."""
        excess = excess_over_reference(table, "rho_loss")
        return believed(excess, moving_error(table)) if self.noise_aware else excess


class DoReMi(Mixer):
    """Minimax over sources: exponentiated gradient on the excess over a reference model.

    DoReMi (Xie et al. 2023, Algorithm 1): excess_k = max(loss_k - reference_k, 0), p proportional
    to p exp(rate * excess), then p <- (1 - c) p + c / K with c = ``smoothing``. The paper updates
    at every step of a small proxy model, whose weights, averaged over the run, are then given to
    the large one. Here the learner itself is the proxy, and an update is a decision; ``average:
    true`` plays the mean of the weights so far. The paper clips token by token, on training rows:
    ``clip: tokens`` does so through the probe ``excess_loss``; ``clip: source`` clips the
    difference of a source's held-out NLLs, which costs nothing more.

    With ``noise_aware`` the excess counts as far as it exceeds its error (``clip: source``), and
    per token read (see :mod:`.trust`).

    Known complaints: weights that end near one-hot, no convergence over rounds, and a released loss
    that differs from the paper's. The worst source is looked after, targets are not: a noise source
    is spared only because the reference cannot learn it either.

    ``rate`` and ``average`` were tuned on the validation tasks of the fast world, where a rate of 1
    made weights one-hot, and worse than uniform.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        rate: of the exponentiated gradient, per nat of excess and decision.
        smoothing: c, share of uniform in every update.
        clip: where negative excess counts as none: ``source`` or ``tokens``.
        average: play the mean of all weights so far.
        targets: leave out sources whose target is 0.
        period: decisions between two measurements of ``excess_loss``.
        noise_aware: count errors, costs and passes; false: the excess as measured.

    Raises:
        ConfigError: for options outside their range, or without a reference model.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        rate: float = 0.1,
        smoothing: float = 1e-3,
        clip: str = "source",
        average: bool = True,
        targets: bool = False,
        period: int = PERIOD,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env,
            names,
            rate=rate,
            smoothing=smoothing,
            clip=clip,
            average=average,
            targets=targets,
            period=period,
            noise_aware=noise_aware,
        )
        self.clip = choice("clip", clip, DOREMI_CLIPS)
        self.rate = positive("rate", rate)
        self.smoothing = share("smoothing", smoothing)
        self.average = flag("average", average)
        self.targets = self.target_aware = flag("targets", targets)
        self.period = whole("period", period)
        self.noise_aware = flag("noise_aware", noise_aware)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Weights (all 0: none yet), and their sum so far."""
        return (sources,), (sources,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = _counted(signals) if self.targets else signals.trainable
        now, total = memory[0][: len(mask)], memory[1][: len(mask)]
        excess = self._excess(signals)
        if not now.any():
            now[:] = even(mask)  # nothing has been trained: uniform, as in the paper
        elif excess is not None:
            now[:] = smoothed(stepped(now, self.rate * excess, mask), mask, self.smoothing)
        total += now
        return (total if self.average else now).copy(), None

    def _excess(self, signals: Signals) -> FloatArray | None:
        """float64[K], in nats and not negative; None if there is no new measurement."""
        if self.clip == "tokens":
            values = measured(signals, DOREMI_PROBE, "doremi")
            excess = by_source(signals, values, 0.0)
            return self._charged(signals, excess) if signals.fresh[DOREMI_PROBE] else None
        excess = np.maximum(excess_over_reference(signals.sources, "doremi"), 0.0)
        if self.noise_aware:
            excess = believed(excess, moving_error(signals.sources))
        return self._charged(signals, excess)

    def _charged(self, signals: Signals, excess: FloatArray) -> FloatArray:
        return charged(signals, excess) if self.noise_aware else excess


def _counted(signals: Signals) -> BoolArray:
    """bool[K], trainable sources with a target; all trainable ones if none has any."""
    counted = signals.trainable & (signals.sources["target"] > 0)
    return counted if counted.any() else signals.trainable
