"""The life of a batch of environments: who is reset when, and what its infos say.

The contract is that of Gymnasium's own vector environments: three modes of resetting environments
that have ended, ``reset(options={"reset_mask": ...})``, infos as arrays beside ``_name`` masks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.episodes import over
from mixgym.envs.errors import ConfigError, MixgymError, check_reset_options

_MASK = "reset_mask"


@dataclass(frozen=True)
class Moved:
    """What a step of all environments gave.

    Attributes:
        observation: of all environments, at the end of the step.
        rewards: float64[n].
        dones: bool[n], whose episode has ended.
        infos: by name an object for each environment; no array of numbers.
    """

    observation: Any
    rewards: FloatArray
    dones: BoolArray
    infos: dict[str, Sequence[Any]]


class AutoresetVectorEnv(VectorEnv[Any, NDArray[Any], NDArray[Any]], ABC):
    """What is told of a batch, whatever moves inside.

    Args:
        num_envs: environments.
        spaces: of the observations and actions of one.
        mode: when an environment is reset that has ended: in the step that ends its episode
            (``SAME_STEP``), instead of the next one (``NEXT_STEP``), or by hand (``DISABLED``).

    Raises:
        ConfigError: for an unknown mode.
    """

    def __init__(
        self,
        num_envs: int,
        spaces: tuple[gym.Space[Any], gym.Space[Any]],
        mode: AutoresetMode | str,
    ) -> None:
        self.num_envs = num_envs
        self.autoreset_mode = _mode(mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = None
        self.single_observation_space, self.single_action_space = spaces
        batch = gym.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self._observation: Any = None  # what was observed last; None before the first reset
        self._ended = np.zeros(num_envs, np.bool_)  # and not reset since

    @abstractmethod
    def _seed(self, seeds: list[int | None]) -> None:
        """Start the streams anew; those whose seed is None go on."""

    @abstractmethod
    def _restart(self, which: BoolArray) -> dict[str, tuple[FloatArray, BoolArray]]:
        """Start episodes; returns the losses that they start with, and which are measured."""

    @abstractmethod
    def _move(self, actions: NDArray[Any], moving: BoolArray) -> Moved:
        """Move the environments; what becomes of those that rest does not matter."""

    @abstractmethod
    def _look(self) -> Any:
        """The observations of all environments."""

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes, or those that ``options["reset_mask"]`` (bool[n]) names.

        Raises:
            MixgymError: for other options, a wrong mask, or too few seeds.
        """
        check_reset_options(options, (_MASK,))
        which = self._masked((options or {}).get(_MASK))
        seeds = _seeds(seed, self.num_envs)
        self._seed([own if here else None for own, here in zip(seeds, which, strict=True)])
        infos = self._begin(which)
        return _copied(self._observation), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float64], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Move all environments; actions of those that are reset instead are not read.

        Raises:
            MixgymError: before the first reset, or for one that ended and has to be reset by hand.
        """
        resting = self._ended
        self._check_awake(resting)
        if resting.all():
            moved = Moved(
                self._observation, np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_), {}
            )
        else:
            moved = self._move(_calmed(np.asarray(actions), resting), ~resting)
        dones = moved.dones & ~resting
        rewards = np.where(resting, 0.0, moved.rewards)
        self._observation, self._ended = moved.observation, dones
        infos: dict[str, Any] = {}
        restarted = resting
        if self.autoreset_mode is AutoresetMode.SAME_STEP and dones.any():
            restarted = dones
            infos |= self._final(moved, dones)
        for name, values in moved.infos.items():
            # those that were reset have an entry too, though the mask says that it is not theirs
            infos |= {name: _objects(values), f"_{name}": ~restarted}
        if restarted.any():
            infos |= self._begin(restarted)
        return _copied(self._observation), rewards, dones, np.zeros_like(dones), infos

    def _begin(self, which: BoolArray) -> dict[str, Any]:
        """Start episodes and observe them; the others keep what they had."""
        losses = self._restart(which)
        self._observation = merged(which, self._look(), self._observation)
        self._ended = self._ended & ~which
        start: dict[str, Any] = {}
        for name, (values, measured) in losses.items():
            mask = which & measured
            if mask.any():
                start |= {name: np.where(mask, values, 0.0), f"_{name}": mask}
        return {"start": start, "_start": which.copy()}

    def _final(self, moved: Moved, dones: BoolArray) -> dict[str, Any]:
        """The last observations and infos of episodes that ended."""
        last: list[Any] = [
            row_of(moved.observation, i) if done else None for i, done in enumerate(dones)
        ]
        final: dict[str, Any] = {}
        for name, values in moved.infos.items():
            own = [value if done else None for value, done in zip(values, dones, strict=True)]
            final |= {name: _objects(own), f"_{name}": dones.copy()}
        return {
            "final_obs": _objects(last),
            "_final_obs": dones.copy(),
            "final_info": final,
            "_final_info": dones.copy(),
        }

    def _check_awake(self, resting: BoolArray) -> None:
        if self._observation is None:
            raise MixgymError("the environments have no episode: call reset() before step()")
        if self.autoreset_mode is AutoresetMode.DISABLED and resting.any():
            raise MixgymError(
                f"environment {int(resting.argmax())} has ended its episode, and autoreset is "
                "disabled: reset it first, reset(options={'reset_mask': terminations})"
            )

    def _masked(self, mask: Any) -> BoolArray:
        """The environments that a reset is of."""
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise MixgymError(
                f"reset(options={{'{_MASK}': ...}}): {mask.dtype}{list(mask.shape)}, "
                f"{int(np.count_nonzero(mask))} of them true: give bool[{self.num_envs}] that "
                "names at least one environment"
            )
        if self._observation is None and not mask.all():
            raise MixgymError(
                f"reset(options={{'{_MASK}': ...}}): no environment has an episode yet: the first "
                "reset is of all of them"
            )
        return mask.copy()


def row_of(observation: Any, index: int) -> Any:
    """A copy of one environment's observation."""
    if isinstance(observation, dict):
        return {name: values[index].copy() for name, values in observation.items()}
    return observation[index].copy()


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(known.value for known in AutoresetMode)
        raise ConfigError(f"autoreset_mode={mode!r}: choose one of {known}") from None


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """One for each environment; None: its stream goes on."""
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(count)]
    if not isinstance(seed, Iterable):
        raise MixgymError(f"reset(seed={seed!r}): give a whole number, or one for each environment")
    seeds = [None if own is None else int(own) for own in seed]
    if len(seeds) != count:
        raise MixgymError(f"reset(seed=...): {len(seeds)} seeds for {count} environments")
    return seeds


def merged(which: BoolArray, fresh: Any, kept: Any) -> Any:
    """Observations: ``fresh`` ones where ``which`` says so, else those that were ``kept``."""
    if kept is None or which.all():
        return fresh
    if isinstance(fresh, dict):
        return {name: over(which, values, kept[name]) for name, values in fresh.items()}
    return over(which, fresh, kept)


def _copied(observation: Any) -> Any:
    """So that who gets an observation may write into it."""
    if isinstance(observation, dict):
        return {name: values.copy() for name, values in observation.items()}
    return observation.copy()


def _calmed(actions: NDArray[Any], resting: BoolArray) -> NDArray[Any]:
    """Actions that are 0 where nobody reads them: what stands there may be anything."""
    if not resting.any():
        return actions
    calm = actions.copy()
    calm[resting] = 0
    return calm


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of objects, whatever they are: NumPy would look into arrays and mappings."""
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array
