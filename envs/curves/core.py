"""The core of the fast world: all environments as arrays; a single one is a batch of one."""

from dataclasses import replace
from itertools import repeat
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray
from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.curves.batch.probes import BatchProbes
from mixgym.envs.curves.batch.records import LazyRecord, Ledger, StepArrays, Trained
from mixgym.envs.curves.batch.tilt import BatchTilt
from mixgym.envs.curves.dynamics import (
    CurveState,
    Pace,
    advance,
    mastery,
    nll,
    passes,
)
from mixgym.envs.curves.episodes import Draws, Episodes, Seeds, over
from mixgym.envs.curves.held_out import mean_error, standard_errors
from mixgym.envs.curves.probes import Seen
from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA, CurveTask, supervised_total
from mixgym.envs.curves.task_tables import Clock, TaskTable
from mixgym.envs.curves.tasks.sets import Tasks
from mixgym.envs.measuring.payment import Spent, paid
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.rewards import Reward, make_reward
from mixgym.envs.spaces.actions import Frames, Levels, make_action_kind
from mixgym.envs.spaces.mixture import last_sum
from mixgym.envs.spaces.observations import (
    clipped_to_bounds,
    dict_observation,
    dict_space,
    features,
    fixed_parts,
    flat_space,
)
from mixgym.envs.spaces.view import Fixed, View

