"""The Gymnasium environment: one episode is one fine-tuning run, one step one decision."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.errors import DivergenceError, MixgymError, check_reset_options
from mixgym.envs.interval_plan import DataPlane
from mixgym.envs.learners.base import Evaluation
from mixgym.envs.measuring.episode import Episode, check_fingerprint
from mixgym.envs.measuring.measurements import Measurements
from mixgym.envs.measuring.payment import paid
from mixgym.envs.measuring.probe_book import wanted_probes
from mixgym.envs.measuring.records import Decision, decision_record
from mixgym.envs.options import EnvironmentOptions, TrainingOptions
from mixgym.envs.ranks import from_first
from mixgym.envs.rewards import Reward, make_reward
from mixgym.envs.spaces.actions import make_action_kind
from mixgym.envs.spaces.mixture import Mixture, MixtureFrame
from mixgym.envs.spaces.observations import dict_parts, dict_space, flat_observation, flat_space
from mixgym.envs.spaces.rendering import render_rgb, render_text
from mixgym.envs.spaces.view import View
from mixgym.envs.world import Progress, World

FAILURE_PENALTY = -1.0  # reward of the decision at which training diverged

EpisodeHook = Callable[["MixtureEnv", dict[str, Any]], None]


class MixtureEnv(gym.Env[Any, NDArray[np.float32]]):
    """Fine-tuning on a mixture of sources, as an environment (``mixgym/Mixture-v0``).

    Description:
        An episode is one fine-tuning run. Each step sets the mixture for the next interval of
        optimiser steps, trains them, and measures held-out losses.

    Action space:
        ``Box(-1, 1)`` (kinds ``logits`` and ``delta``) or ``Box(0, 1)`` (kind ``weights``) with
        K_max + K_max * G_max entries: one per source, then one per stratum, source by source;
        ``Discrete(1 + entries)`` (kind ``nudge``). See :mod:`mixgym.envs.spaces.actions`. Infinite
        entries are clipped; a NaN raises and names its index. Used-up sources and strata get weight
        0.

    Observation space:
        A flat float32 ``Box(-10, 10)``, or the same as a ``Dict`` with raw ``signals``: see
        :mod:`mixgym.envs.spaces.observations`.

    Rewards:
        By name, see :mod:`mixgym.envs.rewards`. ``progress`` sums to the fall of the
        target-weighted mean held-out NLL over the episode. Rewards that read probes read their
        latest values, and are 0 before there are any.

    Starting state:
        The base model and untouched data. ``reset(seed=s)`` fixes the order of rows; of ``curves``
        the measurement noise, and with ``environment.tasks`` the task, which is then drawn from
        that set at every reset. There are no reset options: unknown ones are refused.

    Episode end:
        ``terminated`` when the budget (steps, or tokens) or the data is used up, or when
        training diverged (reward :data:`FAILURE_PENALTY`, ``info["failure"]`` says why). Never
        ``truncated``.

    Info:
        ``decision``: the record of the decision (see :mod:`mixgym.envs.measuring.records`).

    Arguments:
        world: sources, learner and data plane.
        options: action kind, observation, reward, floor, padding.
        training: budget and interval.
        on_episode_end: called as ``hook(env, info)`` inside the last step, while the fine-tuned
            model is still there: vector environments reset at once. The reset after it is lazy.
            Not called when training diverged: there is no model to keep.
        render_mode: ``rgb_array`` or ``ansi``.

    Cost:
        One evaluation of the reward split per decision, one at the start; probes
        (:mod:`mixgym.envs.probes`) in their periods, for whoever asked for them.

    Copies:
        :meth:`fork` for looking ahead, :meth:`snapshot` and :meth:`save` for going back. An
        environment on closed-form curves is also pickled and deep-copied, and goes on bit-equal;
        around a language model that is refused.

    Version history:
        v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        world: World,
        options: EnvironmentOptions,
        training: TrainingOptions,
        on_episode_end: EpisodeHook | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._world = world
        self.options = options
        self.training = training
        self.on_episode_end = on_episode_end
        self.render_mode = render_mode
        sources, strata = world.cell_size.shape
        self.padded = (options.max_sources or sources, options.max_strata or strata)
        if self.padded[0] < sources or self.padded[1] < strata:
            raise MixgymError(
                f"environment.max_sources, max_strata = {self.padded}: the task has {sources} "
                f"sources and {strata} strata"
            )
        self._kind = make_action_kind(
            options.action, floor=options.floor, reach=options.reach, step=options.step
        )
        self.action_space = self._kind.space(self.padded)
        self.observation_space = (
            flat_space(self.padded)
            if options.observation == "flat"
            else dict_space(self.padded, tuple(wanted_probes(options)))
        )
        # of the last decision, also when a reset has followed; measured time is never in info
        self.seconds: dict[str, float] = {}
        self.last_tokens = 0
        self.last_supervised: list[float] = []
        self._base = Measurements(options, world.cell_size.shape)
        self._episode: Episode | None = None
        self._flat = np.zeros(0, np.float32)  # what was observed last
        self._stale = True  # the learner has to be reset before it trains

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the model itself is put back only when the first step trains it.

        Raises:
            MixgymError: for ``options``: there are none.
        """
        check_reset_options(options)
        super().reset(seed=seed)
        self._enter(int(self.np_random.integers(2**31)))
        self._stale = True
        if not self.measurements.known:
            self._begin()
            self.measurements.take_start(self.world)
        self.episode.begin()
        observation, _ = self._observe(self.episode.view(self.padded))
        return observation, {"start": self.start_losses()}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Train one interval under the mixture that ``action`` stands for."""
        if self._episode is None or self._episode.progress.done:
            raise MixgymError("the episode has ended: call reset() before step()")
        self._begin()
        world, episode, seen = self.world, self._episode, self._flat
        clock = time.perf_counter()
        action = from_first(action)  # of several ranks, one decides
        raw = np.asarray(action, np.float64).reshape(-1)
        asked = Mixture(*self._kind.weights(raw, episode.frames(self.padded)))
        mixture = world.step_rule.tilt(asked)
        plan = episode.plane.plan(mixture, episode.budget())
        planned = time.perf_counter()
        try:
            report = world.learner.train(plan, world.step_rule, 1.0 - episode.remaining)
            trained = time.perf_counter()
            cost = self.measurements.take(world, report, episode.progress.decisions + 1)
        except DivergenceError as error:
            return self._fail(mixture, error)
        episode.book(asked, mixture, plan, report, cost)
        self.last_tokens, self.last_supervised = episode.last_tokens, episode.last_supervised
        view, reward = self._pay()
        self.seconds = {
            "plan_seconds": planned - clock,
            "train_seconds": trained - planned,
            "measure_seconds": time.perf_counter() - trained,
        }
        observation, clipped = self._observe(view)
        made = Decision(
            names=world.names,
            action=action,
            observation=seen,
            mixture=mixture,
            plan=plan,
            report=report,
            reward=reward,
            view=view,
            progress=episode.progress,
            probes=self.measurements.fresh(),
            health=world.step_rule.health(),
            clipped=clipped,
        )
        info: dict[str, Any] = {"decision": decision_record(made)}
        if episode.progress.done and self.on_episode_end is not None:
            self.on_episode_end(self, info)
        return observation, float(reward.value), episode.progress.done, False, info

    @property
    def world(self) -> World:
        """The parts: those of this episode, where every episode has its own."""
        return self._world if self._episode is None else self._episode.world

    @property
    def episode(self) -> Episode:
        """The books of this episode."""
        if self._episode is None:
            raise MixgymError("the environment has no episode: call reset() first")
        return self._episode

    @property
    def frame(self) -> MixtureFrame:
        """What actions are read against now."""
        episode = self.episode
        available = episode.plane.available()
        return MixtureFrame(episode.world.prior, available, self.padded, episode.asked)

    @property
    def progress(self) -> Progress:
        """What the episode has used so far."""
        return self.episode.progress

    @property
    def plane(self) -> DataPlane:
        """The data plane of this episode."""
        return self.episode.plane

    @property
    def now(self) -> Evaluation:
        """The last measurement of the reward split."""
        return self.measurements.now

    @property
    def measurements(self) -> Measurements:
        """Everything that was measured last."""
        return self._base if self._episode is None else self._episode.measured

    @property
    def mixture(self) -> Mixture:
        """The mixture of the last decision, as it was trained on; the prior before the first."""
        return self.episode.mixture

    @property
    def remaining(self) -> float:
        """Share of the budget that is left."""
        return self.episode.remaining

    def encode(self, mixture: Mixture) -> NDArray[np.float32]:
        """An action for the mixture, in this environment's action kind."""
        return np.asarray(self._kind.encode(mixture, self.frame), self.action_space.dtype)

    def start_losses(self) -> dict[str, float]:
        """Held-out NLL of every measured source before training."""
        self._need_start()
        values = self.measurements.start.source_nll
        return {
            name: float(value)
            for name, value in zip(self.world.names, values, strict=True)
            if np.isfinite(value)
        }

    def _need_start(self) -> None:
        if not self.measurements.known:
            raise MixgymError("the environment has no episode: call reset() first")

    def _enter(self, seed: int) -> None:
        """Open the books of an episode."""
        self._episode = Episode(self._world, self.options, self.training, seed, self._base)

    def _begin(self) -> None:
        if self._stale:
            self.world.learner.reset()
            self.world.step_rule.reset()
            self._stale = False

    def _pay(self) -> tuple[View, Reward]:
        """What the decision that was just booked shows, and its reward."""
        kind = make_reward(self.options.reward)
        view, spent = self.episode.view(self.padded), self.episode.spent(kind.probes)
        reward = paid(view, spent, kind, self.options)
        self.progress.reward = float(reward.value)
        return view.with_reward(self.progress.reward), reward

    def _fail(
        self, mixture: Mixture, error: DivergenceError
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.progress.done = True
        observation, _ = self._observe(self.episode.view(self.padded))
        shares = ", ".join(
            f"{name} {weight:.3f}"
            for name, weight in zip(self.world.names, mixture.sources, strict=True)
        )
        info = {"failure": f"{error} (decision {self.progress.decisions + 1}, shares: {shares})"}
        return observation, FAILURE_PENALTY, True, False, info

    def _observe(self, view: View) -> tuple[Any, float]:
        """The observation, made once and remembered; the share of its entries that were clipped."""
        flat, clipped = flat_observation(view, self.padded)
        self._flat = flat
        if self.options.observation == "flat":
            return flat, float(clipped)
        return dict_parts(flat, view, self.padded), float(clipped)

    def snapshot(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs to continue bit-equal, learner included."""
        self._begin()
        return {
            "state": self._state(),
            "learner": self.world.learner.snapshot(),
            "step_rule": self.world.step_rule.snapshot(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`snapshot`."""
        self._set_state(state["state"])
        self.world.learner.restore(state["learner"])
        self.world.step_rule.restore(state["step_rule"])

    def fork(self) -> "MixtureEnv":
        """An independent environment in the same state; data is shared, nothing else is.

        The copy has no ``on_episode_end``: it is for looking ahead.
        """
        self._begin()
        state, learner, rule = self._state(), self.world.learner, self.world.step_rule
        learner, rule = learner.fork(), rule.fork()
        world = replace(self._world, learner=learner, step_rule=rule)
        other = MixtureEnv(world, self.options, self.training, render_mode=self.render_mode)
        other._set_state(state)
        other.episode.world = replace(self.world, learner=learner, step_rule=rule)
        return other

    def save(self, folder: Path) -> None:
        """Write the state to ``folder``: ``learner/``, ``step_rule/``, ``environment.json``."""
        self._begin()
        self.world.learner.save(folder / "learner")
        self.world.step_rule.save(folder / "step_rule")
        (folder / "environment.json").write_text(json.dumps({"state": self._state()}))

    def load(self, folder: Path) -> Any:
        """Continue from :meth:`save`; returns the observation."""
        state = json.loads((folder / "environment.json").read_text())
        observation = self._set_state(state["state"])
        self.world.learner.load(folder / "learner")
        self.world.step_rule.load(folder / "step_rule")
        return observation

    def _state(self) -> dict[str, Any]:
        self._need_start()
        return {**self.episode.state(), "random": self.np_random.bit_generator.state}

    def _set_state(self, state: dict[str, Any]) -> Any:
        """Continue but for learner and step rule; returns the observation."""
        check_fingerprint(self.world, state)
        self.np_random = np.random.default_rng()
        self.np_random.bit_generator.state = state["random"]
        self._enter(int(state["progress"]["seed"]))
        self.episode.set_state(state)
        self._stale = False
        return self._observe(self.episode.view(self.padded))[0]

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and deep-copying keep: everything, for worlds that allow it.

        Raises:
            MixgymError: for a world that is bound to its process; the sentence says what to do.
        """
        if self.world.bound:
            raise MixgymError(self.world.bound)
        return vars(self).copy()

    def render(self) -> Any:
        """The mixture so far: a picture (``rgb_array``) or a line of text (``ansi``)."""
        self._need_start()
        history = np.array(self.progress.history or [self.world.prior.sources.tolist()])
        if self.render_mode == "rgb_array":
            return render_rgb(self.world.names, history)
        if self.render_mode == "ansi":
            return render_text(self.world.names, history[-1], self.progress.decisions)
        return None
