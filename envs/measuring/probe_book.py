"""When probes are due, and what they found last."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.base import Evaluation, ProbeResult, TrainReport
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BILEVEL_GAIN, find_probe
from mixgym.envs.rewards import make_reward
from mixgym.envs.spaces.signals import probe_shape
from mixgym.envs.world import World

_NEVER = -1


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
    """What probes found last, and when; of one environment, or of many along leading axes.

    Arrays and their dict are replaced and never changed, so that views may hold on to them.

    Args:
        periods: probe -> period in decisions, in sorted order.
        shape: (K, G).
        lead: leading axes, ``(n,)`` for a batch.

    Attributes:
        values: by name float64[..., K] or [..., K, G], the last ones; NaN where unknown.
        age: int64[..., probes], decisions since measured; -1 for never.
    """

    def __init__(
        self, periods: Mapping[str, int], shape: tuple[int, int], lead: tuple[int, ...] = ()
    ) -> None:
        self.periods = dict(periods)
        self.values: dict[str, FloatArray] = {
            name: np.full((*lead, *probe_shape(name, shape)), np.nan) for name in self.periods
        }
        self.age = np.full((*lead, len(self.periods)), _NEVER)
        self._places = {name: place for place, name in enumerate(self.periods)}

    def clear(self, which: BoolArray | bool = True) -> None:
        """Forget everything where ``which`` [...] says so: episodes start there."""
        self.age = np.where(np.asarray(which)[..., None], _NEVER, self.age)
        self.values = {
            name: np.where(_over(which, values), np.nan, values)
            for name, values in self.values.items()
        }

    def due(self, decision: NDArray[np.int64] | int) -> dict[str, BoolArray]:
        """By name bool[...], where probes are to be measured after decisions 1, 2, ...

        Names that are due nowhere are left out.
        """
        due = {name: np.asarray(decision % n == 0) for name, n in self.periods.items()}
        return {name: where for name, where in due.items() if where.any()}

    def enter(
        self, found: Mapping[str, FloatArray], where: Mapping[str, BoolArray] | None = None
    ) -> None:
        """Book what was measured after a decision; everything else is a decision older.

        Args:
            found: by name float64[..., K] or [..., K, G].
            where: by name bool[...], the environments in which it was; None: all.
        """
        self.age = np.where(self.age == _NEVER, _NEVER, self.age + 1)
        for name, values in found.items():
            self.put(name, values, True if where is None else where[name])

    def put(self, name: str, values: FloatArray, where: BoolArray | bool = True) -> None:
        """Book one probe as measured just now, ``where`` [...] says so."""
        entered = np.where(_over(where, values), values, self.values[name])
        self.values = {**self.values, name: entered}
        self.age = self.age.copy()
        self.age[..., self._places[name]] = np.where(where, 0, self.age[..., self._places[name]])

    @property
    def fresh(self) -> dict[str, BoolArray]:
        """By name bool[...], where the values were measured after the last decision."""
        return {name: np.asarray(self.age[..., i] == 0) for name, i in self._places.items()}

    def arrays(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from, as copies."""
        values = {name: part.copy() for name, part in self.values.items()}
        return {"values": values, "age": self.age.copy()}

    def state(self) -> dict[str, Any]:
        """The same as plain data."""
        values = {name: part.tolist() for name, part in self.values.items()}
        return {"values": values, "age": self.age.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state` or :meth:`arrays`."""
        values = state["values"]
        self.values = {name: np.array(values[name], np.float64) for name in self.periods}
        self.age = np.array(state["age"], np.int64).reshape(self.age.shape)


def _over(which: BoolArray | bool, values: FloatArray) -> BoolArray:
    """``which`` [...] with axes of length 1 for the rest of those of ``values``."""
    which = np.asarray(which)
    return which.reshape(*which.shape, *[1] * (values.ndim - which.ndim))


def take_probes(
    names: Iterable[str], world: World, report: TrainReport, start: Evaluation
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
