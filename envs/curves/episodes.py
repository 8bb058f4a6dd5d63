"""What the episodes of a batch of closed-form environments are drawn from, and what they hold."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.curves.dynamics import CurveState
from mixgym.envs.curves.held_out import HeldOutNoise, relative_errors
from mixgym.envs.curves.task_tables import TaskTable
from mixgym.envs.rewards import arm_draws
from mixgym.envs.spaces.actions import Levels

_STATE = tuple(field.name for field in fields(CurveState))

Seeds = int | Sequence[int | None]
"""One for all environments, the i-th of which gets ``seed + i``; or one each."""


@dataclass(frozen=True)
class Episodes:
    """Of n environments; arrays are replaced and never written to, as records hold on to them.

    Attributes:
        decision: int64[n], decisions so far.
        reward: float64[n], of the last one.
        supervised: float64[n], tokens so far, rounded in every interval.
        asked, weight: float64[n, K], the weights of sources that were asked for, and trained on.
        inner: float64[n, K, G], weights of strata.
        share: float64[n, K], realised so far.
        train, cell_train: float64[n, K], [n, K, G], training NLL; NaN where nothing was trained.
        start, before, now: float64[n, K, G], held-out NLL as measured.
        given, fresh, learnt, recent, shown, time, heat: see
            :class:`~mixgym.envs.curves.dynamics.CurveState`.
    """

    decision: NDArray[np.int64]
    reward: FloatArray
    supervised: FloatArray
    asked: FloatArray
    weight: FloatArray
    inner: FloatArray
    share: FloatArray
    train: FloatArray
    cell_train: FloatArray
    start: FloatArray
    before: FloatArray
    now: FloatArray
    given: FloatArray
    fresh: FloatArray
    learnt: FloatArray
    recent: FloatArray
    shown: FloatArray
    time: FloatArray
    heat: FloatArray

    @classmethod
    def begun(cls, prior: Levels, state: CurveState) -> "Episodes":
        """Before the first decision and any measurement; the mixture is the prior."""
        top, inner = prior
        nothing, cells = np.zeros_like(top), np.zeros_like(inner)
        return cls(
            decision=np.zeros(len(top), np.int64),
            reward=np.zeros(len(top)),
            supervised=np.zeros(len(top)),
            asked=top,
            weight=top,
            inner=inner,
            share=nothing,
            train=np.full_like(top, np.nan),
            cell_train=np.full_like(inner, np.nan),
            start=cells,
            before=cells,
            now=cells,
            **vars(state),
        )

    @property
    def state(self) -> CurveState:
        """What has been trained so far."""
        return CurveState(*(getattr(self, name) for name in _STATE))

    def replaced(self, where: BoolArray, others: "Episodes") -> "Episodes":
        """These, and the ``others`` where bool[n] says so."""
        ours, theirs = vars(self), vars(others)
        return Episodes(**{n: over(where, theirs[n], ours[n]) for n in ours})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies by name, of which :meth:`of` makes the same again."""
        return {name: values.copy() for name, values in vars(self).items()}

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> "Episodes":
        """The opposite of :meth:`arrays`; other names are left alone."""
        return cls(**{field.name: np.array(arrays[field.name]) for field in fields(cls)})


