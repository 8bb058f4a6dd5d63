"""Agents of Stable-Baselines3 with their own policies, from the file that their ``save`` wrote.

Whoever trains ``PPO("MlpPolicy", gym.make("mixgym/Mixture-v0"))`` on a registered environment can
drive runs of the same padded size with what it learnt. Only the policy is needed for that, not the
algorithm: a file names the policy's class and arguments as text, and its parameters are tensors, so
that nothing in it has to be unpickled, and no code of the file runs.
"""

import inspect
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import Actor, State
from mixgym.agents.requires import Action, Requires
from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins.outside import load_word
from mixgym.envs.spaces.observations import (
    PROGRESS,
    SOURCES,
    STRATA,
    local_observation,
    local_space,
    shape_of,
)

if TYPE_CHECKING:
    from gymnasium import Space
    from stable_baselines3.common.policies import BasePolicy

SUFFIX = ".zip"
_DATA, _POLICY = "data", "policy.pth"
_TRUSTED = ("stable_baselines3.", "sb3_contrib.")  # modules whose policies are imported by name
_TYPE, _PICKLED = ":type:", ":serialized:"

Level = Literal["joint", "global", "local"]


@dataclass(frozen=True)
class StockCard:
    """What a file says of its agent, in text.

    Attributes:
        path: the file.
        policy: ``module:class`` of the policy, as far as it is named.
        arguments: of the policy; None where one is told only by what is pickled.
        observation: numbers in an observation; None for a Dict.
        actions: entries of an action, or how many there are to choose from.
        kind: kind of actions: of two that look alike, ``logits``.
        level: what its actions set.
        shape: (K_max, G_max), as far as the spaces tell.
    """

    path: Path
    policy: str
    arguments: dict[str, Any] | None
    observation: int | None
    actions: int
    kind: Action
    level: Level
    shape: tuple[int | None, int | None]


def read_stock(path: str | Path) -> StockCard:
    """Read what a file says, without unpickling anything.

    Raises:
        ConfigError: if it is no file of Stable-Baselines3, or of an agent for other spaces than a
            registered environment has.
    """
    path = Path(path).expanduser()
    try:
        with zipfile.ZipFile(path) as archive:
            data: dict[str, Any] = json.loads(archive.read(_DATA))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"agent.options.path={path}: cannot be read ({error}); give the file that `save` of an "
            "algorithm of Stable-Baselines3 wrote"
        ) from None
    observation = _size(data.get("observation_space"))
    space = data.get("action_space") or {}
    discrete = "Discrete" in str(space.get(_TYPE))
    actions = int(space["n"]) if discrete else (_size(space) or 0)
    kind: Action = "nudge" if discrete else "logits"
    if not discrete and str(space.get("low_repr")) == "0.0":
        kind = "weights"
    level, shape = _place(path, observation, actions - discrete)
    arguments = _arguments(data.get("policy_kwargs") or {})
    if arguments is not None and data.get("use_sde"):
        arguments = {**arguments, "use_sde": True}
    return StockCard(
        path=path,
        policy=_policy_name(data.get("policy_class") or {}),
        arguments=arguments,
        observation=observation,
        actions=actions,
        kind=kind,
        level=level,
        shape=shape,
    )


