"""Named rewards: what decisions are paid, for the whole mixture and for each source.

Pure functions over any leading axes (environments). A reward sees held-out losses of the reward
split, weighted by the target and never by the mixture, or probes of the training rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import SourceError
from mixgym.envs.plugins.outside import check_signature, summary_of
from mixgym.envs.plugins.registry import Registry
from mixgym.envs.probes import find_probe
from mixgym.envs.random_streams import EpisodeNoise
from mixgym.envs.spaces.mixture import last_sum

_NO_TARGETS = "no source with a target above 0 has held-out rows: give one a target, or more rows"
SMALLEST = 1e-6  # of weights, in logarithms


@dataclass(frozen=True)
class RewardInput:
    """What rewards are computed from; any leading axes may come first.

    Attributes:
        before, after: float64[K], NLL per source (nats per token), NaN without held-out rows.
        targets: float64[K].
        start: float64[K], NLL at the start of the episode.
        weight, strata: float64[K], [K, G], the mixture of the decision.
        prior, prior_strata: the same of the prior.
        source_probe, stratum_probe: float64[K], [K, G], the latest values of the probes that the
            reward reads; NaN where unknown.
        draws: float64[K + 1], uniform numbers in [0, 1) of this decision, for ``arm``.
        epochs: float64[K], passes over each source so far.
        probe_cost: float64[], compute of this decision's probes over that of its training.
        gains: float64[K], what step rule bilevel found each source to be worth; NaN if unknown.
        seconds: float64[], of training, as the cost model predicts them and never measured; 1 where
            every decision costs the same.
    """

    before: FloatArray
    after: FloatArray
    targets: FloatArray
    start: FloatArray | None = None
    weight: FloatArray | None = None
    strata: FloatArray | None = None
    prior: FloatArray | None = None
    prior_strata: FloatArray | None = None
    source_probe: FloatArray | None = None
    stratum_probe: FloatArray | None = None
    draws: FloatArray | None = None
    epochs: FloatArray | None = None
    probe_cost: FloatArray | float = 0.0
    gains: FloatArray | None = None
    seconds: FloatArray | float = 1.0


@dataclass(frozen=True)
class Reward:
    """What a decision earned.

    Attributes:
        value: float64[], what the agent gets: the sum of the components.
        local: float64[K], each source's own part, before the target weights; NaN if unmeasured.
        components: named terms of ``value``, float64[] each.
    """

    value: FloatArray | float
    local: FloatArray
    components: dict[str, FloatArray | float]


@dataclass(frozen=True)
class RewardKind:
    """A registered reward.

    Attributes:
        summary: one line for ``mixgym list rewards``.
        compute: the rewards of one decision.
        evaluations: held-out measurements that it needs per decision.
        probes: whether it reads the probes ``environment.reward_sources`` and ``reward_strata``.
        gains: whether it reads probe ``bilevel_gain``, which step rule bilevel measures.
    """

    summary: str
    compute: Callable[[RewardInput], Reward]
    evaluations: int = 1
    probes: bool = False
    gains: bool = False


def target_mean(nll: FloatArray, targets: FloatArray) -> float:
    """Mean NLL weighted by the target, over the sources that are targets and are measured.

    Raises:
        SourceError: if there is none.

    >>> target_mean(np.array([1.0, 3.0, np.nan]), np.array([1.0, 3.0, 0.0]))
    2.5
    """
    return float(_target_mean(nll, targets))


def relative(values: FloatArray) -> FloatArray:
    """The positive parts of ``values`` over their sum; unknown (NaN) entries get 0.

    Where no known entry is positive, all known ones get the same; where none is known, all get 0.

    Args:
        values: float64[..., n].

    >>> relative(np.array([2.0, 1.0, 1.0])).tolist(), relative(np.array([-1.0, np.nan])).tolist()
    ([0.5, 0.25, 0.25], [1.0, 0.0])
    """
    known = np.isfinite(values)
    positive = np.where(known, np.maximum(values, 0.0), 0.0)
    total = last_sum(positive)[..., None]
    even = known / np.maximum(known.sum(-1, keepdims=True), 1)
    return np.where(total > 0, positive / np.where(total > 0, total, 1.0), even)


def log_utility_of(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Sum over n of R~ log p, with R~ the relative values: highest at p = R~.

    Args:
        weights: float64[..., n], p; below 1e-6 it counts as that.
        values: float64[..., n], R.
    """
    return last_sum(relative(values) * np.log(np.maximum(weights, SMALLEST)))