def over(where: BoolArray, ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
    """``ours`` [n, ...] where bool[n] says so, ``theirs`` elsewhere."""
    return np.where(where.reshape(-1, *[1] * (ours.ndim - 1)), ours, theirs)


class Draws:
    """The streams of a batch: which task and which noise every episode gets.

    Args:
        table: the tasks that there are.
        decisions: in an episode.
        shape: (K_max, G_max).
        seed: of environment 0; environment i has ``seed + i``.
        count: environments.
        in_order: give environment i the tasks i, i + count, ... instead of random ones.
        group: so many neighbours have the seed of the first one, and meet the same episodes.

    Attributes:
        task: int[n], places of the tasks of this moment in the table.
    """

    def __init__(
        self,
        table: TaskTable,
        decisions: int,
        shape: tuple[int, int],
        *,
        seed: int,
        count: int,
        in_order: bool,
        group: int = 1,
    ) -> None:
        self._table, self._decisions, self._in_order = table, decisions, in_order
        self._group = group
        self._random = [np_random(seed + i // group)[0] for i in range(count)]
        self._number = np.zeros(count, np.int64)  # of the next episode
        self.task = np.zeros(count, np.intp)
        self._off = np.ones((count, decisions + 1, *shape))
        self._arms = np.zeros((count, decisions + 1, shape[0] + 1))
        self._rows = np.arange(count)
        self._streams = HeldOutNoise()

    def seed(self, seed: Seeds) -> None:
        """Start the streams of the next episodes anew; those whose seed is None go on."""
        count = len(self._random)
        own = [i // self._group for i in range(count)]
        seeds = [seed + i for i in own] if isinstance(seed, int) else seed
        for i, given in enumerate(seeds):
            if given is not None:
                self._random[i] = np_random(given)[0]
                self._number[i] = 0

    def draw(self, which: NDArray[np.intp], *, arms: bool) -> list[tuple[int, tuple[int, int]]]:
        """Draw the next episodes of the environments ``which``; absent cells have no noise.

        Args:
            which: int[m], environments.
            arms: whether the reward draws too.

        Returns:
            The seed of each episode, and the (K, G) of its task.
        """
        moving = np.zeros((len(which), *self._off.shape[1:]))
        staying = np.zeros((len(which), 1, *self._off.shape[2:]))
        drawn = [
            self._draw(i, own, stay[0], arms)
            for i, own, stay in zip(which.tolist(), moving, staying, strict=True)
        ]
        task = self.task[which]
        noise, stays = self._table.noise[task][:, None], self._table.stays[task]
        errors = relative_errors(moving, staying, noise, stays[:, None, None, None])
        self._off[which] = 1.0 + errors
        return drawn

    def _draw(
        self, index: int, moving: FloatArray, staying: FloatArray, arms: bool
    ) -> tuple[int, tuple[int, int]]:
        """One of them; normal numbers go into ``moving`` and ``staying``."""
        episode = int(self._random[index].integers(2**31))
        order = index + int(self._number[index]) * len(self._random)
        task = (order if self._in_order else episode) % len(self._table.shapes)
        rows, groups = self._table.shapes[task]
        normal = self._streams.draw(episode, len(moving), (rows, groups))
        moving[:, :rows, :groups], staying[:rows, :groups] = normal
        if arms:
            self._arms[index, 1:, : rows + 1] = arm_draws(episode, self._decisions, rows)
        self.task[index] = task
        self._number[index] += 1
        return episode, (rows, groups)

    def off_at(self, decision: NDArray[np.int64]) -> FloatArray:
        """float64[n, K, G], by how much losses measured after these decisions are multiplied."""
        return self._at(self._off, decision)

    def arms_at(self, decision: NDArray[np.int64]) -> FloatArray:
        """float64[n, K + 1], uniform numbers of these decisions."""
        return self._at(self._arms, decision)

    def _at(self, values: FloatArray, decision: NDArray[np.int64]) -> FloatArray:
        """What each environment has at its decision; the last one's for those that have ended."""
        return values[self._rows, np.minimum(decision, self._decisions)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies by name, from which :meth:`set_state` continues."""
        return {
            "off": self._off.copy(),
            "draws": self._arms.copy(),
            "number": self._number.copy(),
            "index": self.task.copy(),
        }

    def random_state(self) -> list[Any]:
        """States of the streams."""
        return [random.bit_generator.state for random in self._random]

    def set_state(self, arrays: dict[str, Any], random: list[Any]) -> None:
        """Continue from :meth:`arrays` and :meth:`random_state`."""
        self._off, self._arms = np.array(arrays["off"]), np.array(arrays["draws"])
        self._number, self.task = np.array(arrays["number"]), np.array(arrays["index"])
        for own, state in zip(self._random, random, strict=True):
            own.bit_generator.state = state
