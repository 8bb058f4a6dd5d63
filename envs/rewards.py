"""Named rewards: what a decision is paid, for the whole mixture and for each source.

A reward sees held-out losses of the reward split only, weighted by the target and never by the
mixture.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.mixture import FloatArray


@dataclass(frozen=True)
class RewardInput:
    """What rewards are computed from.

    Attributes:
        before, after: float64[K], NLL per source (nats per token), NaN without held-out rows.
        targets: float64[K].
    """

    before: FloatArray
    after: FloatArray
    targets: FloatArray


@dataclass(frozen=True)
class Reward:
    """What a decision earned.

    Attributes:
        value: the scalar that the agent gets.
        local: float64[K], each source's own part, before the target weights; NaN if unmeasured.
        components: named terms of ``value``.
    """

    value: float
    local: FloatArray
    components: dict[str, float]


@dataclass(frozen=True)
class RewardKind:
    """A registered reward.

    Attributes:
        summary: one line for ``mixgym list rewards``.
        compute: the reward of one decision.
        evaluations: held-out measurements that it needs per decision.
    """

    summary: str
    compute: Callable[[RewardInput], Reward]
    evaluations: int = 1


def target_mean(nll: FloatArray, targets: FloatArray) -> float:
    """Mean NLL weighted by the target, over the sources that are targets and are measured.

    Raises:
        SourceError: if there is none.

    >>> target_mean(np.array([1.0, 3.0, np.nan]), np.array([1.0, 3.0, 0.0]))
    2.5
    """
    used = (targets > 0) & np.isfinite(nll)
    if not used.any():
        raise SourceError(
            "no source with a target above 0 has held-out rows: give one a target, or more rows"
        )
    return float(np.average(nll[used], weights=targets[used]))


def progress(seen: RewardInput) -> Reward:
    """Fall of the target-weighted mean held-out NLL; sums to start minus end over an episode."""
    fall = target_mean(seen.before, seen.targets) - target_mean(seen.after, seen.targets)
    return Reward(fall, seen.before - seen.after, {"progress": fall})


REWARDS = {
    "progress": RewardKind("fall of the target-weighted mean held-out NLL (telescopes)", progress),
}


def make_reward(name: str) -> RewardKind:
    """The reward of that name.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in REWARDS:
        raise ConfigError(f"environment.reward={name}: choose one of {', '.join(REWARDS)}")
    return REWARDS[name]
