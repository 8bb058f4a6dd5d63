"""The Gymnasium environment: one episode is one fine-tuning run, one step one decision."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mixgym.envs.errors import DivergenceError, MixgymError, RunError
from mixgym.envs.interval_plan import Budget, DataPlane, IntervalPlan
from mixgym.envs.learners.base import Evaluation, TrainReport
from mixgym.envs.learners.kinds import CURVES
from mixgym.envs.measuring.measurements import Measurements
from mixgym.envs.measuring.probe_book import wanted_probes
from mixgym.envs.measuring.records import decision_record
from mixgym.envs.options import EnvironmentOptions, TrainingOptions
from mixgym.envs.ranks import from_first
from mixgym.envs.rewards import Reward, make_reward, penalised
from mixgym.envs.spaces.actions import make_action_kind
from mixgym.envs.spaces.gathering import reward_input, view_of
from mixgym.envs.spaces.mixture import Mixture, MixtureFrame
from mixgym.envs.spaces.observations import (
    dict_observation,
    dict_space,
    flat_observation,
    flat_space,
)
from mixgym.envs.spaces.rendering import render_rgb, render_text
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
        that set at every reset.

    Episode end:
        ``terminated`` when the budget (steps, or supervised tokens) or the data is used up, or when
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
        self.world = world
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
        self._reward = make_reward(options.reward)
        self.action_space = self._kind.space(self.padded)
        self.observation_space = (
            flat_space(self.padded, options.costs)
            if options.observation == "flat"
            else dict_space(self.padded, tuple(wanted_probes(options)), options.costs)
        )
        self.seconds: dict[str, float] = {}  # of the last decision; measured, so never in info
        self.last_tokens = 0  # of the last interval
        self.last_supervised: list[float] = []
        self.last_seconds = 1.0  # predicted; every decision of curves costs the same
        self._seen = Measurements(options, world.cell_size.shape)
        self._plane: DataPlane | None = None
        self._stale = True  # the learner has to be reset before it trains

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the model itself is put back only when the first step trains it."""
        super().reset(seed=seed)
        self._progress = Progress(seed=int(self.np_random.integers(2**31)), history=[])
        self._enter()
        self._stale = True
        if not self._seen.known:
            self._begin()
            self._seen.take_start(self.world)
        self._progress.measured, self._progress.probed = self._seen.begin()
        self._mixture = self._asked = self.world.prior
        observation, _ = self._observe()
        return observation, {"start": self.start_losses()}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Train one interval under the mixture that ``action`` stands for."""
        if self._plane is None or self._progress.done:
            raise MixgymError("the episode has ended: call reset() before step()")
        self._begin()
        clock = time.perf_counter()
        seen = flat_observation(view_of(self), self.padded)[0].tolist()
        action = from_first(action)  # of several ranks, one decides
        asked = self._kind.decode(np.asarray(action, np.float64), self.frame)
        mixture = self.world.step_rule.tilt(asked)
        plan = self._plane.plan(mixture, self._budget())
        planned = time.perf_counter()
        try:
            report = self.world.learner.train(plan, self.world.step_rule, 1.0 - self.remaining)
            trained = time.perf_counter()
            cost = self._seen.take(self.world, report, self._progress.decisions + 1)
        except DivergenceError as error:
            return self._fail(mixture, error)
        self._asked = asked
        done = self._account(mixture, plan, report, cost)
        reward = self._pay()
        self.seconds = {
            "plan_seconds": planned - clock,
            "train_seconds": trained - planned,
            "measure_seconds": time.perf_counter() - trained,
        }
        observation, clipped = self._observe()
        record = decision_record(
            self, action=action, mixture=mixture, plan=plan, report=report, reward=reward
        )
        record["cost"]["observation_clipped"] = clipped
        record["observation"] = seen
        info: dict[str, Any] = {"decision": record}
        if done and self.on_episode_end is not None:
            self.on_episode_end(self, info)
        return observation, float(reward.value), done, False, info

    @property
    def frame(self) -> MixtureFrame:
        """What actions are read against now."""
        if self._plane is None:
            raise MixgymError("the environment has no episode: call reset() first")
        return MixtureFrame(self.world.prior, self._plane.available(), self.padded, self._asked)

    @property
    def progress(self) -> Progress:
        """What the episode has used so far."""
        return self._progress

    @property
    def plane(self) -> DataPlane:
        """The data plane of this episode."""
        if self._plane is None:
            raise MixgymError("the environment has no episode: call reset() first")
        return self._plane

    @property
    def now(self) -> Evaluation:
        """The last measurement of the reward split."""
        return self._seen.now

    @property
    def measurements(self) -> Measurements:
        """Everything that was measured last."""
        return self._seen

    @property
    def mixture(self) -> Mixture:
        """The mixture of the last decision, as it was trained on; the prior before the first."""
        return self._mixture

    @property
    def remaining(self) -> float:
        """Share of the budget that is left."""
        if self.training.supervised_tokens is not None:
            return max(0.0, 1.0 - self._progress.supervised / self.training.supervised_tokens)
        return 1.0 - self._progress.steps / self.training.steps

    def encode(self, mixture: Mixture) -> NDArray[np.float32]:
        """An action for the mixture, in this environment's action kind."""
        return np.asarray(self._kind.encode(mixture, self.frame), self.action_space.dtype)

    def start_losses(self) -> dict[str, float]:
        """Held-out NLL of every measured source before training."""
        if not self._seen.known:
            raise MixgymError("the environment has no episode: call reset() first")
        values = self._seen.start.source_nll
        return {
            name: float(value)
            for name, value in zip(self.world.names, values, strict=True)
            if np.isfinite(value)
        }

    def _enter(self) -> None:
        """Make the parts that belong to this episode."""
        if self.world.draw is not None:
            self.world = self.world.draw(self._progress.seed)
            self._seen.known = False
        self._plane = self.world.make_plane(self._progress.seed)

    def _begin(self) -> None:
        if self._stale:
            self.world.learner.reset()
            self.world.step_rule.reset()
            self._stale = False

    def _budget(self) -> Budget:
        interval = self.training.interval
        if self.training.supervised_tokens is not None:
            left = self.training.supervised_tokens - self._progress.supervised
            return Budget(interval, left)
        return Budget(min(interval, self.training.steps - self._progress.steps))

    def _account(
        self, mixture: Mixture, plan: IntervalPlan, report: TrainReport, cost: tuple[int, int]
    ) -> bool:
        """Book what the interval used; returns whether the episode is over."""
        done = self._progress
        self.last_tokens = round(float(plan.tokens.sum()))
        self.last_supervised = plan.supervised.sum(-1).tolist()
        self.last_seconds = sum(plan.step_seconds) or 1.0
        done.book(mixture, plan, report)
        done.measured += cost[0]
        done.probed += cost[1]
        self._mixture = mixture
        nothing_left = plan.exhausted or not plan.steps or not self.plane.available().any()
        done.done = self.remaining <= 0 or nothing_left
        return done.done

    def _pay(self) -> Reward:
        """The reward of the decision that was just booked."""
        seen = reward_input(self, probes=self._reward.probes, gains=self._reward.gains)
        reward = penalised(self._reward.compute(seen), seen, self.options.penalties)
        self._progress.reward = float(reward.value)
        return reward

    def _fail(
        self, mixture: Mixture, error: DivergenceError
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._progress.done = True
        observation, _ = self._observe()
        shares = ", ".join(
            f"{name} {weight:.3f}"
            for name, weight in zip(self.world.names, mixture.sources, strict=True)
        )
        info = {"failure": f"{error} (decision {self._progress.decisions + 1}, shares: {shares})"}
        return observation, FAILURE_PENALTY, True, False, info

    def _observe(self) -> tuple[Any, float]:
        observe = flat_observation if self.options.observation == "flat" else dict_observation
        observation, clipped = observe(view_of(self), self.padded)
        return observation, float(clipped)

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
        state = self._state()
        other = MixtureEnv(self.world, self.options, self.training, render_mode=self.render_mode)
        other._set_state(state)
        other.world = replace(
            self.world, learner=self.world.learner.fork(), step_rule=self.world.step_rule.fork()
        )
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
        self._set_state(state["state"])
        self.world.learner.load(folder / "learner")
        self.world.step_rule.load(folder / "step_rule")
        return self._observe()[0]

    def _state(self) -> dict[str, Any]:
        if not self._seen.known:
            raise MixgymError("the environment has no episode: call reset() first")
        return {
            "progress": copy.deepcopy(vars(self._progress)),
            "random": self.np_random.bit_generator.state,
            "plane": self.plane.snapshot(),
            "measurements": self._seen.state(),
            "mixture": _plain(self._mixture),
            "asked": _plain(self._asked),
            "fingerprint": self.world.fingerprint,
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.world.fingerprint:
            raise RunError(
                "the rows are not those that this state was saved with: a source, its splits or "
                "the tokenizer changed; put them back, or start a new run"
            )
        self._progress = Progress(**copy.deepcopy(state["progress"]))
        self.np_random = np.random.default_rng()
        self.np_random.bit_generator.state = state["random"]
        self._enter()
        self.plane.restore(state["plane"])
        self._seen.set_state(state["measurements"])
        self._mixture, self._asked = Mixture.of(*state["mixture"]), Mixture.of(*state["asked"])
        self._stale = False

    def render(self) -> Any:
        """The mixture so far: a picture (``rgb_array``) or a line of text (``ansi``)."""
        if not self._seen.known:
            raise MixgymError("the environment has no episode: call reset() first")
        history = np.array(self._progress.history or [self.world.prior.sources.tolist()])
        if self.render_mode == "rgb_array":
            return render_rgb(self.world.names, history)
        if self.render_mode == "ansi":
            return render_text(self.world.names, history[-1], self._progress.decisions)
        return None


def _plain(mixture: Mixture) -> list[Any]:
    return [mixture.sources.tolist(), mixture.strata.tolist()]


def make_mixture_env(render_mode: str | None = None, **options: Any) -> MixtureEnv:
    """Entry point of ``mixgym/Mixture-v0``: plain-data options, learner ``curves`` by default."""
    from mixgym.envs.build import build_environment
    from mixgym.envs.options import WorldOptions

    options.setdefault("environment", {})
    options["environment"] = {"learner": CURVES, **dict(options["environment"])}
    return build_environment(WorldOptions.model_validate(options), render_mode=render_mode)
