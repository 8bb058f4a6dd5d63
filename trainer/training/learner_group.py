"""Who learns in a training: a learner of both levels, one of a single level, or one of each.

=========  =====================================================================
joint      one learner sets all weights
global     one sets the sources; the strata follow another agent, or the prior
local      one shared learner sets the strata of every source; the sources follow another agent
alternate  one of each, which learn in turns; the other one is frozen
together   one of each, which learn from the same rollout
=========  =====================================================================
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from mixgym.agents.policies.composed import Composed, export_composed, load_agent, policy_folders
from mixgym.agents.policies.export import export_policy, load_weights
from mixgym.agents.registry import training_of
from mixgym.envs.learners.kinds import CAUSAL_LM
from mixgym.envs.levels.batch_global import GlobalLevel, level_shape
from mixgym.envs.levels.batch_local import LocalRows
from mixgym.trainer.config import RunConfig
from mixgym.trainer.training.algorithms import (
    load_algorithm,
    log_interval,
    make_algorithm,
    save_algorithm,
)
from mixgym.trainer.training.global_random_state import global_streams, set_global_streams
from mixgym.trainer.training.row_buffers import learn_from_present_rows
from mixgym.trainer.training.shared_rollout import Together
from mixgym.trainer.training.stepped_learner import Spaces, make_stepped_learner
from mixgym.trainer.training.training_envs import TrainingEnv

LEVELS: dict[str, tuple[str, ...]] = {
    "joint": ("joint",),
    "global": ("global",),
    "local": ("local",),
    "alternate": ("global", "local"),
    "together": ("global", "local"),
}
"""Level of a training -> those that learn in it; the first one's episodes are logged."""

_VIEW = "view.npz"


