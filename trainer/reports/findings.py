"""What ``mixgym doctor`` answers: pure functions from numbers to findings in plain sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SOUND, FAILED, UNKNOWN = "sound", "failed", "unknown"
_LEAST = 0.001  # share of weight; what moves less does not move
_MOST_AT_BOUND = 0.5  # share of logits
ERRORS = 2.0  # standard errors
_LEAST_NATS = 1e-6  # of the order's worth; less is rounding


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        check: its name.
        status: ``sound``, ``failed`` or ``unknown``: the run cannot tell.
        sentence: in plain words.
        numbers: that it rests on.
    """

    check: str
    status: str
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)


def judge_movement(parameters: float, moved: float) -> Finding:
    """Did the policy leave its start?

    Args:
        parameters: largest change of any acting parameter.
        moved: share of weight that lies elsewhere than under the frozen twin.
    """
    numbers = {"largest_parameter_change": parameters, "weight_moved": moved}
    if parameters == 0:
        words = (
            "the actor never learnt: its parameters are those that it was made with; is its "
            "optimiser stepped, and with its parameters?"
        )
        return Finding("moves", FAILED, words, numbers)
    if moved < _LEAST:
        words = (
            f"the actor's parameters changed, but its distribution did not: {_share(moved)} of the "
            "weight moved; train longer, or with a larger learning rate"
        )
        return Finding("moves", FAILED, words, numbers)
    words = f"{_share(moved)} of the weight lies elsewhere than under the frozen twin"
    return Finding("moves", SOUND, words, numbers)


def judge_updates(stages: Sequence[Mapping[str, Any]]) -> Finding:
    """Were the learners ever updated?

    Args:
        stages: of the summary, with ``stage``, ``decisions`` and ``updates`` by level; none while
            the training is under way.
    """
    counts = {f"{s['stage']}/{level}": n for s in stages for level, n in s["updates"].items()}
    if not counts:
        return Finding("learns", UNKNOWN, "the training has no summary yet")
    idle = [name for name, count in counts.items() if count == 0]
    numbers = {name: float(count) for name, count in counts.items()}
    if idle:
        words = (
            f"{', '.join(idle)} was never updated: the training ended before the "
            "learning_starts of its algorithm; lower that option, or train longer"
        )
        return Finding("learns", FAILED, words, numbers)
    words = ", ".join(f"{name} {count:,} times" for name, count in counts.items())
    return Finding("learns", SOUND, f"parameters were updated: {words}", numbers)


def judge_attention(to_shuffled: float, to_constant: float) -> Finding:
    """Do actions depend on observations?

    Args:
        to_shuffled: share of weight that moves if rows are shuffled.
        to_constant: the same if every row is the mean row.
    """
    numbers = {"moved_by_shuffling": to_shuffled, "moved_by_constants": to_constant}
    if max(to_shuffled, to_constant) < _LEAST:
        words = (
            f"the agent ignores what it observes: with shuffled observations {_share(to_shuffled)} "
            f"of the weight moves, with constant ones {_share(to_constant)}"
        )
        return Finding("observes", FAILED, words, numbers)
    words = (
        f"with shuffled observations {_share(to_shuffled)} of the weight moves, with constant ones "
        f"{_share(to_constant)}"
    )
    return Finding("observes", SOUND, words, numbers)


def judge_gain(name: str, gap: Sequence[float], other: str) -> Finding:
    """Does the agent end lower than something else on the same tasks?

    Args:
        name: of the check.
        gap: NLL of the agent minus that of the other, task by task.
        other: what it is compared with.
    """
    mean, error, place, numbers = _placed(gap)
    if mean < 0 and -mean > ERRORS * error:
        return Finding(name, SOUND, f"{place} below {other}", numbers)
    side = "below" if mean < 0 else "above"
    words = f"it is not better than {other}: {place} {side} it"
    return Finding(name, FAILED, words, numbers)