DECISIONS = 32
"""Decisions in an episode."""


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
        steps: in an episode; the last interval may be shorter. None: ``decisions * interval``.
        in_order: give environment i the tasks i, i + count, ... instead of random ones.
        bilevel: how step rule ``bilevel`` learns its weights, if that is the rule.
        group: so many neighbours meet the same episodes; 1: each its own.
        exact_rewards: pay by losses without the errors of held-out sets, which the agent sees all
            the same: what is paid on the average is the same, and training by it much quicker.

    Raises:
        ConfigError: for options that only the single environment has, or too little padding.
    """

    def __init__(
        self,
        count: int,
        tasks: Tasks,
        options: EnvironmentOptions,
        *,
        seed: int = 0,
        decisions: int = DECISIONS,
        interval: int = 1,
        steps: int | None = None,
        in_order: bool = False,
        bilevel: BilevelOptions | None = None,
        group: int = 1,
        exact_rewards: bool = False,
    ) -> None:
        self.count = count
        self._exact = exact_rewards
        self.options = options
        self.shape = (options.max_sources or MAX_SOURCES, options.max_strata or MAX_STRATA)
        self.decisions = decisions
        self._clock = Clock(decisions, interval, steps or interval * decisions)
        self._rows = np.arange(count)
        self._probes = BatchProbes(options, count, self.shape, decisions)
        self._tilt: BatchTilt | None = None
        if options.step_rule == "bilevel":
            self._tilt = BatchTilt(bilevel or BilevelOptions(), count, self.shape[0])
        reference = options.reference is not None or "excess_loss" in self._probes.names
        self._table = TaskTable(tasks, options, self.shape, self._clock, reference)
        self._kind = make_action_kind(
            options.action, floor=options.floor, reach=options.reach, step=options.step
        )
        self._last: StepArrays | None = None
        self._drawn = Draws(
            self._table,
            decisions,
            self.shape,
            seed=seed,
            count=count,
            in_order=in_order,
            group=group,
        )
        self._look_up()
        self._episodes = Episodes.begun(self._here.prior, CurveState.start(self.task))
        self._view: View | None = None

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of one environment."""
        flat = self.options.observation == "flat"
        return flat_space(self.shape) if flat else dict_space(self.shape, self._probes.names)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self._kind.space(self.shape)

    @property
    def task(self) -> CurveTask:
        """The tasks of this moment."""
        return self._here.task

    def seed(self, seed: Seeds) -> None:
        """Start the streams of the next episodes anew; those whose seed is None go on."""
        self._drawn.seed(seed)

    def reset(self, which: NDArray[np.intp] | None = None) -> None:
        """Draw new tasks for the environments ``which`` (all if None)."""
        which = np.arange(self.count) if which is None else which
        kind = make_reward(self.options.reward)
        drawn = self._drawn.draw(which, arms=kind.probes)
        for i, (episode, shape) in zip(which.tolist(), drawn, strict=True):
            self._probes.draw(i, episode, shape)
        self._look_up()
        here = np.isin(np.arange(self.count), which)
        blank = Episodes.begun(self._here.prior, CurveState.start(self.task))
        begun = self._episodes.replaced(here, blank)
        self._find_truth(begun.state)
        now = self._true * self._drawn.off_at(begun.decision)
        measured = {
            name: over(here, now, getattr(begun, name)) for name in ("start", "before", "now")
        }
        self._episodes = replace(begun, **measured)
        if self._probes.names:
            self._probes.start(which, self._seen())
        if self._tilt is not None:
            self._tilt.reset(which)
        self._view = None

    def _look_up(self) -> None:
        """The constants of the tasks of this moment."""
        self._here = self._table.pick(self._drawn.task)
        self._fixed: Fixed | None = None
        self._start: tuple[FloatArray, FloatArray] | None = None  # by source, and their mean

    def _find_truth(self, state: CurveState) -> None:
        """Mastery and NLL without noise; the next step needs them again."""
        self._known = mastery(self.task, state)
        self._true = nll(self.task, state, self._known)

    def step(self, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray]:
        """Move all environments; returns rewards float64[n] and dones bool[n].

        One that has ended moves too, into nothing: it has to be reset before it is looked at.
        """
        actions, was, true_before = np.asarray(actions), self._episodes, self._true
        seen = self.view
        asked, inner = self._kind.weights(actions, self._frames())
        weight, pace = self._tilted(asked), self._pace(was.decision)
        cells, read = weight[..., None] * inner, self._here.per_step * pace.steps
        total = supervised_total(self.task, cells, read)
        tokens = np.multiply(cells, total[..., None, None], out=cells)
        state = advance(self.task, was.state, tokens, pace, self._known, total)
        self._find_truth(state)
        middle = 0.5 * (true_before + self._true)
        supervised = was.supervised + np.rint(total)
        self._episodes = Episodes(
            decision=was.decision + 1,
            reward=was.reward,
            supervised=supervised,
            asked=asked,
            weight=weight,
            inner=inner,
            share=last_sum(state.given) / np.maximum(supervised, 1.0)[:, None],
            train=np.where(weight > 0, last_sum(middle * inner), was.train),
            cell_train=np.where(tokens > 0, middle, was.cell_train),
            start=was.start,
            before=was.now,
            now=self._true * self._drawn.off_at(was.decision + 1),
            **vars(state),
        )
        if self._probes.names:
            self._probe(np.where(tokens > 0, middle, np.nan))
        view, reward = self._pay(read, true_before, seen)
        trained = Trained(actions, tokens, middle, pace)
        self._last = StepArrays(
            seen,
            view,
            reward,
            trained,
            supervised,
            was.decision + 1,
            state.given,
            self._ledger(),
        )
        return self._episodes.reward, was.decision + 1 >= self.decisions

    def _pace(self, decision: NDArray[np.int64]) -> Pace:
        """How the interval after these decisions is trained; one that has ended stands still."""
        at = self._clock.at(decision)
        return Pace(self._clock.steps[at], self._here.rate[self._rows, at])

    def _tilted(self, asked: FloatArray) -> FloatArray:
        """What is sampled where ``asked`` is asked for; the step rule learns besides."""
        if self._tilt is None:
            return asked
        weight = self._tilt.tilt(asked)
        decision = self._episodes.decision
        now, then = (self._clock.done[self._clock.at(n)] for n in (decision, decision - 1))
        self._tilt.learn(self._seen(), asked, now, np.where(decision > 0, then, 0.0))
        return weight

    def _probe(self, trained: FloatArray) -> None:
        """Take the probes that are due after training with these NLL (NaN: not trained)."""
        start = np.where(self._here.present, self._episodes.start, np.nan)
        gains = None if self._tilt is None else self._tilt.gains
        self._probes.take(self._seen(), self._episodes.decision, trained, start, gains)

    def _pay(self, read: FloatArray, true_before: FloatArray, seen: View) -> tuple[View, Reward]:
        """What the last decision shows, and its rewards; they are booked.

        Args:
            read: float64[n], tokens.
            true_before: float64[n, K, G], NLL without errors before it.
            seen: what was shown before it.
        """
        kind, made = make_reward(self.options.reward), self._episodes
        view = self._look(seen.nll)
        draws = self._drawn.arms_at(made.decision) if kind.probes else None
        # an episode that has ended takes none
        spent = Spent(np.maximum(read, 1.0), self._probes.tokens, draws=draws)
        judged = self._here.judged(view, true_before, self._true) if self._exact else view
        reward = paid(judged, spent, kind, self.options)
        value = np.asarray(reward.value)
        self._episodes = replace(made, reward=value)
        self._view = view.with_reward(value)
        return self._view, reward

    def _ledger(self) -> Ledger:
        """What the records of a step say besides what it did."""
        tilt = None if self._tilt is None else self._tilt.watched()
        return Ledger(self._here, self._clock, self._probes.spent, self._probes.fresh(), tilt)

    def observe(self) -> Any:
        """Observations of all environments: an array [n, size], or a dict of them."""
        if self.options.observation == "flat":
            return clipped_to_bounds(features(self.view, self.shape))
        return dict_observation(self.view, self.shape)[0]

    def records(self) -> list[LazyRecord]:
        """The record of every environment's last decision."""
        last = self.last
        return list(map(LazyRecord, repeat(last), range(self.count)))

    def record(self, index: int) -> LazyRecord:
        """The record of one environment's last decision."""
        return LazyRecord(self.last, index)

    @property
    def common_names(self) -> tuple[str, ...]:
        """Names of the sources that every task has."""
        return tuple(f"source{k}" for k in range(min(rows for rows, _ in self._table.shapes)))

    @property
    def last(self) -> StepArrays:
        """What the last step did."""
        assert self._last is not None
        return self._last

    def final_nll(self) -> FloatArray:
        """float64[n, K], NLL per source without measurement noise; NaN for absent ones."""
        return self._named(nll(self.task, self._episodes.state))

    def start_nll(self) -> FloatArray:
        """float64[n, K], the same before training."""
        return self._named(nll(self.task, CurveState.start(self.task)))

    def _named(self, cells: FloatArray) -> FloatArray:
        return np.where(self._here.sources, self._here.by_source(cells), np.nan)

    def state(self) -> dict[str, Any]:
        """Plain data and arrays from which :meth:`set_state` continues bit-equal."""
        arrays = self._episodes.arrays() | self._drawn.arrays()
        random = self._drawn.random_state()
        state = {"arrays": arrays, "random": random, "probes": self._probes.state()}
        return state if self._tilt is None else {**state, "bilevel": self._tilt.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        arrays = state["arrays"]
        self._drawn.set_state(arrays, state["random"])
        self._probes.set_state(state["probes"])
        if self._tilt is not None:
            self._tilt.set_state(state["bilevel"])
        self._episodes = Episodes.of(arrays)
        self._look_up()
        self._find_truth(self._episodes.state)
        self._view = None

    def _seen(self) -> Seen:
        known = self._here.reference
        return Seen(
            self.task, self._episodes.state, self._known, None if known is None else known[1]
        )

    def _frames(self) -> Frames:
        """What actions are read against."""
        here, made = self._here, self._episodes
        current: Levels = (made.asked, made.inner)
        return Frames(
            here.prior, here.base, here.scale, current, here.present, self.shape, here.present
        )

    @property
    def view(self) -> View:
        """What the episodes have booked."""
        if self._view is None:
            self._view = self._look()
        return self._view

    def _look(self, before: FloatArray | None = None) -> View:
        """What the episodes have booked; ``before``: float64[n, K], losses before, if known."""
        here, made = self._here, self._episodes
        reference = None if here.reference is None else here.reference[0]
        now = here.by_source(made.now)
        if self._start is None:
            start = here.by_source(made.start)
            self._start = start, last_sum(start * here.target_weights)
        book, errors = self._probes.book, standard_errors(here.task.noise, made.now)
        view = View(
            remaining=1.0 - self._clock.done[self._clock.at(made.decision)],
            reward=made.reward,
            targets=here.task.targets,
            prior=here.prior[0],
            weight=made.weight,
            share=made.share,
            nll=now,
            nll_before=here.by_source(made.before) if before is None else before,
            nll_start=self._start[0],
            nll_train=made.train,
            mean_nll=last_sum(now * here.target_weights),
            mean_nll_start=self._start[1],
            cell_size=here.task.size,
            cell_prior=here.prior[1],
            cell_weight=made.inner,
            cell_epochs=passes(here.task, made.state),
            cell_nll=made.now,
            cell_nll_before=made.before,
            cell_nll_start=made.start,
            available=here.present,
            present=here.sources,
            fixed=self._fixed,
            nll_reference=None if reference is None else here.by_source(reference),
            cell_nll_reference=reference,
            cell_nll_train=made.cell_train,
            probes=book.values,
            probe_age=book.age if book.periods else None,
            cost=here.task.source_cost,
            cell_cost=here.task.cell_cost,
            error=mean_error(errors, here.task.cell_mean),
            cell_error=errors,
        )
        if self._fixed is None:
            self._fixed = fixed_parts(view, self.shape)
            view = replace(view, fixed=self._fixed)
        return view
