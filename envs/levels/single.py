"""The two levels of a mixture as environments of their own.

``mixgym/Global-v0`` sets the weights of sources while somebody else, or the prior, sets those of
strata; ``mixgym/Local-v0`` sets the strata of one source. Both stand on the joint environment, see
what it measures, and leave everything else to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from mixgym.envs.environment import MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.levels.predictor import Action, Predictor
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.spaces.observations import local_observation, local_space


def check_level(options: EnvironmentOptions) -> None:
    """Refuse a joint environment that has no levels.

    Raises:
        ConfigError: if it has not logits and the flat observation.
    """
    if options.action != "logits" or options.observation != "flat":
        raise ConfigError(
            "environment.action, environment.observation: the levels need logits and flat, "
            f"got {options.action} and {options.observation}"
        )


def check_period(period: int) -> None:
    """Refuse a period that is no time.

    Raises:
        ConfigError: if it is below 1.
    """
    if period < 1:
        raise ConfigError(f"period={period}: an action holds for at least one decision")


def find_source(source: str | int, names: Sequence[str]) -> tuple[str, int]:
    """Name and place of a source.

    Args:
        source: its name or place.
        names: of the sources that every episode has: where tasks are drawn, some have more.

    Raises:
        ConfigError: if it is not among them.
    """
    if isinstance(source, int | np.integer) and 0 <= source < len(names):
        source = names[int(source)]
    if source not in names:
        raise ConfigError(
            f"source={source!r}: not one of {', '.join(names)}, the sources that every episode has"
        )
    return str(source), list(names).index(str(source))


class _Level(gym.Env[Action, Action], ABC):
    """What both levels share: the joint environment inside, and the other level's decisions."""

    metadata: dict[str, Any] = MixtureEnv.metadata

    def __init__(self, joint: MixtureEnv, other: Predictor | None) -> None:
        check_level(joint.options)
        self.joint = joint
        self.other = other
        self.render_mode = joint.render_mode
        self._flat: Action = np.zeros(0, np.float32)
        self._state: Any = None
        self._first = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Action, dict[str, Any]]:
        """Start an episode of the joint environment."""
        super().reset(seed=seed)
        self._flat, info = self.joint.reset(seed=seed, options=options)
        self._state, self._first = None, True
        self._enter()
        return self._seen(), info

    def step(self, action: Action) -> tuple[Action, float, bool, bool, dict[str, Any]]:
        """Complete the action with the other level's, and take the joint step."""
        whole = self._completed(np.asarray(action, np.float32))
        self._flat, reward, done, cut, info = self.joint.step(whole)
        return self._seen(), self._paid(reward, info), done, cut, info

    def render(self) -> Any:
        """As the joint environment."""
        return self.joint.render()

    def _others(self) -> Action:
        """The joint action that the other level wants; zero (the prior) if there is nobody."""
        if self.other is None:
            return np.zeros(self.joint.action_space.shape or (), np.float32)
        start = np.array([self._first])
        action, self._state = self.other.predict(self._flat, self._state, start, True)
        self._first = False
        return np.array(action, np.float32)

    @abstractmethod
    def _completed(self, action: Action) -> Action:
        """The joint action that has ``action`` at this level."""

    def _enter(self) -> None:
        """Find what depends on the episode that was started."""

    def _seen(self) -> Action:
        return self._flat

    def _paid(self, reward: float, info: dict[str, Any]) -> float:
        return reward


