"""HBO as an agent that learns inside one fine-tuning run (Wang et al. 2025).

``predict`` alone adapts: it reads fresh probes from the observation, moves its actors and answers
with their weights. All that it remembers is in ``state``.
"""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import Actor, State
from mixgym.agents.hbo.level import Level, LevelState, divergence, make_actor
from mixgym.agents.hbo.reading import Reading, read_observation, rewards_of
from mixgym.agents.hbo.schedule import due
from mixgym.agents.hbo.settings import HboOptions, read_options
from mixgym.agents.rule import Observation
from mixgym.envs.mixture import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

NAMES = ("global", "local")
COUNTERS = 3  # arrays of the state before those of the levels


class Hbo(Actor):
    """A global actor over the sources, and local ones over the strata of each source.

    Args:
        env: a vector environment with the Dict observation and the probes that
            :func:`mixgym.agents.hbo.settings.needs` names, or None to predict only.
        names: of the sources, in order; kept for people who read a saved agent.
        options: see :class:`mixgym.agents.hbo.settings.HboOptions`; they go on top of ``preset``.

    Raises:
        ConfigError: for options that will not do.
    """

    def __init__(
        self, env: "VecEnv | None" = None, names: tuple[str, ...] = (), **options: Any
    ) -> None:
        super().__init__(env)
        self.names = tuple(names)
        self.given = options
        self.settings: HboOptions = read_options(options)
        top, inner = self.settings.global_, self.settings.local
        self._levels = (
            Level(top, make_actor(top, "global")),
            Level(inner, make_actor(inner, "local"), inner.shared),
        )
        self._reports: list[dict[str, Any]] = []  # of the last call of `predict`, per environment

    def predict(
        self,
        observation: Observation,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], State | None]:
        """Weights for one or several environments; see :class:`mixgym.agents.actor.Actor`.

        Args:
            observation: the Dict observation with ``probe/<name>`` parts.
            state: what the last call returned, and left as it is; None at the start.
            episode_start: bool[n], where memory is cleared.
            deterministic: ignored: the answer is a distribution, and nothing is sampled.
        """
        single = observation["signals"].ndim == 1
        batch = {name: values[None] if single else values for name, values in observation.items()}
        reading = read_observation(batch, self.settings)
        memory = self._remember(state, reading, episode_start)
        memory = self._learn_from(memory, reading)
        top, inner = (
            level.weights(own, view)
            for level, own, view in zip(self._levels, memory.levels, reading.views, strict=True)
        )
        flat = [_over_largest(top), _over_largest(inner).reshape(len(top), -1)]
        actions = np.concatenate(flat, axis=-1).astype(np.float32)
        memory = memory.counted()
        return (actions[0] if single else actions), memory.arrays()

    def _remember(
        self, state: State | None, reading: Reading, episode_start: NDArray[np.bool_] | None
    ) -> "Memory":
        if state is None:
            return self._first(reading)
        memory = Memory.of(state)
        if episode_start is None or not np.any(episode_start):
            return memory
        return memory.where(np.asarray(episode_start, np.bool_), self._first(reading))

    def _first(self, reading: Reading) -> "Memory":
        levels = tuple(
            level.start(view, np.random.default_rng([self.settings.seed, index]))
            for index, (level, view) in enumerate(zip(self._levels, reading.views, strict=True))
        )
        return Memory(
            np.zeros(reading.count), reading.source_nll, reading.cell_nll, (levels[0], levels[1])
        )

    def _learn_from(self, memory: "Memory", reading: Reading) -> "Memory":
        """Global first, then local, both from measurements of the same model."""
        self._reports = [{} for _ in range(reading.count)]
        states = list(memory.levels)
        before = [memory.source_nll, memory.cell_nll]
        for index, level in enumerate(self._levels):
            if not self.settings.learned[index]:
                continue
            when = _due(memory.decisions, level.options.period, self.settings.update_at_start)
            rewards, fresh = rewards_of(reading, index, level.options, before[index])
            asked = when & fresh
            if not asked.any():
                continue
            rewards = np.where(asked.reshape(-1, *[1] * (rewards.ndim - 1)), rewards, np.nan)
            # a stream per level and decision: nothing to remember, and a resume draws the same
            key = [self.settings.seed, index, int(memory.decisions.max())]
            view, old = reading.views[index], states[index]
            new, moved = level.update(old, view, rewards, np.random.default_rng(key))
            self._report(
                index,
                level.distribution(old.parameters, view),
                level.distribution(new.parameters, view),
                moved,
            )
            states[index] = old.where(asked, new)
            now = (reading.source_nll, reading.cell_nll)[index]
            before[index] = np.where(asked.reshape(-1, *[1] * (now.ndim - 1)), now, before[index])
        return Memory(memory.decisions, before[0], before[1], (states[0], states[1]))

    def _report(self, index: int, old: FloatArray, new: FloatArray, moved: FloatArray) -> None:
        """Keep what moved an actor and how far, for the records."""
        for i, report in enumerate(self._reports):
            if np.isfinite(moved[i]).any():
                report[f"{NAMES[index]}_rewards"] = moved[i]
                report[f"{NAMES[index]}_kl"] = divergence(new[i], old[i])

    def report(self, index: int, names: tuple[str, ...]) -> dict[str, Any]:
        """Shaped rewards that moved the actors, and how far: see :mod:`mixgym.envs.records`."""
        return _named_report(self._reports[index], names)

    def save(self, path: str | Path) -> None:
        """Write options as JSON, and beside them what was learned as safetensors; no pickle."""
        path = Path(path)
        card = {"agent": "hbo", "names": list(self.names), "options": self.given}
        path.write_text(json.dumps(card, indent=2) + "\n")
        if self._state is not None:
            from safetensors.numpy import save_file

            arrays = {f"{i:02d}": np.ascontiguousarray(a) for i, a in enumerate(self._state)}
            save_file(arrays, path.with_suffix(".safetensors"))

    @classmethod
    def load(cls, path: str | Path, env: "VecEnv | None" = None) -> "Hbo":
        """Read what :meth:`save` wrote; :meth:`learn` continues from what was learned.

        Raises:
            ValueError: if the file holds another agent.
        """
        path = Path(path)
        card = json.loads(path.read_text())
        if card.get("agent") != "hbo":
            raise ValueError(f"{path}: holds no HBO agent")
        agent = cls(env, tuple(card["names"]), **card["options"])
        learned = path.with_suffix(".safetensors")
        if learned.is_file():
            from safetensors.numpy import load_file

            arrays = load_file(learned)
            agent._state = tuple(arrays[name] for name in sorted(arrays))
        return agent

    def memory(self) -> list[Any] | None:
        """The state of :meth:`learn` as plain data: bytes as text, since actors may be large."""
        return None if self._state is None else [_packed(array) for array in self._state]

    def set_memory(self, memory: list[Any] | None) -> None:
        """Continue from :meth:`memory`."""
        self._state = None if memory is None else tuple(map(_unpacked, memory))


