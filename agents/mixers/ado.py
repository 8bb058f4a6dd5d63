"""ADO: a scaling law per source, fitted while training goes on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, flag, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.power_law import PowerLaw, fit_power_law
from mixgym.agents.mixers.simplex import even, mean_of, shares
from mixgym.agents.mixers.trust import believed, effective_tokens, value
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

HISTORY = 64
"""Points that are kept per source; then every second one is dropped."""


class Ado(Mixer):
    """Weights by how fast each source's fitted scaling law falls.

    ADO, "Adaptive Data Optimization" (Jiang et al. 2025, Algorithm 1): fit L_k(n) = e_k + b_k
    n^-a_k; the slope a_k (L_k(n) - e_k) / n, times the prior, times h_k^``credit`` with h the
    moving average of realised shares, gives rho; p = ``inertia`` (mean of all rho so far, the prior
    included) + (1 - ``inertia``) rho, no rho below ``least``.

    Ours differs: an own robust fit (see :mod:`.power_law`) without the bounds of the released code,
    whose e_k >= 1.65 nats is wrong for tiny vocabularies; a refit at every decision; points are
    training losses at the middle of their interval; until ``points`` of them are there a source has
    the mean slope of the others. ``axis: total`` counts tokens of all sources, as the released
    code's default does.

    ``noise_aware``: a point counts in the fit by one over its variance, which is that of as many
    tokens as it was measured on (``train``), or of its held-out set; n counts a repeated token by
    its worth, as the law of Muennighoff et al. (2023) does; a slope is believed as far as the fall
    of its law exceeds the error of the fit, and else is the mean slope; and slopes are per token
    read (see :mod:`.trust`).

    Known complaints: no target, and a source that others teach is credited for it. Nothing extra is
    measured. ``inertia`` was tuned on the validation tasks of the fast world, whose runs have
    thirty decisions; published is 0.9.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        losses: ``train`` or ``held_out``.
        axis: n counts a source's ``own`` tokens, or the ``total``.
        credit: exponent of the realised shares.
        inertia: weight of the running mean.
        least: smallest weight of a source in rho (no more than uniform).
        points: losses that a fit needs.
        noise_aware: count errors, costs and passes; false: as published.

    Raises:
        ConfigError: for options outside their range.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        losses: str = "train",
        axis: str = "own",
        credit: float = 0.5,
        inertia: float = 0.1,
        least: float = 0.01,
        points: int = 4,
        noise_aware: bool = True,
    ) -> None:
        super().__init__(
            env,
            names,
            losses=losses,
            axis=axis,
            credit=credit,
            inertia=inertia,
            least=least,
            points=points,
            noise_aware=noise_aware,
        )
        self.losses = choice("losses", losses, ("train", "held_out"))
        self.axis = choice("axis", axis, ("own", "total"))
        self.credit = share("credit", credit)
        self.inertia = share("inertia", inertia)
        self.least = positive("least", least)
        self.points = whole("points", points, 3)
        self.noise_aware = flag("noise_aware", noise_aware)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Points (tokens, losses), how many; last tokens; h; sum of rho; decisions; precisions."""
        row, table = (sources,), (sources, HISTORY)
        return table, table, row, row, row, row, (1,), table

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        tokens, losses, count, last, realised, total = (a[: len(mask)] for a in memory[:6])
        clock = memory[6]
        points = Points((tokens, losses, memory[7][: len(mask)]), count)
        prior = shares(signals.sources["prior"], mask)
        if clock[0]:
            self._record(signals, points, last, realised)
            rho = self._rho(signals, points, last, realised)
        else:
            realised[:] = rho = prior
        total += rho
        clock[0] += 1.0
        return self.inertia * total / clock[0] + (1.0 - self.inertia) * rho, None

    def _record(
        self, signals: Signals, points: "Points", last: FloatArray, realised: FloatArray
    ) -> None:
        """Remember the last interval's losses of the sources that it trained on."""
        rows, mask = signals.sources, signals.trainable
        own = np.where(mask, rows["epochs"] * rows["size"], 0.0)
        new = np.maximum(own - last, 0.0)
        counted, before = self._axis(own, rows["size"]), self._axis(last, rows["size"])
        if self.losses == "train":
            seen, at, precision = rows["nll_train"], 0.5 * (counted + before), new
        else:
            error = np.where(rows["error"] > 0, rows["error"], rows["nll"])
            seen, at, precision = rows["nll"], counted, 1.0 / np.maximum(error, 1e-9) ** 2
        points.append((at, seen, precision), mask & (new > 0) & (seen > 0) & (at > 0))
        realised[:] = 0.9 * realised + 0.1 * shares(new, mask)
        last[:] = own

    def _axis(self, own: FloatArray, size: FloatArray) -> FloatArray:
        """float64[K], n of the law where so many tokens of each source were trained on."""
        counted = effective_tokens(own, size) if self.noise_aware else own
        return counted if self.axis == "own" else np.full_like(own, counted.sum())

    def _rho(
        self, signals: Signals, points: "Points", last: FloatArray, realised: FloatArray
    ) -> FloatArray:
        mask = signals.trainable
        prior = shares(signals.sources["prior"], mask)
        fitted = mask & (points.count >= self.points)
        if not fitted.any():
            return prior
        tokens, losses, precision, known = points.known()
        law = fit_power_law(tokens, losses, known, precision if self.noise_aware else None)
        now = self._axis(last, signals.sources["size"])
        slope = np.where(fitted, law.slope(np.maximum(now, 1.0)), 0.0)
        mean = mean_of(slope, fitted)
        if self.noise_aware:
            trust = _trust(law, tokens, losses, known)
            slope = (mean + trust * (slope - mean)) * value(signals)
            mean = mean_of(slope, fitted)
        slope = np.where(fitted, slope, mean)
        rho = shares(prior * slope * realised**self.credit, mask)
        least = min(self.least, float(even(mask).max()))
        return shares(np.maximum(rho, least), mask)


