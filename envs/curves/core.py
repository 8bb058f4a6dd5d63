"""The core of the fast world: all environments as arrays; a single one is a batch of one."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.curves.batch_actions import BatchFrame, decode_batch
from mixgym.envs.curves.batch_probes import BatchProbes
from mixgym.envs.curves.batch_records import Decision, StepArrays
from mixgym.envs.curves.batch_rewards import BatchRewards
from mixgym.envs.curves.batch_tilt import BatchTilt
from mixgym.envs.curves.dynamics import CurveState, advance, mastery, nll, passes
from mixgym.envs.curves.noise import EpisodeNoise
from mixgym.envs.curves.probes import Seen, reference_losses
from mixgym.envs.curves.task import (
    MAX_SOURCES,
    MAX_STRATA,
    CurveTask,
    stacked,
    tokens_per_step,
)
from mixgym.envs.curves.task_tables import priors, scales
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BACKWARD
from mixgym.envs.rewards import Reward, RewardInput
from mixgym.envs.spaces.actions import make_action_kind
from mixgym.envs.spaces.mixture import floored, last_sum
from mixgym.envs.spaces.observations import (
    Fixed,
    View,
    clipped_to_bounds,
    dict_observation,
    dict_space,
    features,
    fixed_parts,
    flat_space,
)

DECISIONS = 32
"""Decisions in an episode."""

CHANGING = (
    "_decision",
    "_reward",
    "_share",
    "_train",
    "_weight",
    "_inner",
    "_cell_train",
    "_asked",
)
"""Arrays of an episode that every decision replaces."""


class CurvesCore:
    """The arrays of ``count`` environments and how they move.

    Environment i does what a single ``mixgym/Mixture-v0`` does that was reset with ``seed + i``:
    its own stream gives a seed for every episode, and that seed the task and the noise.

    Args:
        count: environments.
        tasks: to draw from at every reset: seeds, or tasks themselves.
        options: action kind, observation, floor, reach, prior, padding.
        seed: of the order in which tasks are drawn, and of measurement noise.
        decisions: in an episode.
        interval: steps between two decisions (the budget is whole tokens in a step).
        in_order: give environment i the tasks i, i + count, ... instead of random ones.
        bilevel: how step rule ``bilevel`` learns its weights, if that is the rule.

    Raises:
        ConfigError: for options that only the single environment has, or too little padding.
    """

    def __init__(
        self,
        count: int,
        tasks: Sequence[int | CurveTask],
        options: EnvironmentOptions,
        *,
        seed: int = 0,
        decisions: int = DECISIONS,
        interval: int = 1,
        in_order: bool = False,
        bilevel: BilevelOptions | None = None,
    ) -> None:
        self.count = count
        self.options = options
        self.shape = (options.max_sources or MAX_SOURCES, options.max_strata or MAX_STRATA)
        self.decisions = decisions
        self._payment = BatchRewards(options, count, decisions, self.shape[0])
        self._probes = BatchProbes(options, count, self.shape, decisions)
        self._tilt: BatchTilt | None = None
        if options.step_rule == "bilevel":
            self._tilt = BatchTilt(bilevel or BilevelOptions(), count, self.shape[0], decisions)
        self._in_order = in_order
        self._tasks = stacked(tasks, *self.shape)
        self._budget = interval * tokens_per_step(self._tasks, interval * decisions)
        self._prior, self._inner_prior = priors(self._tasks, options)
        top, inner = scales(self._tasks, options.reach)
        self._scales = (top[:, None], inner[:, None, None])
        present = self._tasks.present
        self._own = np.stack([present.any(-1).sum(-1), present.any(-2).sum(-1)], -1).tolist()
        self._floored = (
            floored(self._prior, np.asarray(present.any(-1)), options.floor),
            floored(self._inner_prior, present, options.floor),
        )
        self._references: Sequence[FloatArray | None] = (None, None)
        if options.reference is not None or "excess_loss" in self._probes.names:
            self._references = reference_losses(self._tasks)
        self._last: StepArrays | None = None
        self._episode_noise = EpisodeNoise()
        self._allocate()
        self._fixed: Fixed | None = None
        self.seed(seed)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of one environment."""
        flat = self.options.observation == "flat"
        costs, probes = self.options.costs, self._probes.names
        return flat_space(self.shape, costs) if flat else dict_space(self.shape, probes, costs)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return make_action_kind(
            self.options.action,
            floor=self.options.floor,
            reach=self.options.reach,
            step=self.options.step,
        ).space(self.shape)

    def _allocate(self) -> None:
        cells, rows = (self.count, *self.shape), (self.count, self.shape[0])
        self._noise = np.zeros((self.count, self.decisions + 1, *self.shape))
        self._state = CurveState(np.zeros(cells), np.zeros(cells))
        self._decision = np.zeros(self.count, np.int64)
        self._reward, self._share = np.zeros(self.count), np.zeros(rows)
        self._train, self._weight, self._inner = np.zeros(rows), np.zeros(rows), np.zeros(cells)
        self._asked = np.zeros(rows)
        self._start, self._before, self._now = (np.zeros(cells) for _ in range(3))
        self._cell_train = np.full(cells, np.nan)

    def seed(self, seed: int | Sequence[int | None]) -> None:
        """Start the streams anew: from ``seed + i``, or each from its own (None: from entropy)."""
        seeds = [seed + i for i in range(self.count)] if isinstance(seed, int) else seed
        self._random = [np_random(own)[0] for own in seeds]
        self._episodes = np.zeros(self.count, np.int64)
        self._index = np.zeros(self.count, np.intp)

    def reset(self, which: NDArray[np.intp] | None = None) -> None:
        """Draw new tasks for the environments ``which`` (all if None)."""
        which = np.arange(self.count) if which is None else which
        self._draw(which)
        self._look_up()
        given, learnt = self._state.given.copy(), self._state.learnt.copy()
        given[which] = learnt[which] = 0.0
        self._state = CurveState(given, learnt)
        for name in CHANGING:
            setattr(self, name, getattr(self, name).copy())  # records still hold the old arrays
        self._start, self._before, self._now = map(np.copy, (self._start, self._before, self._now))
        self._decision[which] = 0
        self._reward[which] = 0.0
        self._share[which] = 0.0
        self._train[which] = self._cell_train[which] = np.nan
        self._weight[which] = self._asked[which] = self._prior[self._index[which]]
        self._inner[which] = self._inner_prior[self._index[which]]
        self._find_truth()
        measured = self._measure()
        for values in (self._start, self._before, self._now):
            values[which] = measured[which]
        self._sum_up()
        if self._probes.names:
            self._probes.start(which, self._seen())
        if self._tilt is not None:
            self._tilt.reset(which)

    def _draw(self, which: NDArray[np.intp]) -> None:
        """New tasks, and the noise of their episodes; absent cells have none."""
        self._noise[which] = 0.0
        for i in which.tolist():
            episode = int(self._random[i].integers(2**31))
            number = i + int(self._episodes[i]) * self.count if self._in_order else episode
            index = number % len(self._own)
            rows, groups = self._own[index]
            noise = self._episode_noise.start(episode).standard_normal(
                (self.decisions + 1, rows, groups)
            )
            self._noise[i, :, :rows, :groups] = noise * self._tasks.noise[index]
            self._probes.draw(i, episode, (rows, groups))
            self._payment.draw(i, episode, rows)
            self._index[i] = index
        self._episodes[which] += 1

    def _find_truth(self) -> None:
        """Mastery and NLL without noise; the next step needs them again."""
        self._known = mastery(self.task, self._state)
        self._true = nll(self.task, self._state, self._known)

    def _sum_up(self) -> None:
        """What follows from the measurements, by source."""
        self._now_source = self._by_source(self._now)
        self._before_source = self._by_source(self._before)
        self._start_source = self._by_source(self._start)

    def step(self, actions: NDArray[np.float32]) -> tuple[FloatArray, BoolArray]:
        """Move all environments; returns rewards float64[n] and dones bool[n]."""
        self._asked, inner = self._decode(actions)
        weight = self._asked if self._tilt is None else self._tilt.tilt(self._asked)
        if self._tilt is not None:
            self._tilt.learn(self._seen(), self._asked, self._decision)
        tokens = self._per_decision * weight[..., None] * inner
        true_before = self._true
        self._state = advance(self.task, self._state, tokens, self._known)
        self._find_truth()
        self._decision = self._decision + 1
        self._before, before = self._now, self._now_source
        self._now = self._measure()
        self._now_source = after = self._by_source(self._now)
        self._before_source = before
        middle = 0.5 * (true_before + self._true)
        self._train = np.where(weight > 0, last_sum(middle * inner), self._train)
        self._share = self._share + (weight - self._share) / self._decision[:, None]
        self._weight, self._inner = weight, inner
        self._note_cells(np.where(tokens > 0, middle, np.nan))
        reward = self._pay(before, after)
        self._reward = np.asarray(reward.value)
        self._last = StepArrays(
            weight,
            inner,
            after,
            reward.local,
            self._reward,
            self._decision,
            self._state.given,
            self._present,
            reward.components,
            self._probes.fresh(),
        )
        return self._reward, self._decision >= self.decisions

    def _note_cells(self, trained: FloatArray) -> None:
        """Book the training NLL of every cell (NaN: not trained), and probe what is due."""
        self._cell_train = np.where(np.isnan(trained), self._cell_train, trained)
        if self._probes.names:
            start = np.where(self._present, self._start, np.nan)
            gains = None if self._tilt is None else self._tilt.gains
            self._probes.take(self._seen(), self._decision, trained, start, gains)

    def _seen(self) -> Seen:
        return Seen(self.task, self._state, self._known, self._reference_train)

    def _pay(self, before: FloatArray, after: FloatArray) -> Reward:
        """The rewards of the last decision of all environments."""
        epochs = None
        if self.options.penalties.epochs:
            size = np.maximum(last_sum(self.task.size), 1e-12)
            epochs = last_sum(passes(self.task, self._state) * self.task.size) / size
        seen = RewardInput(
            before=before,
            after=after,
            targets=self.task.targets,
            start=self._start_source,
            weight=self._weight,
            strata=self._inner,
            prior=self._prior[self._index],
            prior_strata=self._inner_prior[self._index],
            probe_cost=self._probes.tokens / (BACKWARD * self._per_decision[:, 0, 0]),
            epochs=epochs,
        )
        return self._payment.reward(seen, self._probes.values, self._decision)

    def observe(self) -> Any:
        """Observations of all environments: an array [n, size], or a dict of them."""
        if self._fixed is None:
            self._fixed = fixed_parts(self._view(), self.shape)
        if self.options.observation == "flat":
            return clipped_to_bounds(features(self._view(), self.shape))
        return dict_observation(self._view(), self.shape)[0]

    def records(self) -> list[Decision]:
        """The record of every environment's last decision."""
        assert self._last is not None
        last = self._last
        return [Decision(last, i) for i in range(self.count)]

    def final_nll(self) -> FloatArray:
        """float64[n, K], NLL per source without measurement noise; NaN for absent ones."""
        values = self._by_source(nll(self.task, self._state))
        return np.where(self._sources, values, np.nan)

    def start_nll(self) -> FloatArray:
        """float64[n, K], the same before training."""
        values = self._by_source(nll(self.task, CurveState.start(self.task)))
        return np.where(self._sources, values, np.nan)

    def state(self) -> dict[str, Any]:
        """Plain data and arrays from which :meth:`set_state` continues bit-equal."""
        names = (*CHANGING, "_noise")
        arrays = {name: getattr(self, name).copy() for name in names}
        arrays |= {name: getattr(self, name).copy() for name in ("_start", "_before", "_now")}
        arrays |= {"_episodes": self._episodes.copy(), "_index": self._index.copy()}
        arrays |= {"given": self._state.given.copy(), "learnt": self._state.learnt.copy()}
        arrays |= {"draws": self._payment.draws.copy()}
        random = [r.bit_generator.state for r in self._random]
        state = {"arrays": arrays, "random": random, "probes": self._probes.state()}
        return state if self._tilt is None else {**state, "bilevel": self._tilt.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        arrays = {name: np.array(values) for name, values in state["arrays"].items()}
        self._state = CurveState(arrays.pop("given"), arrays.pop("learnt"))
        self._payment.draws = arrays.pop("draws")
        for name, values in arrays.items():
            setattr(self, name, values)
        for random, own in zip(self._random, state["random"], strict=True):
            random.bit_generator.state = own
        self._probes.set_state(state["probes"])
        if self._tilt is not None:
            self._tilt.set_state(state["bilevel"])
        self._look_up()
        self._find_truth()
        self._sum_up()

    def _look_up(self) -> None:
        """What the tasks of this moment have in constants."""
        self.task = self._tasks.pick(self._index)
        self._present = self.task.present
        self._sources: BoolArray = np.asarray(self._present.any(-1))
        self._cell_mean = self._present / np.maximum(self._present.sum(-1, keepdims=True), 1)
        self._target_weights = self.task.targets / self.task.targets.sum(-1, keepdims=True)
        self._base = [prior[self._index] for prior in self._floored]
        self._scale = [scale[self._index] for scale in self._scales]
        self._per_decision = self._budget[self._index][:, None, None]
        self._reference_held_out, self._reference_train = (
            None if known is None else known[self._index] for known in self._references
        )
        self._fixed = None

    def _decode(self, actions: NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
        """Weights float64[n, K] of sources, and float64[n, K, G] of the strata in each."""
        frame = BatchFrame(
            (self._prior[self._index], self._inner_prior[self._index]),
            (self._base[0], self._base[1]),
            (self._scale[0], self._scale[1]),
            (self._asked, self._inner),
            self._present,
        )
        return decode_batch(actions, self.options, frame)

    def _measure(self) -> FloatArray:
        """float64[n, K, G], NLL as measured now."""
        return self._true * (1.0 + self._noise[np.arange(self.count), self._decision])

    def _by_source(self, cells: FloatArray) -> FloatArray:
        """float64[n, K], mean over the strata that exist."""
        return last_sum(cells * self._cell_mean)

    def _view(self) -> View:
        weights, reference = self._target_weights, self._reference_held_out
        now, before, start = self._now_source, self._before_source, self._start_source
        return View(
            remaining=1.0 - self._decision / self.decisions,
            reward=self._reward,
            targets=self.task.targets,
            prior=self._prior[self._index],
            weight=self._weight,
            share=self._share,
            nll=now,
            nll_before=before,
            nll_start=start,
            nll_train=self._train,
            mean_nll=last_sum(now * weights),
            mean_nll_start=last_sum(start * weights),
            cell_size=self.task.size,
            cell_prior=self._inner_prior[self._index],
            cell_weight=self._inner,
            cell_epochs=passes(self.task, self._state),
            cell_nll=self._now,
            cell_nll_before=self._before,
            cell_nll_start=self._start,
            available=self._present,
            present=self._sources,
            fixed=self._fixed,
            nll_reference=None if reference is None else self._by_source(reference),
            cell_nll_reference=reference,
            cell_nll_train=self._cell_train,
            probes=self._probes.values,
            probe_age=self._probes.age if self._probes.names else None,
            # here every token costs the same
            costs=np.zeros_like(self._weight) if self.options.costs else None,
            cell_costs=np.zeros_like(self._inner) if self.options.costs else None,
        )