def released(env: "VecEnv | None" = None, names: tuple[str, ...] = (), **options: Any) -> Hbo:
    """HBO on top of the preset ``released``."""
    return Hbo(env, names, **{"preset": "released", **options})


def paper(env: "VecEnv | None" = None, names: tuple[str, ...] = (), **options: Any) -> Hbo:
    """HBO on top of the preset ``paper``."""
    return Hbo(env, names, **{"preset": "paper", **options})


def closed_form(env: "VecEnv | None" = None, names: tuple[str, ...] = (), **options: Any) -> Hbo:
    """HBO on top of the preset ``closed_form``: no actor to speak of."""
    return Hbo(env, names, **{"preset": "closed_form", **options})


class Memory:
    """The state of HBO, per environment.

    Args:
        decisions: float64[n], decisions so far.
        source_nll, cell_nll: float64[n, K] and [n, K, G], held-out NLL at each level's last update.
        levels: states of the global and of the local level.
    """

    def __init__(
        self,
        decisions: FloatArray,
        source_nll: FloatArray,
        cell_nll: FloatArray,
        levels: tuple[LevelState, LevelState],
    ) -> None:
        self.decisions, self.source_nll, self.cell_nll = decisions, source_nll, cell_nll
        self.levels = levels

    def arrays(self) -> State:
        """All of it, in order."""
        first = (self.decisions, self.source_nll, self.cell_nll)
        return (*first, *self.levels[0].arrays(), *self.levels[1].arrays())

    @classmethod
    def of(cls, arrays: State) -> "Memory":
        """From :meth:`arrays`."""
        rest = arrays[COUNTERS:]
        half = len(rest) // 2
        levels = (LevelState.of(rest[:half]), LevelState.of(rest[half:]))
        return cls(arrays[0], arrays[1], arrays[2], levels)

    def where(self, rows: BoolArray, other: "Memory") -> "Memory":
        """``other`` in the environments ``rows``, this elsewhere."""
        return Memory.of(
            tuple(
                np.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for old, new in zip(self.arrays(), other.arrays(), strict=True)
            )
        )

    def counted(self) -> "Memory":
        """One decision later."""
        return Memory(self.decisions + 1, self.source_nll, self.cell_nll, self.levels)


def _due(decisions: FloatArray, period: int, at_start: bool) -> BoolArray:
    return np.array([due(int(count), period, at_start=at_start) for count in decisions], np.bool_)


def _over_largest(weights: FloatArray) -> FloatArray:
    """Weights in [0, 1], as the action kind ``weights`` has them."""
    return weights / np.maximum(weights.max(-1, keepdims=True), 1e-300)


def _named_report(report: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Arrays by the names of the sources; unknown entries are left out."""
    found: dict[str, Any] = {}
    for key, values in report.items():
        if key == "global_kl":
            found[key] = float(values)
            continue
        rows = {name: values[k] for k, name in enumerate(names)}
        found[key] = {
            name: row.tolist() if np.ndim(row) else float(row)
            for name, row in rows.items()
            if np.isfinite(row).all()
        }
    return found


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array, np.float64).tobytes()).decode()
    return {"shape": list(array.shape), "float64": data}


def _unpacked(packed: dict[str, Any]) -> FloatArray:
    raw = np.frombuffer(base64.b64decode(packed["float64"]), np.float64)
    return raw.reshape(packed["shape"]).copy()