@dataclass(frozen=True)
class Points:
    """The points that laws are fitted to; the arrays are a rule's memory, written in place.

    Attributes:
        columns: tokens, losses and precisions, float64[K, HISTORY] each.
        count: float64[K], how many of them there are.
    """

    columns: tuple[FloatArray, FloatArray, FloatArray]
    count: FloatArray

    def append(self, values: tuple[FloatArray, ...], which: BoolArray) -> None:
        """Add a point to the sources ``which``; a full row first drops every second of its own."""
        for row in np.flatnonzero(which & (self.count >= HISTORY)):
            for column in self.columns:
                column[row, : HISTORY // 2] = column[row, ::2].copy()
            self.count[row] = HISTORY // 2
        rows = np.flatnonzero(which)
        places = self.count[rows].astype(np.intp)
        for column, own in zip(self.columns, values, strict=True):
            column[rows, places] = own[rows]
        self.count[rows] += 1.0

    def known(self) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray]:
        """The columns as far as any row is filled, and bool of the same shape."""
        known = np.arange(int(self.count.max())) < self.count[:, None]
        tokens, losses, precision = (column[:, : known.shape[1]] for column in self.columns)
        return tokens, losses, precision, known


def _trust(law: PowerLaw, tokens: FloatArray, losses: FloatArray, known: BoolArray) -> FloatArray:
    """float64[K] in [0, 1], how far the fall of a fitted law exceeds the error of the fit.

    The difference of a line's ends errs by r sqrt(12 / m), r the deviation of the m points, which
    lie evenly; three of them are used up by the fit.
    """
    count = known.sum(-1)
    at = np.where(known, tokens, 1.0)
    ends = (np.where(known, at, np.inf).min(-1), np.where(known, at, 0.0).max(-1))
    first, last = (law.at(np.where(count > 0, end, 1.0)) for end in ends)
    away = np.where(known, losses - law.each(at), 0.0)
    spread = np.sqrt((away**2).sum(-1) / np.maximum(count - 3, 1))
    fall = first - last
    kept = believed(fall, spread * np.sqrt(12.0 / np.maximum(count, 1)))
    return np.divide(kept, fall, out=np.zeros_like(fall), where=fall != 0)