class LearnerGroup:
    """The learners of a training in a world, and what each of them sees.

    Args:
        config: what is trained.
        world: where.
        stage: its name.
        other: folder of the agent at the level that does not learn; None: the prior.

    Attributes:
        learners: by level.
    """

    def __init__(
        self, config: RunConfig, world: TrainingEnv, stage: str, other: Path | None
    ) -> None:
        self._config = config
        self._world = world
        self._stage = stage
        self._other = other
        self.levels = LEVELS[config.train.level]
        self.learners: dict[str, BaseAlgorithm] = {}
        self.together: Together | None = None
        self._views: dict[str, VecEnv] = {level: self._view(level) for level in self.levels}

    @property
    def episode(self) -> int:
        """Decisions in one episode of all environments."""
        return self._world.episode * self._world.env.num_envs

    # --- what each sees ---------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int]:
        return level_shape(self._world.env)

    def _view(self, level: str) -> VecEnv:
        train, env = self._config.train, self._world.env
        if level == "joint":
            return env
        other: Any = None if self._other is None else load_agent(self._other, shape=self._shape)
        if level == "global":
            discount = self._discount()
            return GlobalLevel(env, other, period=train.period, discount=discount)
        return LocalRows(env, self._held(other), team=train.team)

    def _held(self, top: Any) -> Any:
        """The agent over sources at its own pace."""
        if top is None:
            return None
        return Composed(top, None, self._shape, period=self._config.train.period)

    def _discount(self) -> float:
        """The discount of the learner over sources, per decision of the joint environment."""
        train = self._config.train
        options = {**training_of(train.algo).options, **train.options}
        return float(options.get("gamma", 0.99))  # Stable-Baselines3's own default

    def _settings(self, level: str) -> RunConfig:
        """The configuration of one of the learners."""
        train = self._config.train
        options, changes = dict(train.options), dict[str, Any]()
        if level == "local" and len(self.levels) > 1:
            same = train.local_algo in (None, train.algo)
            options = dict(train.options if same else {})
            options = {**options, **train.local_options}
            policy = {**(train.policy if same else {}), **train.local_policy}
            changes = {"algo": train.local_algo or train.algo, "policy": policy}
        algo = str(changes.get("algo", train.algo))
        if level == "global" and train.period > 1:
            options["gamma"] = self._discount() ** train.period
        if level != "joint":
            options = {**self._sizes(level, algo, options), **options}
        update = {**changes, "options": options}
        return self._config.model_copy(update={"train": train.model_copy(update=update)})

    def _sizes(self, level: str, algo: str, given: dict[str, Any]) -> dict[str, Any]:
        """Sizes of rollouts, batches and buffers of a learner of one level.

        A preset's are those of the joint level. A local learner sees K_max rows where that sees one
        observation, about half of which exist: its batches are twice as large, and of a rollout
        there are more of them. On a language model a rollout is two fine-tuning runs.
        """
        preset = training_of(algo)
        options = {**preset.options, **(preset.language if self._stage == CAUSAL_LM else {})}
        rows = self._shape[0] if level == "local" else 1
        sizes: dict[str, Any] = {}
        if preset.family == "on_policy":
            if self._stage == CAUSAL_LM:
                pace = self._config.train.period if level == "global" else 1
                sizes["n_steps"] = 2 * -(-self._world.episode // pace)
            steps = {**options, **sizes, **given}["n_steps"]
            if "batch_size" in options:
                whole = steps * self._world.env.num_envs * rows
                wanted = options["batch_size"] * min(2, rows)
                sizes["batch_size"] = whole if self._stage == CAUSAL_LM else min(wanted, whole)
        elif preset.family == "off_policy" and rows > 1:
            sizes = {
                "learning_starts": options["learning_starts"] * rows,
                "buffer_size": options["buffer_size"] * rows,
                "batch_size": options["batch_size"] * 2,
            }
        return sizes

    # --- making and keeping them ------------------------------------------------------------------

    def make(self, start: Path | None = None) -> None:
        """Make all learners.

        Args:
            start: folder of an agent whose weights they start from.

        Raises:
            ConfigError: for options that they do not take.
        """
        for level in self.levels:
            algorithm = make_algorithm(
                self._settings(level),
                self._own_view(level),
                level=level,  # type: ignore[arg-type]
                stage=self._stage,
            )
            if level == "local":
                learn_from_present_rows(algorithm)
            if start is not None:
                folder = policy_folders(start)["" if level == "joint" else level]
                load_weights(algorithm.policy, folder)
            self.learners[level] = algorithm
        self._join()

    def _own_view(self, level: str) -> VecEnv:
        stepped_outside = self._config.train.level == "together"
        return Spaces(self._views[level]) if stepped_outside else self._views[level]

    def _join(self) -> None:
        train = self._config.train
        if train.level != "together":
            return
        algos = {"global": train.algo, "local": train.local_algo or train.algo}
        learners = {
            level: make_stepped_learner(self.learners[level], algos[level]) for level in self.levels
        }
        self.together = Together(
            self._world.env,
            learners["global"],
            learners["local"],
            period=train.period,
            discount=self._discount(),
            team=train.team,
        )

    def save(self, folder: Path) -> None:
        """Write everything that :meth:`load` continues from, bit-equal."""
        for level, algorithm in self.learners.items():
            own = folder / level
            own.mkdir(parents=True)
            save_algorithm(algorithm, own)
            view = self._views[level]
            if isinstance(view, GlobalLevel | LocalRows):
                np.savez(own / _VIEW, *view.memory())
        if self.together is not None:
            for level, learner in self.together.learners():
                learner.save(folder / level)

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`; the world is put in its state afterwards."""
        for level in self.levels:
            own = folder / level
            self.learners[level] = load_algorithm(own, self._own_view(level), self._settings(level))
            view = self._views[level]
            if isinstance(view, GlobalLevel | LocalRows):
                with np.load(own / _VIEW) as file:
                    view.set_memory([file[name] for name in file.files])
        self._join()
        if self.together is not None:
            for level, learner in self.together.learners():
                learner.load(folder / level)

    # --- turns ------------------------------------------------------------------------------------

    def freeze(self, learning: str) -> None:
        """Put the learner of the other level, as it is now, beside the one that learns."""
        (frozen,) = set(self.levels) - {learning}
        streams = global_streams()
        with tempfile.TemporaryDirectory() as name:
            export_policy(self.learners[frozen].policy, Path(name), {})
            agent: Any = load_agent(Path(name), shape=self._shape)
        set_global_streams(streams)  # a network was made: a resume must not notice
        view = self._views[learning]
        if isinstance(view, GlobalLevel):
            view.local = agent
        elif isinstance(view, LocalRows):
            view.top = self._held(agent)

    def forget(self, level: str) -> None:
        """Drop a learner's transitions: they were made beside another partner."""
        algorithm = self.learners[level]
        algorithm._last_obs = None  # so that the next `learn` starts new episodes
        if isinstance(algorithm, OffPolicyAlgorithm) and algorithm.replay_buffer is not None:
            algorithm.replay_buffer.reset()

    def learn_together(
        self, total: int, between: Callable[[], None], *, progress: bool = False
    ) -> None:
        """Train both learners in one rollout, up to ``total`` decisions."""
        from tqdm import tqdm

        assert self.together is not None
        env = self._world.env
        begun = self.together.begun
        for level, learner in self.together.learners():
            learner.begin(self.steps_of(level, total), log_interval(self.learners[level]))
        if not begun:
            env.seed(self._config.seed)
            self.together.reset()
        with tqdm(total=total, initial=env.decisions, disable=not progress) as bar:

            def pause() -> None:
                bar.update(env.decisions - bar.n)
                between()

            self.together.learn(lambda: env.decisions < total, pause)

    def steps_of(self, level: str, decisions: int) -> int:
        """How many steps of its own a learner takes while so many decisions are taken."""
        env = self._world.env
        rounds = -(-decisions // env.num_envs)
        if level == "global":
            spans = -(-self._world.episode // self._config.train.period)
            rounds = -(-rounds * spans // self._world.episode)
        return rounds * env.num_envs * (self._shape[0] if level == "local" else 1)

    # --- the agent --------------------------------------------------------------------------------

    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the agent that the learners make, as they are now."""
        if self.levels == ("joint",):
            export_policy(self.learners["joint"].policy, folder, card)
            return
        parts: dict[str, Any] = {
            level: lambda inside, level=level: export_policy(
                self.learners[level].policy, inside, {"trained_as": level}
            )
            for level in self.levels
        }
        if self._other is not None:
            (missing,) = {"global", "local"} - set(self.levels)
            parts[missing] = lambda inside: shutil.copytree(self._other, inside)
        export_composed(folder, {**card, "period": self._config.train.period}, parts)