def judge_harm(name: str, gap: Sequence[float], other: str) -> Finding:
    """Is the agent at least not worse than something simple? Arguments as of :func:`judge_gain`."""
    mean, _, place, numbers = _placed(gap)
    if mean > 0:
        return Finding(name, FAILED, f"it does harm: {place} above {other}", numbers)
    return Finding(name, SOUND, f"{place} below {other}", numbers)


def judge_order(held: Sequence[float], backwards: Sequence[float]) -> Finding:
    """Does the agent schedule, or does it pick a mixture?

    Args:
        held: NLL under its own mean mixture held fixed, minus its own, task by task.
        backwards: the same under its decisions played backwards.
    """
    (worth, error), (turned, turned_error) = (_mean_and_error(gap) for gap in (held, backwards))
    numbers = {
        "own_mean_held": worth,
        "own_mean_held_standard_error": error,
        "backwards": turned,
        "backwards_standard_error": turned_error,
    }
    controls = (
        f"its own mean mixture held fixed ends {worth:+.4f} +- {error:.4f} nats from it, "
        f"its decisions backwards {turned:+.4f} +- {turned_error:.4f}"
    )
    if abs(worth) <= ERRORS * error or abs(worth) < _LEAST_NATS:
        return Finding("order", SOUND, f"picks a mixture: {controls}", numbers)
    if worth < 0:
        words = f"its order does harm: {controls}; hold the mean mixture instead"
        return Finding("order", FAILED, words, numbers)
    words = f"schedules: order is worth {worth:.4f} +- {error:.4f} nats ({controls})"
    return Finding("order", SOUND, words, numbers)


def _mean_and_error(gap: Sequence[float]) -> tuple[float, float]:
    values = np.asarray(gap, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _placed(gap: Sequence[float]) -> tuple[float, float, str, dict[str, float]]:
    """Mean, standard error, both in words, and as the numbers of a finding."""
    mean, error = _mean_and_error(gap)
    numbers = {"difference": mean, "standard_error": error, "tasks": float(len(gap))}
    words = f"on {len(gap)} validation tasks it ends {abs(mean):.4f} nats (s.e. {error:.4f})"
    return mean, error, words, numbers


def judge_pay(spread: float) -> Finding:
    """Are sources paid differently?"""
    numbers = {"spread": spread}
    if np.isnan(spread):
        words = "fewer than two sources are measured, so that there is nothing to compare"
        return Finding("rewards", UNKNOWN, words)
    if spread < _LEAST:
        words = (
            "all sources are always paid alike: no policy can learn from that which of them to "
            "prefer; look at environment.reward and at the reward split"
        )
        return Finding("rewards", FAILED, words, numbers)
    words = f"rewards of sources deviate by {_share(spread)} of their mean size in a decision"
    return Finding("rewards", SOUND, words, numbers)


def judge_bounds(top: float, inner: float) -> Finding:
    """Are logits at their bounds?"""
    numbers = {"sources_at_bound": top, "strata_at_bound": inner}
    words = f"{_share(top)} of the sources' logits and {_share(inner)} of the strata's are at +-1"
    if max(top, inner) > _MOST_AT_BOUND:
        advice = "the policy has run into its limits: raise environment.reach, or train less hard"
        return Finding("bounds", FAILED, f"{words}; {advice}", numbers)
    return Finding("bounds", SOUND, words, numbers)


def judge_values(explained: Mapping[str, float]) -> Finding:
    """Is the value function better than a constant?

    Args:
        explained: by level, the share of the variance of returns that values explain.
    """
    numbers = {f"explained_{level}": value for level, value in explained.items()}
    known = {level: value for level, value in explained.items() if np.isfinite(value)}
    if not known:
        words = "the algorithm has no value function that can be asked"
        return Finding("values", UNKNOWN, words)
    shown = ", ".join(f"{_share(value)} ({level})" for level, value in known.items())
    if min(known.values()) <= 0:
        words = (
            f"the value function is no better than a constant: it explains {shown} of the variance "
            "of returns on tasks that it was not trained on"
        )
        return Finding("values", FAILED, words, numbers)
    return Finding("values", SOUND, f"values explain {shown} of the variance of returns", numbers)


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"
