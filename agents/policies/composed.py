"""An agent made of two parts: one decides over sources, the other over strata.

Parts are trained apart or side by side, by any algorithms; either may be missing, which means the
prior. On disk a composed agent is a folder with a card that names its parts, each an exported
policy in a folder of its own: safe to share, as they are.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import Actor, State
from mixgym.agents.policies.export import CARD, FEATURES, WEIGHTS, ExportedPolicy, read_card
from mixgym.envs.errors import ConfigError, MixgymError
from mixgym.envs.levels import Predictor
from mixgym.envs.local_rows import rows_of
from mixgym.envs.observations import shape_of

COMPOSED = "composed"
PARTS = ("global", "local")

Shape = tuple[int, int]


class RowsActing:
    """A policy over rows, one per source, in the place of one that predicts joint actions.

    Args:
        policy: predicts strata [n * K_max, G_max] from rows [n * K_max, local size].
        shape: (K_max, G_max).
    """

    def __init__(self, policy: Any, shape: Shape) -> None:
        self.policy = policy
        self.shape = shape

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """Joint actions [n, K_max + K_max * G_max] with the strata set; sources are left at 0."""
        count, (sources, strata) = len(observation), self.shape
        start = None if episode_start is None else np.repeat(episode_start, sources)
        rows = rows_of(observation, self.shape)
        action, state = self.policy.predict(rows, state, start, deterministic)
        whole = np.zeros((count, sources * (1 + strata)), np.float32)
        whole[:, sources:] = np.asarray(action).reshape(count, -1)
        return whole, state


class Composed(Actor):
    """Two parts that act together.

    Args:
        top: decides over sources: of its actions the first K_max entries count.
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
        memory, inner_memory = tuple(rest[: int(split)]) or None, tuple(rest[int(split) :]) or None
        age = np.where(start, 0, age)
        whole = np.zeros((count, sources * (1 + strata)), np.float32)
        if self.inner is not None:
            whole[:], inner_memory = self.inner.predict(flat, inner_memory, start, deterministic)
        due = age % self.period == 0
        if self.top is not None and due.any():
            held, memory = self._decided(flat, (held, memory), due, start, deterministic)
        whole[:, :sources] = held
        top_arrays, inner_arrays = memory or (), inner_memory or ()
        after: State = (held, age + 1, np.array(len(top_arrays)), *top_arrays, *inner_arrays)
        return (whole[0] if observation.ndim == 1 else whole), after

    def _decided(
        self,
        flat: NDArray[np.float32],
        before: tuple[NDArray[np.float32], Any],
        due: NDArray[np.bool_],
        start: NDArray[np.bool_],
        deterministic: bool,
    ) -> tuple[NDArray[np.float32], Any]:
        """What is held from now on, and the memory of ``top``."""
        assert self.top is not None
        held, memory = before
        action, after = self.top.predict(flat, memory, start, deterministic)
        if after is not None and not due.all():
            raise MixgymError(
                f"a part with a memory decides for {int(due.sum())} of {len(due)} environments: "
                "side by side, episodes have to be of one length; set train.period=1"
            )
        chosen = np.asarray(action, np.float32)[:, : self.shape[0]]
        return np.where(due[:, None], chosen, held), after


def export_composed(
    folder: Path, card: dict[str, Any], parts: Mapping[str, Callable[[Path], None] | None]
) -> None:
    """Write a composed agent.

    Args:
        folder: made if it is not there.
        card: what is known of its training; ``period`` belongs in it.
        parts: by level, who writes the part into a folder that is made; None: the prior.
    """
    named = {level: level if parts.get(level) else None for level in PARTS}
    folder.mkdir(parents=True, exist_ok=True)
    for level in PARTS:
        write = parts.get(level)
        if write is not None:
            write(folder / level)
    whole = {"policy": COMPOSED, "parts": named, "features": FEATURES, **card}
    (folder / CARD).write_text(json.dumps(whole, indent=2) + "\n")


def part_folders(folder: Path) -> dict[str, Path]:
    """The exported policies that an agent is made of, by level; ``joint`` for an undivided one."""
    card = read_card(folder)
    if card.get("policy") != COMPOSED:
        return {card.get("level", "joint"): folder}
    found = {}
    for level, name in _named_parts(folder, card).items():
        for inside, path in part_folders(folder / name).items():
            found[level if inside in (level, "joint") else f"{level}/{inside}"] = path
    return found


def load_agent(
    folder: Path, env: Any = None, *, shape: Shape | None = None, seed: int = 0
) -> Actor:
    """The agent in a folder, whatever it is made of; arguments as of :class:`ExportedPolicy`.

    Raises:
        ConfigError: if there is none, it lacks a part, or neither ``env`` nor ``shape`` is given.
    """
    card = read_card(folder)
    if card.get("policy") != COMPOSED:
        return _alone(folder, card, env, shape, seed)
    if shape is None:
        if env is None:
            raise ConfigError(f"{folder}: a composed agent needs env=... or shape=(K_max, G_max)")
        shape = shape_of(env.observation_space.shape[0], env.action_space.shape[0])
    names = _named_parts(folder, card)
    # a part may itself be an agent for everything; then only its own level counts
    found = {
        level: load_agent(folder / name, shape=shape, seed=seed) for level, name in names.items()
    }
    return Composed(
        found.get("global"), found.get("local"), shape, period=int(card.get("period", 1)), env=env
    )


def _alone(folder: Path, card: dict[str, Any], env: Any, shape: Shape | None, seed: int) -> Actor:
    """An exported policy; one of a single level acts beside the prior."""
    level = card.get("level", "joint")
    if level == "joint":
        return ExportedPolicy(folder, env, shape=shape, seed=seed)
    if shape is None:
        if env is None:
            raise ConfigError(f"{folder}: an exported policy needs env=... or shape=(K_max, G_max)")
        shape = shape_of(env.observation_space.shape[0], env.action_space.shape[0])
    policy = ExportedPolicy(folder, shape=shape, seed=seed)
    if level == "local":
        return Composed(None, RowsActing(policy, shape), shape, env=env)
    return Composed(policy, None, shape, period=int(card.get("period", 1)), env=env)


def _named_parts(folder: Path, card: Mapping[str, Any]) -> dict[str, str]:
    parts = card.get("parts")
    names = {level: name for level, name in (parts or {}).items() if name is not None}
    lacking = [name for name in names.values() if not (folder / name / CARD).is_file()]
    if not names or set(names) - set(PARTS) or lacking:
        what = f"{lacking[0]}/{CARD} is missing" if lacking else f"parts: {parts}"
        raise ConfigError(
            f"{folder / CARD}: names no parts that can be read ({what}); "
            "copy the agent's folder whole, or export it again"
        )
    return names


__all__ = [
    "CARD",
    "COMPOSED",
    "PARTS",
    "WEIGHTS",
    "Composed",
    "RowsActing",
    "export_composed",
    "load_agent",
    "part_folders",
]