class GlobalEnv(_Level):
    """The weights of sources (``mixgym/Global-v0``).

    Description:
        The action is K_max logits; strata are set by ``local``, or follow the prior.

    Action space:
        ``Box(-1, 1, (K_max,))``, as the first entries of the joint action.

    Observation space:
        The flat joint observation.

    Rewards:
        The joint environment's.

        With a period of n the action holds for n decisions of the joint environment, whose
        rewards are summed: a semi-MDP. ``info["decisions"]`` lists their records.

    Arguments:
        joint: the environment inside, with logits and the flat observation.
        local: decides over strata, at every decision; None means the prior.
        period: decisions of the joint environment that an action holds for.
        discount: of rewards inside a period; a learner's own is then ``discount ** period``.

    Version history:
        v0: first version.
    """

    def __init__(
        self,
        joint: MixtureEnv,
        local: Predictor | None = None,
        *,
        period: int = 1,
        discount: float = 1.0,
    ) -> None:
        super().__init__(joint, local)
        check_period(period)
        self.period = period
        self.discount = discount
        self.observation_space = joint.observation_space
        self.action_space = gym.spaces.Box(-1.0, 1.0, (joint.padded[0],), np.float32)

    def step(self, action: Action) -> tuple[Action, float, bool, bool, dict[str, Any]]:
        """Hold the weights of sources for a period, or until the episode ends."""
        total, records = 0.0, []
        for index in range(self.period):
            seen, reward, done, cut, info = super().step(action)
            total += self.discount**index * reward
            records += [info["decision"]] if "decision" in info else []
            if done or cut:
                break
        if self.period > 1:
            info["decisions"] = records
        return seen, total, done, cut, info

    def _completed(self, action: Action) -> Action:
        whole = self._others()
        whole[: self.joint.padded[0]] = action
        return whole


class LocalEnv(_Level):
    """The strata of one source (``mixgym/Local-v0``).

    Description:
        The action is G_max logits for the strata of ``source``; the weights of sources and the
        strata of the others are set by ``other``, or follow the prior.

    Action space:
        ``Box(-1, 1, (G_max,))``.

    Observation space:
        ``Box(-10, 10)``: the source's rows of the joint observation, see
        :func:`mixgym.envs.spaces.observations.local_observation`.

    Rewards:
        The source's own part (``reward.local``); 0 where it is not measured.

    Arguments:
        joint: the environment inside, with logits and the flat observation.
        source: name or index; where tasks are drawn, a source that all of them have.
        other: decides over everything else; None means the prior.

    Version history:
        v0: first version.
    """

    def __init__(
        self, joint: MixtureEnv, source: str | int = 0, other: Predictor | None = None
    ) -> None:
        super().__init__(joint, other)
        self.source, self._index = find_source(source, joint.world.common_names)
        space: Any = local_space(joint.padded[1])
        self.observation_space = space
        self.action_space = gym.spaces.Box(-1.0, 1.0, (joint.padded[1],), np.float32)

    def _enter(self) -> None:
        _, self._index = find_source(self.source, self.joint.world.names)

    def _completed(self, action: Action) -> Action:
        sources, strata = self.joint.padded
        start = sources + self._index * strata
        whole = self._others()
        whole[start : start + strata] = action
        return whole

    def _seen(self) -> Action:
        rows = local_observation(self._flat, self.joint.padded)
        own: Action = rows[self._index]
        return own

    def _paid(self, reward: float, info: dict[str, Any]) -> float:
        if "decision" not in info:  # training diverged: everybody pays
            return reward
        return float(info["decision"]["reward"]["local"].get(self.source, 0.0))


def make_global_env(
    local: Predictor | None = None,
    period: int = 1,
    discount: float = 1.0,
    render_mode: str | None = None,
    **options: Any,
) -> GlobalEnv:
    """Entry point of ``mixgym/Global-v0``: options as of ``mixgym/Mixture-v0``."""
    joint = make_mixture_env(render_mode=render_mode, **options)
    return GlobalEnv(joint, local, period=period, discount=discount)


def make_local_env(
    source: str | int = 0,
    other: Predictor | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> LocalEnv:
    """Entry point of ``mixgym/Local-v0``: options as of ``mixgym/Mixture-v0``."""
    return LocalEnv(make_mixture_env(render_mode=render_mode, **options), source, other)