def _arguments(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a policy that matter for acting; None where one is not told.

    Where one of them is pickled all are, and beside that their JSON values, and the texts of those
    that have none: of an activation, its class.
    """
    found: dict[str, Any] = {}
    for name, value in stored.items():
        if name in (_TYPE, _PICKLED) or name.startswith("optimizer_"):
            continue
        if isinstance(value, str) and _PICKLED in stored and value.startswith("<"):
            module = re.fullmatch(r"<class 'torch\.nn\.modules\.\w+\.(\w+)'>", value)
            if module is None:
                return None
            value = load_word(f"torch.nn:{module[1]}", "agent.options.path")
        found[name] = value
    return found


def _size(space: Any) -> int | None:
    """Numbers in a Box that is one axis long; None for another space."""
    shape = re.findall(r"\d+", str((space or {}).get("_shape")))
    return int(shape[0]) if len(shape) == 1 else None


def _policy_name(stored: Mapping[str, Any]) -> str:
    """``module:class``: the class's name stands in the name of its constructor."""
    found = re.match(r"<function (\w+)\.__init__ at", str(stored.get("__init__")))
    return f"{stored.get('__module__')}:{found[1] if found else ''}"


def _place(
    path: Path, observation: int | None, actions: int
) -> tuple[Level, tuple[int | None, int | None]]:
    """The level and the size of mixtures that spaces belong to.

    Raises:
        ConfigError: if they belong to none.
    """
    if observation is None:
        return "joint", (None, None)
    try:
        return "joint", shape_of(observation, actions)
    except ValueError:
        pass
    top, inner = len(SOURCES) + 1, len(STRATA) + 1
    strata, rest = divmod(observation - len(PROGRESS) - actions * top, max(actions, 1) * inner)
    if not rest and strata >= 1:
        return "global", (actions, strata)
    if observation == len(PROGRESS) + len(SOURCES) + actions * inner:
        return "local", (None, actions)
    raise ConfigError(
        f"agent.options.path={path}: was trained on observations of {observation} numbers and "
        f"{actions} actions, which no environment of this version has; train it on a registered id"
    )


def needs(options: Mapping[str, Any]) -> Requires:
    """The environment that the agent in a file was trained in: its actions and its padded size."""
    if "path" not in options:
        return Requires()
    card = read_stock(options["path"])
    sources, strata = card.shape
    size = {"max_sources": sources, "max_strata": strata}
    return Requires(
        action=options.get("action") or card.kind,
        observation="flat" if card.observation is not None else "dict",
        signals=card.observation is None,
        settings={name: value for name, value in size.items() if value is not None},
    )


class StockAgent(Actor):
    """An agent of Stable-Baselines3 with its own policy, driving a run.

    Args:
        env: a vector environment of the padded size that the agent was trained in.
        names: of the sources; not used.
        path: the file that the algorithm's ``save`` wrote.
        action: kind of actions that it was trained with; null: what its space looks like (delta
            and logits look alike, and logits it is).
        unpickle: load the file with the algorithm's own ``load``, which runs whatever code is
            pickled in it: only for files that you trust, of policies that cannot be read otherwise.
        algorithm: with unpickle, ``module:Class`` of the algorithm.

    Raises:
        ConfigError: if the file cannot be read, or does not fit the environment.
    """

    def __init__(
        self,
        env: Any = None,
        names: tuple[str, ...] = (),
        *,
        path: str = "",
        action: str | None = None,
        unpickle: bool = False,
        algorithm: str = "stable_baselines3:PPO",
    ) -> None:
        super().__init__(env)
        if not path:
            raise ConfigError("agent.options.path: give the file of an agent of Stable-Baselines3")
        if env is None:
            raise ConfigError(f"agent.options.path={path}: is loaded in an environment only")
        self.card = read_stock(path)
        self._shape = _shape_in(env, self.card)
        spaces = _spaces(env, self.card, self._shape)
        if unpickle:
            self._policy = load_word(algorithm, f"agent.options.algorithm={algorithm}").load(
                self.card.path, device="cpu"
            )
        else:
            self._policy = _policy(self.card, *spaces)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], State | None]:
        """See :class:`Actor`."""
        if self.card.level == "joint":
            found = self._policy.predict(observation, state, episode_start, deterministic)
            return found[0], found[1]
        flat = np.atleast_2d(observation)
        sources, strata = self._shape
        whole = np.zeros((len(flat), sources * (1 + strata)), np.float32)
        if self.card.level == "global":
            part, state = self._policy.predict(flat, state, episode_start, deterministic)
            whole[:, :sources] = part
        else:
            rows = local_observation(flat, self._shape).reshape(len(flat) * sources, -1)
            starts = None if episode_start is None else np.repeat(episode_start, sources)
            part, state = self._policy.predict(rows, state, starts, deterministic)
            whole[:, sources:] = part.reshape(len(flat), -1)
        return (whole[0] if observation.ndim == 1 else whole), state


def _shape_in(env: Any, card: StockCard) -> tuple[int, int]:
    """(K_max, G_max) of an environment that an agent fits.

    Raises:
        ConfigError: naming both sizes.
    """
    if card.observation is None:
        return 0, 0
    space = env.action_space
    entries = int(space.n) - 1 if hasattr(space, "n") else int(space.shape[0])
    shape = shape_of(env.observation_space.shape[0], entries)
    if any(want not in (None, have) for want, have in zip(card.shape, shape, strict=True)):
        sources, strata = card.shape
        raise ConfigError(
            f"{card.path}: the agent was trained with max_sources={sources}, max_strata={strata}, "
            f"and this environment has {shape[0]} and {shape[1]}; give both the same "
            "environment.max_sources and environment.max_strata"
        )
    return shape


def _spaces(env: Any, card: StockCard, shape: tuple[int, int]) -> "tuple[Space[Any], Space[Any]]":
    """What the agent observes and does in an environment."""
    from gymnasium.spaces import Box

    if card.level == "joint":
        return env.observation_space, env.action_space
    seen = env.observation_space if card.level == "global" else local_space(shape[1])
    return seen, Box(-1.0, 1.0, (card.actions,), np.float32)


def _policy(
    card: StockCard, observation_space: "Space[Any]", action_space: "Space[Any]"
) -> "BasePolicy":
    """The policy of a file, made anew from text and tensors.

    Raises:
        ConfigError: if it is none of Stable-Baselines3's own, or its arguments are pickled.
    """
    import torch
    from stable_baselines3.common.policies import BasePolicy

    advice = (
        "if you trust the file, agent.options.unpickle=true loads it with agent.options.algorithm, "
        "which runs the code pickled in it"
    )
    if not card.policy.startswith(_TRUSTED) or card.arguments is None:
        what = "arguments that are pickled" if card.arguments is None else "a policy of its own"
        raise ConfigError(f"{card.path}: has {what} ({card.policy}); {advice}")
    kind = load_word(card.policy, f"agent.options.path={card.path}")
    if not (inspect.isclass(kind) and issubclass(kind, BasePolicy)):
        raise ConfigError(f"{card.path}: {card.policy} is no policy; {advice}")
    known = inspect.signature(kind).parameters
    rate: dict[str, Any] = {"lr_schedule": lambda _: 0.0} if "lr_schedule" in known else {}
    try:
        with zipfile.ZipFile(card.path) as archive, archive.open(_POLICY) as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        policy: BasePolicy = kind(observation_space, action_space, **rate, **card.arguments)
        policy.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{card.path}: {card.policy} cannot be made of it ({reason})") from None
    policy.set_training_mode(False)
    return policy
