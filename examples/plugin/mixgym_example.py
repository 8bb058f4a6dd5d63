"""Plug-ins of mixgym: a reward, a probe, a rule and an algorithm, in forty lines of code."""

import numpy as np
from stable_baselines3 import PPO

from mixgym.agents.rule import Rule
from mixgym.envs.probes import ProbeKind
from mixgym.envs.rewards import Reward


def median(seen):
    """Fall of the median held-out NLL among the targets."""
    measured = (seen.targets > 0) & np.isfinite(seen.before)
    before, after = (np.where(measured, nll, np.nan) for nll in (seen.before, seen.after))
    fall = np.nanmedian(before, -1) - np.nanmedian(after, -1)
    return Reward(fall, seen.before - seen.after, {"median": fall})


def _spread_of_rows(probes):
    losses = probes.row_losses()
    means = probes.cell_means(losses)
    return np.sqrt(np.maximum(probes.cell_means(losses**2) - means**2, 0.0))


SPREAD = ProbeKind(
    "standard deviation of NLL over the rows of a stratum",
    "stratum",
    passes=1,
    curves=lambda seen: 0.3 * seen.nll,
    language=_spread_of_rows,
)


class BySpread(Rule):
    """Sources by how much the losses of their rows differ.

    Args:
        env: a vector environment, or None.
        names: of the sources.
        power: that the spread is raised to; 0 is uniform.
    """

    probes = {"mixgym_example:SPREAD": 2}  # noqa: RUF012

    def __init__(self, env=None, names=(), *, power=1.0):
        super().__init__(env, names)
        self.power = power

    def weights(self, signals, memory):
        """One number per source; strata as they are."""
        known = np.nan_to_num(signals.probes["mixgym_example:SPREAD"]).max(-1)
        spread = np.where(known > 0, known, 1.0)
        return np.where(signals.trainable, spread**self.power, 0.0), None

    def options(self):
        """What the rule is saved with."""
        return {"power": self.power}


class FadingPPO(PPO):
    """PPO with an entropy bonus that fades out over the training."""

    def train(self):
        """Learn from a rollout."""
        self.ent_coef = 0.01 * self._current_progress_remaining
        super().train()
