"""HBO as an agent that learns inside one fine-tuning run (Wang et al. 2025).

``predict`` alone adapts: it reads fresh probes from the observation, moves its actors and answers
with their weights. All that it remembers is in ``state``.
"""

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixgym.agents.actor import Actor, State
from mixgym.agents.hbo.inputs import LevelInputs, read_observation, rewards_of
from mixgym.agents.hbo.level import Level, LevelState, chosen, make_actor
from mixgym.agents.hbo.schedule import due
from mixgym.agents.hbo.settings import HboOptions, read_options
from mixgym.agents.rule import Observation
from mixgym.envs.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

NAMES = ("sources", "strata")  # of the two levels, in records
_COUNTERS = 3  # arrays of the state before those of the levels


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
        self._reports: list[
            dict[str, FloatArray]
        ] = []  # of the last call of `predict`, per environment

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
        inputs = read_observation(batch, self.settings)
        memory = self._remember(state, inputs, episode_start)
        memory = self._learn_from(memory, inputs)
        top, inner = (
            level.weights(own, view)
            for level, own, view in zip(self._levels, memory.levels, inputs.views, strict=True)
        )
        flat = [_over_largest(top), _over_largest(inner).reshape(len(top), -1)]
        actions = np.concatenate(flat, axis=-1).astype(np.float32)
        memory = memory.counted()
        return (actions[0] if single else actions), memory.arrays()

    def _remember(
        self, state: State | None, inputs: LevelInputs, episode_start: NDArray[np.bool_] | None
    ) -> "Memory":
        if state is None:
            return self._first(inputs)
        memory = Memory.of(state)
        if episode_start is None or not np.any(episode_start):
            return memory
        return memory.where(np.asarray(episode_start, np.bool_), self._first(inputs))

    def _first(self, inputs: LevelInputs) -> "Memory":
        levels = tuple(
            level.start(view, np.random.default_rng([self.settings.seed, index]))
            for index, (level, view) in enumerate(zip(self._levels, inputs.views, strict=True))
        )
        return Memory(np.zeros(inputs.count), inputs.nll, (levels[0], levels[1]))

    def _learn_from(self, memory: "Memory", inputs: LevelInputs) -> "Memory":
        """Global first, then local, both from measurements of the same model."""
        self._reports = [{} for _ in range(inputs.count)]
        for index, learned in enumerate(self.settings.learned):
            if learned:
                memory = self._update(index, memory, inputs)
        return memory

    def _update(self, index: int, memory: "Memory", inputs: LevelInputs) -> "Memory":
        level, view, old = self._levels[index], inputs.views[index], memory.levels[index]
        when = _due(memory.decisions, level.options.period, self.settings.update_at_start)
        rewards, fresh = rewards_of(inputs, index, level.options, memory.nll[index])
        asked = when & fresh
        if not asked.any():
            return memory
        # a stream per level and decision: nothing to remember, and a resume draws the same
        random = np.random.default_rng([self.settings.seed, index, int(memory.decisions.max())])
        rows = asked.reshape(-1, *[1] * (rewards.ndim - 1))
        new, moved = level.update(old, view, np.where(rows, rewards, np.nan), random)
        before, after = (level.distribution(s.parameters, view) for s in (old, new))
        self._note(index, moved, before, after)
        now = np.where(rows, inputs.nll[index], memory.nll[index])
        return memory.with_level(index, old.where(asked, new), now)

    def _note(self, index: int, moved: FloatArray, before: FloatArray, after: FloatArray) -> None:
        """Keep what moved an actor and how far its log weights went."""
        known = np.isfinite(moved)
        old, new = (np.log(np.maximum(weights, 1e-300)) for weights in (before, after))
        for i, report in enumerate(self._reports):
            if known[i].any():
                report[f"reward_{NAMES[index]}"] = moved[i]
                report[f"change_{NAMES[index]}"] = np.where(known[i], (new - old)[i], np.nan)

    def report(self, index: int, names: tuple[str, ...]) -> dict[str, Any]:
        """Shaped rewards that moved the actors, and how far (``actor`` of a decision's record)."""
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


@dataclass(frozen=True)
class Memory:
    """The state of HBO, per environment.

    Attributes:
        decisions: float64[n], decisions so far.
        nll: float64[n, K] and [n, K, G], held-out NLL at each level's last update.
        levels: states of the global and of the local level.
    """

    decisions: FloatArray
    nll: tuple[FloatArray, FloatArray]
    levels: tuple[LevelState, LevelState]

    def arrays(self) -> State:
        """All of it, in order."""
        return (self.decisions, *self.nll, *self.levels[0].arrays(), *self.levels[1].arrays())

    @classmethod
    def of(cls, arrays: State) -> "Memory":
        """From :meth:`arrays`."""
        rest = arrays[_COUNTERS:]
        half = len(rest) // 2
        levels = (LevelState.of(rest[:half]), LevelState.of(rest[half:]))
        return cls(arrays[0], (arrays[1], arrays[2]), levels)

    def where(self, rows: BoolArray, other: "Memory") -> "Memory":
        """``other`` in the environments ``rows``, this elsewhere."""
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        return Memory.of(tuple(chosen(rows, new, old) for old, new in pairs))

    def with_level(self, index: int, state: LevelState, nll: FloatArray) -> "Memory":
        """A level after its update."""
        if index == 0:
            return replace(self, nll=(nll, self.nll[1]), levels=(state, self.levels[1]))
        return replace(self, nll=(self.nll[0], nll), levels=(self.levels[0], state))

    def counted(self) -> "Memory":
        """One decision later."""
        return replace(self, decisions=self.decisions + 1)


def _due(decisions: FloatArray, period: int, at_start: bool) -> BoolArray:
    return np.array([due(int(count), period, at_start=at_start) for count in decisions], np.bool_)


def _over_largest(weights: FloatArray) -> FloatArray:
    """Weights in [0, 1], as the action kind ``weights`` has them."""
    return weights / np.maximum(weights.max(-1, keepdims=True), 1e-300)


def _named_report(report: dict[str, FloatArray], names: tuple[str, ...]) -> dict[str, Any]:
    """Arrays [K, ...] by the names of the sources; what is not known is left out, or None."""
    found: dict[str, Any] = {}
    for key, values in report.items():
        rows = {name: values[k] for k, name in enumerate(names)}
        found[key] = {name: _plain(row) for name, row in rows.items() if np.isfinite(row).any()}
    return found


def _plain(row: FloatArray) -> Any:
    return [float(v) if np.isfinite(v) else None for v in row] if row.ndim else float(row)


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array, np.float64).tobytes()).decode()
    return {"shape": list(array.shape), "float64": data}


def _unpacked(packed: dict[str, Any]) -> FloatArray:
    raw = np.frombuffer(base64.b64decode(packed["float64"]), np.float64)
    return raw.reshape(packed["shape"]).copy()
