"""An agent made of two parts: one decides over sources, the other over strata.

Parts are trained apart or side by side, by any algorithms; either may be missing, which means the
prior. On disk a composed agent is a folder with a card that names its parts, each an agent in a
folder of its own: safe to share, as they are.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import Actor, State
from mixgym.agents.policies.export import CARD, FEATURES, ExportedPolicy, read_card
from mixgym.envs.errors import ConfigError, MixgymError
from mixgym.envs.levels.predictor import Predictor
from mixgym.envs.spaces.observations import shape_of

_COMPOSED = "composed"
PARTS = ("global", "local")

Shape = tuple[int, int]


class Composed(Actor):
    """Two parts that act together.

    Args:
        top: decides over sources: of its joint actions the first K_max entries count.
        inner: decides over strata: of its joint actions the entries after those.
        shape: (K_max, G_max).
        period: decisions that an answer of ``top`` holds for.
        env: a vector environment with the flat observation, or None to predict only.
    """

    def __init__(
        self,
        top: Predictor | None,
        inner: Predictor | None,
        shape: Shape,
        *,
        period: int = 1,
        env: Any = None,
    ) -> None:
        super().__init__(env)
        self.top = top
        self.inner = inner
        self.shape = shape
        self.period = period

    def predict(
        self,
        observation: NDArray[np.float32],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], State | None]:
        """See :class:`Actor`.

        The state is what is held over sources, for how long already, how many arrays of the rest
        are the memory of ``top``, and the memories of both parts.

        Raises:
            MixgymError: if a part with a memory has to decide for some environments only.
        """
        flat = np.atleast_2d(observation)
        count, (sources, strata) = len(flat), self.shape
        start = np.zeros(count, np.bool_) if episode_start is None else np.asarray(episode_start)
        held, age, split, *rest = state or (
            np.zeros((count, sources), np.float32),
            np.zeros(count, np.int64),
            np.array(0),
        )
        top_memory: Any = tuple(rest[: int(split)]) or None
        inner_memory: Any = tuple(rest[int(split) :]) or None
        age = np.where(start, 0, age)
        due = age % self.period == 0
        whole = np.zeros((count, sources * (1 + strata)), np.float32)
        if self.inner is not None:
            whole[:], inner_memory = self.inner.predict(flat, inner_memory, start, deterministic)
        if self.top is not None and due.any():
            action, top_memory = self.top.predict(flat, top_memory, start, deterministic)
            _check_memory(top_memory, due)
            held = np.where(due[:, None], np.asarray(action, np.float32)[:, :sources], held)
        whole[:, :sources] = held
        memories = (*(top_memory or ()), *(inner_memory or ()))
        after: State = (held, age + 1, np.array(len(top_memory or ())), *memories)
        return (whole[0] if observation.ndim == 1 else whole), after


def _check_memory(memory: Any, due: NDArray[np.bool_]) -> None:
    if memory is not None and not due.all():
        raise MixgymError(
            f"a part with a memory decides for {int(due.sum())} of {len(due)} environments: "
            "side by side, episodes have to be of one length; set train.period=1"
        )


def export_composed(
    folder: Path, card: dict[str, Any], parts: Mapping[str, Callable[[Path], Any] | None]
) -> None:
    """Write a composed agent.

    Args:
        folder: made if it is not there.
        card: what is known of its training; ``period`` belongs in it.
        parts: by level, who writes the part into the folder that it is given; None: the prior.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named: dict[str, str | None] = dict.fromkeys(PARTS)
    for level in PARTS:
        write = parts.get(level)
        if write is not None:
            write(folder / level)
            named[level] = level
    whole = {"policy": _COMPOSED, "parts": named, "features": FEATURES, **card}
    (folder / CARD).write_text(json.dumps(whole, indent=2) + "\n")


def policy_folders(folder: Path) -> dict[str, Path]:
    """The exported policies that an agent is made of, by their place in it.

    An undivided agent has one, at ``""``.

    Raises:
        ConfigError: see :func:`load_agent`.
    """
    card = read_card(folder)
    if card["policy"] != _COMPOSED:
        return {"": folder}
    return {
        f"{name}/{place}".strip("/"): path
        for name in _parts(folder, card).values()
        for place, path in policy_folders(folder / name).items()
    }


def load_agent(
    folder: Path, env: Any = None, *, shape: Shape | None = None, seed: int = 0
) -> Actor:
    """The agent in a folder, undivided or composed; arguments as of :class:`ExportedPolicy`.

    Raises:
        ConfigError: if there is none, it lacks a part, or neither ``env`` nor ``shape`` is given.
    """
    card = read_card(folder)
    if card["policy"] != _COMPOSED:
        return ExportedPolicy(folder, env, shape=shape, seed=seed)
    if shape is None and env is None:
        raise ConfigError(f"{folder}: a composed agent needs env=... or shape=(K_max, G_max)")
    if shape is None:
        shape = shape_of(env.observation_space.shape[0], env.action_space.shape[0])
    parts: dict[str, Any] = {
        level: load_agent(folder / name, shape=shape, seed=seed)
        for level, name in _parts(folder, card).items()
    }
    period = int(card.get("period", 1))
    return Composed(parts.get("global"), parts.get("local"), shape, period=period, env=env)


def _parts(folder: Path, card: Mapping[str, Any]) -> dict[str, str]:
    """Level -> folder of the part."""
    parts = card.get("parts")
    names = {level: str(name) for level, name in (parts or {}).items() if name is not None}
    lacking = [name for name in names.values() if not (folder / name / CARD).is_file()]
    if not names or set(names) - set(PARTS) or lacking:
        what = f"{lacking[0]}/{CARD} is missing" if lacking else f"parts: {parts}"
        raise ConfigError(
            f"{folder / CARD}: names no parts that can be read ({what}); "
            "copy the agent's folder whole, or export it again"
        )
    return names
