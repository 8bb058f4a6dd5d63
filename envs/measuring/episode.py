"""One episode of a single environment: what it has used, asked for and measured, as plain values.

It plans nothing, trains nothing and pays nothing: it books what the environment did, and shows it
as a :class:`~mixgym.envs.spaces.view.View`.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from mixgym.envs.errors import RunError
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.learners.base import TrainReport
from mixgym.envs.measuring.measurements import Measurements
from mixgym.envs.measuring.payment import Spent
from mixgym.envs.options import EnvironmentOptions, TrainingOptions
from mixgym.envs.rewards import arm_draws, target_mean
from mixgym.envs.spaces.actions import Frames
from mixgym.envs.spaces.mixture import Mixture, MixtureFrame
from mixgym.envs.spaces.observations import fixed_parts
from mixgym.envs.spaces.view import Fixed, View
from mixgym.envs.world import Progress, World


class Episode:
    """The books of an episode.

    Args:
        world: sources, learner and data plane; another one in every episode if it draws them.
        options: which probes, and how actions are read.
        training: budget and interval.
        seed: of the episode.
        measured: what earlier episodes on the same model have measured; not used where every
            episode has a world of its own.
    """

    def __init__(
        self,
        world: World,
        options: EnvironmentOptions,
        training: TrainingOptions,
        seed: int,
        measured: Measurements,
    ) -> None:
        self.world = world
        if world.draw is not None:
            self.world = world.draw(seed)
            measured = Measurements(options, self.world.cell_size.shape)
        self.measured = measured
        self.progress = Progress(seed=seed, history=[])
        self.plane = self.world.make_plane(seed)
        self.mixture = self.asked = self.world.prior
        # of the last interval
        self.last_tokens = 0
        self.last_supervised: list[float] = []
        self.last_seconds = 1.0  # predicted; every decision of curves costs the same
        self._options, self._training = options, training
        # what stays until a cell is used up, with the cells that it was made for
        self._fixed: tuple[bytes, Fixed] | None = None
        self._frames: tuple[bytes, Frames] | None = None
        self._mean_start: float | None = None  # of the target-weighted loss

    @property
    def remaining(self) -> float:
        """Share of the budget that is left."""
        return max(0.0, 1.0 - self._used / self._training.budget)

    @property
    def _used(self) -> int:
        return self.progress.used(self._training.budget_unit)

    def budget(self) -> Budget:
        """What the next interval may use."""
        interval, left = self._training.interval, self._training.budget - self._used
        return {
            "steps": Budget(min(interval, left)),
            "supervised_tokens": Budget(interval, supervised=left),
            "tokens": Budget(interval, tokens=left),
        }[self._training.budget_unit]

    def begin(self) -> None:
        """Take over what is known of the base model."""
        self.progress.measured, self.progress.probed = self.measured.begin()

    def book(
        self,
        asked: Mixture,
        mixture: Mixture,
        plan: IntervalPlan,
        report: TrainReport,
        cost: tuple[int, int],
    ) -> None:
        """Book what an interval used.

        Args:
            asked: by the agent.
            mixture: that was trained on.
            plan: what was laid out.
            report: how training went.
            cost: tokens of held-out measurements and of probes.
        """
        done = self.progress
        self.last_tokens = round(float(plan.tokens.sum()))
        self.last_supervised = plan.supervised.sum(-1).tolist()
        self.last_seconds = sum(plan.step_seconds) or 1.0
        done.book(mixture, plan, report)
        done.measured += cost[0]
        done.probed += cost[1]
        self.asked, self.mixture = asked, mixture
        nothing_left = plan.exhausted or not plan.steps or not self.plane.available().any()
        done.done = self.remaining <= 0 or nothing_left

    def spent(self, draws: bool) -> Spent:
        """What the last interval took.

        Args:
            draws: whether the reward draws.
        """
        done = self.progress
        count = len(self.world.names)
        return Spent(
            tokens=max(self.last_tokens, 1),
            probe_tokens=self.measured.probe_tokens,
            seconds=self.last_seconds,
            draws=arm_draws(done.seed, done.decisions, count)[-1] if draws else None,
        )

    def view(self, shape: tuple[int, int]) -> View:
        """The books as they stand.

        Args:
            shape: (K_max, G_max), that observations are padded to.
        """
        world, done, seen = self.world, self.progress, self.measured.parts_of_view()
        unknown = np.full(world.cell_size.shape, np.nan)
        trained = unknown[:, 0] if done.train_nll is None else np.array(done.train_nll)
        cells = unknown if done.cell_train_nll is None else np.array(done.cell_train_nll)
        available = self.plane.available()
        if self._mean_start is None:
            self._mean_start = target_mean(seen["nll_start"], world.targets)
        view = View(
            remaining=self.remaining,
            reward=done.reward,
            targets=world.targets,
            prior=world.prior.sources,
            weight=self.mixture.sources,
            share=np.array(done.given or np.zeros(len(world.names))) / max(done.supervised, 1),
            nll_train=np.asarray(trained, np.float64),
            mean_nll=target_mean(seen["nll"], world.targets),
            mean_nll_start=self._mean_start,
            cell_size=world.cell_size,
            cell_prior=world.prior.strata,
            cell_weight=self.mixture.strata,
            cell_epochs=self.plane.epochs(),
            cell_nll_train=np.asarray(cells, np.float64),
            available=available,
            fixed=self._fixed[1] if self._fixed and self._fixed[0] == available.tobytes() else None,
            cost=world.cost,
            cell_cost=world.cell_cost,
            **seen,
        )
        if view.fixed is not None:
            return view
        fixed = fixed_parts(view, shape)
        self._fixed = available.tobytes(), fixed
        return replace(view, fixed=fixed)

    def frames(self, shape: tuple[int, int]) -> Frames:
        """What actions padded to ``shape`` are read against now."""
        available = self.plane.available()
        key = available.tobytes()
        if self._frames is None or self._frames[0] != key:
            frame = MixtureFrame(self.world.prior, available.copy(), shape)
            floor, reach = self._options.floor, self._options.reach
            self._frames = key, Frames.of_one(frame, floor, reach)
        current = (self.asked.sources, self.asked.strata)
        return replace(self._frames[1], current=current)

    def state(self) -> dict[str, Any]:
        """Plain data from which :meth:`set_state` continues."""
        return {
            "progress": copy.deepcopy(vars(self.progress)),
            "plane": self.plane.snapshot(),
            "measurements": self.measured.state(),
            "mixture": _plain(self.mixture),
            "asked": _plain(self.asked),
            "fingerprint": self.world.fingerprint,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state` of an episode with the same seed."""
        self.progress = Progress(**copy.deepcopy(state["progress"]))
        self.plane.restore(state["plane"])
        self.measured.set_state(state["measurements"])
        self._mean_start = None
        self.mixture, self.asked = Mixture.of(*state["mixture"]), Mixture.of(*state["asked"])


def check_fingerprint(world: World, state: dict[str, Any]) -> None:
    """Refuse a state that was saved with other rows.

    Raises:
        RunError: if it was.
    """
    if state["fingerprint"] != world.fingerprint:
        raise RunError(
            "the rows are not those that this state was saved with: a source, its splits or "
            "the tokenizer changed; put them back, or start a new run"
        )


def _plain(mixture: Mixture) -> list[Any]:
    return [mixture.sources.tolist(), mixture.strata.tolist()]
