"""ADO: a scaling law per source, fitted while training goes on."""

from typing import TYPE_CHECKING

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import choice, positive, share, whole
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.power_law import fit_power_law
from mixgym.agents.mixers.simplex import even, mean_of, shares
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
        )
        self.losses = choice("losses", losses, ("train", "held_out"))
        self.axis = choice("axis", axis, ("own", "total"))
        self.credit = share("credit", credit)
        self.inertia = share("inertia", inertia)
        self.least = positive("least", least)
        self.points = whole("points", points, 3)

    def shapes(self, sources: int, strata: int) -> tuple[tuple[int, ...], ...]:
        """Points (tokens, losses), how many; last tokens; h; sum of rho; decisions."""
        row, table = (sources,), (sources, HISTORY)
        return table, table, row, row, row, row, (1,)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        mask = signals.trainable
        tokens, losses, count, last, realised, total = (a[: len(mask)] for a in memory[:6])
        clock = memory[6]
        prior = shares(signals.sources["prior"], mask)
        if clock[0]:
            self._record(signals, (tokens, losses, count), last, realised)
            rho = self._rho(prior, mask, (tokens, losses, count), last, realised)
        else:
            realised[:] = rho = prior
        total += rho
        clock[0] += 1.0
        return self.inertia * total / clock[0] + (1.0 - self.inertia) * rho, None

    def _record(
        self,
        signals: Signals,
        points: tuple[FloatArray, FloatArray, FloatArray],
        last: FloatArray,
        realised: FloatArray,
    ) -> None:
        """Remember the last interval's losses of the sources that it trained on."""
        rows, mask = signals.sources, signals.trainable
        own = np.where(mask, rows["epochs"] * rows["size"], 0.0)
        new = np.maximum(own - last, 0.0)
        counted = own if self.axis == "own" else np.full_like(own, own.sum())
        before = last if self.axis == "own" else np.full_like(own, last.sum())
        if self.losses == "train":
            seen, at = rows["nll_train"], 0.5 * (counted + before)
        else:
            seen, at = rows["nll"], counted
        _append(points, at, seen, mask & (new > 0) & (seen > 0) & (at > 0))
        realised[:] = 0.9 * realised + 0.1 * shares(new, mask)
        last[:] = own

    def _rho(
        self,
        prior: FloatArray,
        mask: BoolArray,
        points: tuple[FloatArray, FloatArray, FloatArray],
        last: FloatArray,
        realised: FloatArray,
    ) -> FloatArray:
        tokens, losses, count = points
        fitted = mask & (count >= self.points)
        if not fitted.any():
            return prior
        known = np.arange(int(count.max())) < count[:, None]
        law = fit_power_law(tokens[:, : known.shape[1]], losses[:, : known.shape[1]], known)
        now = last if self.axis == "own" else np.full_like(last, last.sum())
        slope = np.where(fitted, law.slope(np.maximum(now, 1.0)), 0.0)
        slope = np.where(fitted, slope, mean_of(slope, fitted))
        rho = shares(prior * slope * realised**self.credit, mask)
        least = min(self.least, float(even(mask).max()))
        return shares(np.maximum(rho, least), mask)


def _append(
    points: tuple[FloatArray, FloatArray, FloatArray],
    tokens: FloatArray,
    losses: FloatArray,
    which: BoolArray,
) -> None:
    """Add a point to the sources ``which``; a full row first drops every second of its points."""
    kept_tokens, kept_losses, count = points
    for row in np.flatnonzero(which & (count >= HISTORY)):
        for kept in (kept_tokens, kept_losses):
            kept[row, : HISTORY // 2] = kept[row, ::2].copy()
        count[row] = HISTORY // 2
    rows = np.flatnonzero(which)
    places = count[rows].astype(np.intp)
    kept_tokens[rows, places], kept_losses[rows, places] = tokens[rows], losses[rows]
    count[rows] += 1.0
