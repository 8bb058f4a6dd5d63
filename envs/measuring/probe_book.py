"""When probes are due, and what they found last."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.base import Evaluation, ProbeResult, TrainReport
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BILEVEL_GAIN, find_probe
from mixgym.envs.rewards import make_reward
from mixgym.envs.spaces.signals import probe_shape
from mixgym.envs.world import World

NEVER = -1


def wanted_probes(options: EnvironmentOptions) -> dict[str, int]:
    """Probe -> period in decisions: those asked for, and those that the reward reads.

    What only the reward asks for is measured at every decision.

    Raises:
        ConfigError: for a probe of step rule bilevel under another rule.

    >>> wanted_probes(EnvironmentOptions(reward="log_utility", probes={"gradient_norm": 4}))
    {'gradient_norm': 4, 'perplexity_ratio': 1}
    """
    reward = make_reward(options.reward)
    read = [options.reward_sources, options.reward_strata] if reward.probes else []
    for_reward = dict.fromkeys([*read, *([BILEVEL_GAIN] if reward.gains else [])], 1)
    both = {**for_reward, **options.probes}
    if BILEVEL_GAIN in both and options.step_rule != "bilevel":
        raise ConfigError(
            f"environment.step_rule={options.step_rule}: probe {BILEVEL_GAIN} is what step rule "
            "bilevel finds; set environment.step_rule=bilevel, or leave the probe (or the reward "
            "that reads it) out"
        )
    return {name: both[name] for name in sorted(both)}


class ProbeBook:
    """The probes of one environment.

    Args:
        periods: probe -> period in decisions, in sorted order.
        shape: (K, G).

    Attributes:
        values: by name float64[K] or [K, G], the last ones; NaN where unknown.
        age: int64[probes], decisions since measured; -1 for never.
        fresh: names of those measured after the last decision.
    """

    def __init__(self, periods: Mapping[str, int], shape: tuple[int, int]) -> None:
        self.periods = dict(periods)
        self.shape = shape
        self.clear()

    def clear(self) -> None:
        """Forget everything: an episode starts."""
        self.values: dict[str, FloatArray] = {
            name: np.full(probe_shape(name, self.shape), np.nan) for name in self.periods
        }
        self.age = np.full(len(self.periods), NEVER)
        self.fresh: tuple[str, ...] = ()

    def due(self, decision: int) -> list[str]:
        """The probes to be measured after this decision (1, 2, ...)."""
        return [name for name, period in self.periods.items() if decision % period == 0]

    def enter(self, found: Mapping[str, FloatArray]) -> None:
        """Book what was measured after a decision; everything else is a decision older."""
        self.age = np.where(self.age == NEVER, NEVER, self.age + 1)
        self.values = {**self.values, **found}
        self.fresh = tuple(found)
        names = list(self.periods)
        for name in found:
            self.age[names.index(name)] = 0

    def state(self) -> dict[str, Any]:
        """Plain data from which :meth:`set_state` continues."""
        values = {name: part.tolist() for name, part in self.values.items()}
        return {"values": values, "age": self.age.tolist(), "fresh": list(self.fresh)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.values = {name: np.array(part, np.float64) for name, part in state["values"].items()}
        self.age = np.array(state["age"], np.int64)
        self.fresh = tuple(state["fresh"])


def measured(
    names: list[str], world: World, report: TrainReport, start: Evaluation
) -> dict[str, ProbeResult]:
    """Take the probes ``names``; free ones come from training, its step rule, or the rows."""
    return {
        name: world.learner.probe(name)
        if find_probe(name).passes
        else ProbeResult(_free(name, world, report, start), 0)
        for name in names
    }


def _free(name: str, world: World, report: TrainReport, start: Evaluation) -> FloatArray:
    if find_probe(name).constant:
        return world.constants[name]
    if name != BILEVEL_GAIN:
        return training_loss_ratio(report.nll, start.nll)
    gains = world.step_rule.gains()
    assert gains is not None  # the options were checked
    return gains


def training_loss_ratio(trained: FloatArray, start: FloatArray) -> FloatArray:
    """float64[..., K, G], perplexity of training over the held-out one at the start.

    Args:
        trained: float64[..., K, G], training NLL; NaN where nothing was trained.
        start: float64[..., K, G], held-out NLL at the start; NaN without held-out rows.
    """
    return np.exp(trained - start)