def linear_of(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Sum over n of p R over the mean of R: 1 for equal values, highest at a one-hot p."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(-1), 1)
    return last_sum(weights * relative(values)) * count


def progress(seen: RewardInput) -> Reward:
    """Fall of the target-weighted mean held-out NLL; sums to start minus end over an episode."""
    local = seen.before - seen.after
    fall = _target_mean(local, seen.targets)
    return Reward(fall, local, {"progress": fall})


def progress_normalised(seen: RewardInput) -> Reward:
    """As ``progress``, every source's fall over its own NLL at the start."""
    assert seen.start is not None
    local = (seen.before - seen.after) / np.where(seen.start > 0, seen.start, np.nan)
    fall = _target_mean(local, seen.targets)
    return Reward(fall, local, {"progress_normalised": fall})


def progress_per_second(seen: RewardInput) -> Reward:
    """``progress`` over the predicted seconds of training, so that dear rows must be worth it."""
    found = progress(seen)
    value = found.value / seen.seconds
    return Reward(value, found.local, {"progress_per_second": value})


def worst(seen: RewardInput) -> Reward:
    """Fall of the highest held-out NLL among the targets; telescopes."""
    local = seen.before - seen.after
    used = _measured_targets(local, seen.targets) > 0
    high = np.where(used, seen.before, -np.inf).max(-1)
    fall = high - np.where(used, seen.after, -np.inf).max(-1)
    return Reward(fall, local, {"worst": fall})


def log_utility(seen: RewardInput) -> Reward:
    """What HBO's actors climb: its optimum is p = R~ at both levels.

    Sum over sources of R~_k log p_k, plus the target-weighted mean over sources of each one's
    own part, the sum over its strata of R~_kg log q_kg.
    """
    return _two_levels(seen, log_utility_of, "log_utility")


def linear(seen: RewardInput) -> Reward:
    """The expected reward of a draw, over its mean, at both levels: its optimum is one-hot."""
    return _two_levels(seen, linear_of, "linear")


def arm(seen: RewardInput) -> Reward:
    """The reward of one source drawn from the mixture, and of one stratum drawn inside it.

    Over many draws this is ``linear`` with sources weighted by the mixture; each source's own part
    is a draw from its own strata.
    """
    weight, strata = given(seen.weight), given(seen.strata)
    draws = given(seen.draws)
    source = drawn(weight, draws[..., :1])
    stratum = drawn(strata, draws[..., 1:, None])
    top = linear_of(source, given(seen.source_probe))
    local = linear_of(stratum, given(seen.stratum_probe))
    inner = last_sum(np.where(source > 0, local, 0.0))
    return Reward(top + inner, local, {"arm_sources": top, "arm_strata": inner})


def arm_draws(seed: int, decisions: int, sources: int) -> FloatArray:
    """float64[decisions, K + 1], uniform numbers of an episode's decisions, for reward ``arm``."""
    return EpisodeNoise("arms").start(seed).random((decisions, sources + 1))


def drawn(weights: FloatArray, draw: FloatArray) -> FloatArray:
    """One-hot float64[..., n]: the entry of ``weights`` that a uniform ``draw`` [..., 1] falls in.

    >>> drawn(np.array([0.5, 0.3, 0.2]), np.array([0.75])).tolist()
    [0.0, 1.0, 0.0]
    """
    edges = np.cumsum(weights, -1)
    edges = edges / np.where(edges[..., -1:] > 0, edges[..., -1:], 1.0)
    first = np.argmax((edges > draw) & (weights > 0), -1)
    return np.asarray(np.arange(weights.shape[-1]) == first[..., None], np.float64)


def bilevel_gap(seen: RewardInput) -> Reward:
    """What the mixture is worth to validation beyond the prior, as step rule bilevel finds it.

    Sum over sources of (p - prior) g, over the prior's mean of |g|, where g is minus the value gap:
    0 for the prior and where nothing is known, at most a few.
    """
    prior = given(seen.prior)
    known = np.nan_to_num(given(seen.gains))
    scale = last_sum(prior * np.abs(known))[..., None]
    worth = known / np.where(scale > 0, scale, 1.0)
    beyond = last_sum((given(seen.weight) - prior) * worth)
    return Reward(beyond, worth, {"bilevel_gap": beyond})


def as_kind(where: str, thing: Any, **declared: Any) -> RewardKind:
    """The reward that a plug-in is: a :class:`RewardKind`, or a function of a RewardInput.

    Args:
        where: what errors call it.
        thing: the plug-in.
        declared: fields of the kind that a function cannot tell: ``evaluations``, ``probes``, ...

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(thing, RewardKind):
        return replace(thing, **declared)
    check_signature(thing, ("RewardInput",), where)
    return RewardKind(**{"summary": summary_of(thing), "compute": thing, **declared})


_BUILT_IN = {
    "progress": RewardKind("fall of the target-weighted mean held-out NLL (telescopes)", progress),
    "progress_normalised": RewardKind(
        "the same, every source's fall over its NLL at the start", progress_normalised
    ),
    "progress_per_second": RewardKind(
        "progress over the seconds of training that the cost model predicts",
        progress_per_second,
    ),
    "worst": RewardKind("fall of the highest held-out NLL among the targets (telescopes)", worst),
    "log_utility": RewardKind(
        "sum of R log p at both levels, R the probes over their sum (HBO)",
        log_utility,
        probes=True,
    ),
    "linear": RewardKind(
        "sum of p R at both levels, R the probes over their mean", linear, 1, True
    ),
    "bilevel_gap": RewardKind(
        "worth of the mixture to validation beyond the prior, by the bilevel gaps (ScaleBiO)",
        bilevel_gap,
        gains=True,
    ),
    "arm": RewardKind("R of a source and a stratum drawn from the mixture", arm, 1, True),
}

REWARDS: Registry[RewardKind] = Registry(
    "reward", "environment.reward", "mixgym.rewards", as_kind, _BUILT_IN
)


def make_reward(name: str) -> RewardKind:
    """The reward of that name.

    Raises:
        ConfigError: for an unknown name, or a plug-in that is none.
    """
    return REWARDS[name]


def as_reward(name: str, values: FloatArray) -> FloatArray:
    """Values of a probe as rewards read them: not as logarithms."""
    return np.exp(values) if find_probe(name).logarithm else values


def _two_levels(
    seen: RewardInput, utility: Callable[[FloatArray, FloatArray], FloatArray], name: str
) -> Reward:
    top = utility(given(seen.weight), given(seen.source_probe))
    local = utility(given(seen.strata), given(seen.stratum_probe))
    inner = _target_mean(local, seen.targets)
    return Reward(top + inner, local, {f"{name}_sources": top, f"{name}_strata": inner})


def given(values: FloatArray | None) -> FloatArray:
    """A part of :class:`RewardInput` that a reward cannot do without.

    Raises:
        ValueError: if it was left out.
    """
    if values is None:
        raise ValueError("this reward needs parts of RewardInput that were left out")
    return values


def _measured_targets(values: FloatArray, targets: FloatArray) -> FloatArray:
    """The targets, 0 where a value is missing."""
    used: BoolArray = np.asarray((targets > 0) & np.isfinite(values))
    if not used.any(-1).all():
        raise SourceError(_NO_TARGETS)
    return np.where(used, targets, 0.0)


def _target_mean(values: FloatArray, targets: FloatArray) -> FloatArray:
    """float64[...], the mean over the last axis, weighted by the targets that are measured."""
    used = (targets > 0) & np.isfinite(values)
    weights = np.where(used, targets, 0.0)
    whole = last_sum(weights)
    if not np.all(whole > 0):
        raise SourceError(_NO_TARGETS)
    return last_sum(np.where(used, values, 0.0) * weights) / whole
